// SPDX-License-Identifier: Apache-2.0

package sockmap

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/meshproxy/meshproxy/bpf"
)

// firstPause lets the other side come to its turn.
const firstPause = 500 * time.Microsecond

// hopWorld is one in which hops are spliced: front dials 240.240.0.1:80 and is
// captured, the proxy dials back's server at 10.9.0.1:5432, or the same by IPv6.
type hopWorld struct {
	*world
	front, back *actor
	servers     map[string]int
}

func newHopWorld(t *testing.T) *hopWorld {
	w := &hopWorld{world: newWorld(t), servers: make(map[string]int)}
	w.start()
	if err := w.PauseHops(""); err != nil {
		t.Fatal(err)
	}
	w.testSplice()
	w.apply(State{
		Workloads:    []Workload{w.workload("front"), w.workload("back")},
		Destinations: []Destination{destination(virtual4, "db"), destination(virtual6, "db")},
	})
	w.front, w.back = w.process("front"), w.process("back")
	for _, at := range []string{direct4, direct6} {
		w.servers[at] = w.back.listen(at)
	}
	if s, err := w.Stats(); err != nil || !s.Splice.Hops {
		t.Fatalf("hops are not spliced: %s, %v", s.Splice.HopsReason, err)
	}
	for _, kind := range hopKinds { // until clients and listeners are known
		for deadline := 0; ; deadline++ {
			h := w.hop(kind)
			h.exchange(100)
			known := w.isSpliced(h.key)
			h.close()
			if known {
				break
			}
			if deadline == 1000 {
				t.Fatal("the application never became known for sockets that do not block")
			}
		}
	}
	return w
}

// hopKind is who dials whom.
type hopKind struct {
	name, addr string
	dialled    bool // by the proxy
}

var hopKinds = []hopKind{
	{"captured IPv4", virtual4, false},
	{"captured IPv6", virtual6, false},
	{"dialled IPv4", direct4, true},
	{"dialled IPv6", direct6, true},
}

// hopPair is both ends of a hop, in this process.
type hopPair struct {
	*hopWorld
	app, proxy int
	key        Hop
	wanted     uint32
}

func (w *hopWorld) hop(k hopKind) *hopPair {
	w.t.Helper()
	take := func(a *actor, fd int) int {
		mine, err := unix.PidfdGetfd(a.pidfd, fd, 0)
		if err != nil {
			w.t.Fatal(err)
		}
		a.close(fd)
		return mine
	}
	h := &hopPair{hopWorld: w, wanted: w.HopsWanted()}
	app, proxy, key := w.connect(k, unix.SOCK_NONBLOCK)
	h.app, h.proxy, h.key = take(w.application(k), app), take(w.proxy, proxy), key
	w.t.Cleanup(h.close)
	return h
}

// application is the actor that plays it.
func (w *hopWorld) application(k hopKind) *actor {
	if k.dialled {
		return w.back
	}
	return w.front
}

// connect makes a connection; flags are those of the application's socket. The
// sockets are the actors'.
func (w *hopWorld) connect(k hopKind, flags int) (app, proxy int, key Hop) {
	w.t.Helper()
	if k.dialled {
		proxy = w.proxy.socket(domainOf(k.addr), unix.SOCK_STREAM|unix.SOCK_NONBLOCK)
		w.proxy.with(proxy, func(fd int) (err error) {
			if err := w.OwnSocketWithSource(fd, netip.MustParseAddrPort(k.addr)); err != nil {
				return err
			}
			key, err = HopOf(fd)
			return err
		})
		if err := w.proxy.connect(proxy, k.addr); err != nil {
			w.t.Fatal(err)
		}
		app = w.back.must(call{Op: "accept", FD: w.servers[k.addr], Type: flags}).FD
		return app, proxy, key
	}
	app = w.front.socket(domainOf(k.addr), unix.SOCK_STREAM|flags)
	if err := w.front.connect(app, k.addr); err != nil {
		w.t.Fatal(err)
	}
	proxy, client := w.proxy.acceptNonblock(w.outbound[domainOf(k.addr)])
	flow, err := w.Flow(w.cookie, client, w.proxy.local(proxy))
	if err != nil {
		w.t.Fatal(err)
	}
	return app, proxy, Hop{Client: flow.ClientCookie}
}

func (h *hopPair) close() { closeOnce(&h.app); closeOnce(&h.proxy) }

// isSpliced says whether both ends are in the map.
func (w *hopWorld) isSpliced(k Hop) bool {
	application, proxy := k.keys()
	return w.inMap(application) && w.inMap(proxy)
}

func (w *hopWorld) inMap(key bpf.CaptureSpliceKey) bool {
	w.t.Helper()
	for _, sockets := range []string{bpf.CaptureMapHopping, bpf.CaptureMapHoppingApps} {
		var cookie uint64
		err := w.kernel.maps[sockets].Lookup(&key, &cookie)
		if err == nil {
			return true
		}
		if !errors.Is(err, ebpf.ErrKeyNotExist) {
			w.t.Fatal(err)
		}
	}
	return false
}

// redirected is how many bytes went directly, from applications and the proxy.
func (w *hopWorld) redirected() (applications, proxy uint64) {
	w.t.Helper()
	s, err := w.Stats()
	if err != nil {
		w.t.Fatal(err)
	}
	return s.FromApplications.Redirected, s.FromProxy.Redirected
}

// send writes as the proxy does: it leaves the hop when it is told to.
func (h *hopPair) send(p []byte) error {
	for len(p) > 0 {
		n, err := unix.Write(h.proxy, p)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN):
			if err := patiently.await(h.proxy, unix.POLLOUT); err != nil {
				return err
			}
			continue
		case err != nil:
			return err
		}
		p = p[n:]
		if err := h.obey(); err != nil {
			return err
		}
	}
	return nil
}

func (h *hopPair) obey() error {
	w := h.HopsWanted()
	if w == h.wanted {
		return nil
	}
	h.wanted = w
	if leave, err := h.HopWanted(h.key); err != nil || !leave {
		return err
	}
	return h.leave()
}

// leave waits until the proxy may write again.
func (h *hopPair) leave() error {
	for range 100_000 {
		waiting, _, err := h.LeaveHop(h.key)
		if err != nil || !waiting {
			return err
		}
		elapse(firstPause)
	}
	return errors.New("the application never read what it was given")
}

// exchange sends n random bytes each way.
func (h *hopPair) exchange(n int) {
	h.t.Helper()
	message := randomBytes(uint64(n), n)
	if err := patiently.write(h.app, message); err != nil {
		h.t.Fatal(err)
	}
	if err := patiently.expect(h.proxy, message); err != nil {
		h.t.Fatal(err)
	}
	if err := h.send(message); err != nil {
		h.t.Fatal(err)
	}
	if err := patiently.expect(h.app, message); err != nil {
		h.t.Fatal(err)
	}
}

// eachHop runs a test for every kind of hop.
func eachHop(t *testing.T, test func(t *testing.T, h *hopPair)) {
	t.Helper()
	w := newHopWorld(t)
	for _, kind := range hopKinds {
		t.Run(kind.name, func(t *testing.T) {
			h := w.hop(kind)
			h.exchange(10) // the first may go by TCP
			if !w.isSpliced(h.key) {
				t.Fatal("not spliced")
			}
			test(t, h)
			h.close()
		})
	}
}
