// SPDX-License-Identifier: Apache-2.0

package sockmap

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/meshproxy/meshproxy/bpf"
	"github.com/meshproxy/meshproxy/discovery/mesh"
)

// switching is a world in which programs are about to be replaced by others with
// maps of their own. Nobody but workloads gets in: what sk_lookup finds no flow of
// is refused.
type switching struct {
	*splicing
	state State
	steps int
}

// newSwitching has what begins from now on call back at each step, and dial.
func newSwitching(t *testing.T) *switching {
	w := &switching{splicing: newSplicing(t)}
	w.state = w.directState(Allow)
	w.state.Workloads[1].InboundLocal = mesh.Deny
	w.apply(w.state)
	w.opts.switching = func() { w.steps++; w.works() }
	return w
}

// works wants connections to be made without the proxy at this moment.
func (w *switching) works() {
	w.t.Helper()
	for _, f := range families {
		fd, err := w.front.dialNonblock(f.addr)
		if err != nil {
			w.t.Errorf("step %d: dial %s: %v", w.steps, f.addr, err)
		} else {
			conn, from := w.back.acceptNonblock(w.listeners[f.at])
			if from.Port() != w.front.local(fd).Port() || w.front.peer(fd).String() != f.addr {
				w.t.Errorf("step %d: accepted from %s, dialled %s", w.steps, from, w.front.peer(fd))
			}
			w.back.close(conn)
		}
		w.front.close(fd)
	}
}

// age makes the state that of another layout, for the process that has it, too.
func (w *switching) age() {
	w.t.Helper()
	w.world.age()
	w.place.layout = 0
	w.kernel.dir = w.place.current()
}

// others are the ways in which the state of the programs that follow can be apart.
var others = []struct {
	name    string
	replace func(w *switching)
}{
	{"another layout", (*switching).age},
	{"another size", func(w *switching) { w.opts.MaxFlows = 4321 }},
}

// TestSwitch: new connections succeed at each step of a switch to programs that keep
// flows in a map of their own, whoever decided about them and whoever accepts them.
func TestSwitch(t *testing.T) {
	for _, o := range others {
		t.Run("take over, "+o.name, func(t *testing.T) {
			w := newSwitching(t)
			o.replace(w)
			next := w.follower()
			if err := next.Prepare(w.state); err != nil {
				t.Fatal(err)
			}
			if err := w.Yield(); err != nil {
				t.Fatal(err)
			}
			if err := next.TakeOver(); err != nil {
				t.Fatal(err)
			}
			w.switched(next)
			if err := next.Commit(); err != nil {
				t.Fatal(err)
			}
			w.works()
		})
		t.Run("take back, "+o.name, func(t *testing.T) {
			w := newSwitching(t)
			during := w.opts.switching
			w.opts.switching = nil
			o.replace(w)
			next := w.follower()
			w.opts.switching = during
			if err := next.Prepare(w.state); err != nil {
				t.Fatal(err)
			}
			if err := w.Yield(); err != nil {
				t.Fatal(err)
			}
			if err := next.TakeOver(); err != nil {
				t.Fatal(err)
			}
			w.works()
			if err := next.Close(); err != nil {
				t.Fatal(err)
			}
			w.kernel.switching = during
			if err := w.TakeBack(); err != nil {
				t.Fatal(err)
			}
			w.switched(w.Capture)
		})
		t.Run("restart, "+o.name, func(t *testing.T) {
			w := newSwitching(t)
			w.close()
			o.replace(w)
			w.open()
			w.works()
			w.serveAgain()
			w.apply(w.state)
			w.switched(w.Capture)
		})
	}
}

// switched wants the switch to have called back, and connections to work after it.
func (w *switching) switched(by *Capture) {
	w.t.Helper()
	if w.steps < len(hooks) || !by.InForce() {
		w.t.Errorf("%d steps, in force: %v", w.steps, by.InForce())
	}
	w.works()
}

// TestFormerFlows: what the programs before have on record gets in for a while.
func TestFormerFlows(t *testing.T) {
	w := newSwitching(t)
	w.opts.switching = nil
	flows, err := w.kernel.maps[bpf.CaptureMapFlows].Clone()
	if err != nil {
		t.Fatal(err)
	}
	defer flows.Close()
	w.close()
	w.age()
	w.open()
	w.serveAgain()
	w.apply(w.state)
	nobody := w.process("nobody")
	dial := func(recorded bool) error {
		t.Helper()
		fd := nobody.socket(unix.AF_INET, unix.SOCK_STREAM)
		defer nobody.close(fd)
		if err := nobody.bind(fd, "10.9.0.1:0"); err != nil {
			t.Fatal(err)
		}
		key := bpf.CaptureFlowKey{
			Netns: w.cookie, Client: toAddress(nobody.local(fd)), Local: toAddress(netip.MustParseAddrPort(direct4)),
		}
		if recorded {
			if err := flows.Update(key, bpf.CaptureFlow{}, ebpf.UpdateNoExist); err != nil {
				t.Fatal(err)
			}
		}
		return nobody.connect(fd, direct4)
	}
	if err := dial(true); err != nil {
		t.Fatalf("on record: %v", err)
	}
	conn, _ := w.back.accept(w.listeners[direct4])
	w.back.close(conn)
	if err := dial(false); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("not on record: %v", err)
	}
	if err := w.kernel.forgetFormerFlows(); err != nil {
		t.Fatal(err)
	}
	if err := dial(true); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("on a record that was forgotten: %v", err)
	}
	w.works()
}

// TestSwitchSteered: plaintext from elsewhere is steered to the proxy all the while.
func TestSwitchSteered(t *testing.T) {
	w := newWorld(t)
	w.start()
	web := w.workload("web")
	web.Inbound = mesh.InboundPermissive
	s := State{Workloads: []Workload{web}}
	w.apply(s)
	far := w.neighbour()
	w.serving("web", "[::]:80")
	plain := w.listenOwn(w.proxy, "[::]:15006")
	steer := func(c *Capture) {
		w.proxy.with(plain, func(fd int) error { return c.SetInboundListener(w.cookie, fd) })
	}
	steer(w.Capture)
	steps := 0
	w.opts.switching = func() {
		steps++
		fd, err := far.dial("10.8.0.1:80")
		if err != nil {
			t.Errorf("step %d: %v", steps, err)
		} else {
			conn, _ := w.proxy.accept(plain)
			w.proxy.close(conn)
		}
		far.close(fd)
	}
	w.age()
	w.kernel.dir += "/../v0"
	next := w.follower()
	steer(next)
	if err := next.Prepare(s); err != nil {
		t.Fatal(err)
	}
	if err := w.Yield(); err != nil {
		t.Fatal(err)
	}
	if err := next.TakeOver(); err != nil {
		t.Fatal(err)
	}
	if steps < len(hooks) {
		t.Errorf("%d steps", steps)
	}
}
