// SPDX-License-Identifier: Apache-2.0

package sockmap

import (
	"errors"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// follower opens a second Capture on the state of w, as the process does that
// follows.
func (w *world) follower() *Capture {
	w.t.Helper()
	lock, err := unix.FcntlInt(uintptr(w.Lock()), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		w.t.Fatal(err)
	}
	opts := w.opts
	opts.Lock = os.NewFile(uintptr(lock), "lock")
	next, err := Open(opts)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { next.Close() })
	if _, err := next.AttachNetNS(w.ns.FD()); err != nil {
		w.t.Fatal(err)
	}
	return next
}

// captures dials as web and wants the flow of the connection to be known to c.
func (w *world) captures(c *Capture, web *actor) {
	w.t.Helper()
	if _, err := web.dial("240.240.0.1:80"); err != nil {
		w.t.Fatal(err)
	}
	w.knows(c)
}

func (w *world) knows(c *Capture) {
	w.t.Helper()
	fd, client := w.proxy.accept(w.outbound[unix.AF_INET])
	defer w.proxy.close(fd)
	f, err := c.Flow(w.cookie, client, w.proxy.local(fd))
	if err != nil || f.WorkloadName != name("web") || f.Service != name("db") {
		w.t.Errorf("flow %+v, %v", f, err)
	}
}

func (w *world) standard() State {
	return State{
		Workloads:    []Workload{w.workload("web"), w.workload("db")},
		Destinations: []Destination{destination("240.240.0.1:80", "db")},
	}
}

func TestTakeOver(t *testing.T) {
	for _, tc := range []struct {
		name  string
		apart bool
	}{{"same layout", false}, {"other layout", true}} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t)
			w.start()
			s := w.standard()
			w.apply(s)
			web := w.process("web")
			db, listener := w.serving("db", "10.9.0.1:5432")
			links, _ := w.pinned()
			if tc.apart {
				w.age()
				w.kernel.dir += "/../v0"
			}
			next := w.follower()
			if next.Apart() != tc.apart {
				t.Errorf("apart %v", next.Apart())
			}
			if err := next.Prepare(s); err != nil {
				t.Fatal(err)
			}
			w.captures(w.Capture, web) // nothing has changed so far
			if _, err := web.dial("240.240.0.1:80"); err != nil {
				t.Fatal(err)
			}
			if err := w.Yield(); err != nil {
				t.Fatal(err)
			}
			if err := w.Apply(s); !errors.Is(err, ErrYielded) {
				t.Errorf("apply after yield: %v", err)
			}
			if err := next.TakeOver(); err != nil {
				t.Fatal(err)
			}
			if err := next.Apply(s); err != nil {
				t.Fatal(err)
			}
			if err := next.Commit(); err != nil {
				t.Fatal(err)
			}
			w.knows(w.Capture) // dialled before, accepted after
			w.captures(next, web)

			again, _ := w.pinned()
			for _, h := range hooks {
				if (h.decides || !tc.apart && h.tracepoint == "") && again[h.name] != links[h.name] {
					t.Errorf("%s was attached anew", h.name)
				}
			}
			// The process before still connects to workloads of this node.
			if tc.apart {
				w.MarkBy(func(fd int, client netip.AddrPort) error { return next.OwnSocketWithSource(fd, client) })
			}
			if _, err := w.dialOwn("10.9.0.1:5432", netip.MustParseAddrPort("192.0.2.7:4711")); err != nil {
				t.Fatal(err)
			}
			if _, client := db.accept(listener); client.String() != "192.0.2.7:4711" {
				t.Errorf("the server sees %s", client)
			}
			w.close()
			if _, err := Open(w.opts); !errors.Is(err, ErrBusy) {
				t.Errorf("open while the follower runs: %v", err)
			}
			w.captures(next, web)
			if err := next.Close(); err != nil {
				t.Fatal(err)
			}
			w.open() // the lock is free
		})
	}
}

// TestTakeBack: the process that follows has taken over and fails then.
func TestTakeBack(t *testing.T) {
	w := newWorld(t)
	w.start()
	s := w.standard()
	w.apply(s)
	web := w.process("web")
	_, before := w.pinned()
	w.opts.MaxFlows = 4321 // so that programs and maps differ
	next := w.follower()
	w.opts.MaxFlows = 0
	if err := w.Yield(); err != nil {
		t.Fatal(err)
	}
	if err := next.TakeOver(); err != nil {
		t.Fatal(err)
	}
	if _, after := w.pinned(); after["connect4"] == before["connect4"] {
		t.Error("nothing was taken over")
	}
	if err := next.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(w.opts); !errors.Is(err, ErrBusy) {
		t.Errorf("open while the first process runs: %v", err)
	}
	if err := w.TakeBack(); err != nil {
		t.Fatal(err)
	}
	w.captures(w.Capture, web)
	s.Workloads = append(s.Workloads, w.workload("late"))
	w.apply(s)
	w.close()
	w.open()
	w.captures(w.Capture, web)
}

// TestAwait: connections are led to the proxy for a while without heartbeats.
func TestAwait(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.apply(w.standard())
	web := w.process("web")
	if err := w.Retire(); err != nil {
		t.Fatal(err)
	}
	if _, err := web.dial("240.240.0.1:80"); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("dial without a proxy: %v", err)
	}
	if err := w.Await(time.Hour); err != nil {
		t.Fatal(err)
	}
	w.captures(w.Capture, web)
	if err := w.Await(0); err != nil {
		t.Fatal(err)
	}
	if _, err := web.dial("240.240.0.1:80"); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("dial when the time is up: %v", err)
	}
}

// TestInheritElsewhere: a lock is good for the state that it was made for.
func TestInheritElsewhere(t *testing.T) {
	w := newWorld(t)
	w.start()
	other := makeWorld(t)
	other.start()
	lock, err := unix.FcntlInt(uintptr(other.Lock()), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	opts := w.opts
	opts.Lock = os.NewFile(uintptr(lock), "lock")
	defer opts.Lock.Close()
	if c, err := Open(opts); !errors.Is(err, ErrElsewhere) {
		t.Errorf("opened %v, %v", c, err)
	}
}
