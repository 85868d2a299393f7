// SPDX-License-Identifier: Apache-2.0

package sockmap

import (
	"errors"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/meshproxy/meshproxy/bpf"
)

// ended wants the end of a stream, in one of the ways that TCP has for it.
func ended(t *testing.T, fd int) {
	t.Helper()
	if n, err := patiently.read(fd, make([]byte, 1)); n != 0 || err != nil && !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("read %d, %v, want the end", n, err)
	}
}

// TestHopKilled: of a process that is killed, application or proxy, everything
// arrives that it had written, and then the end; what it had not read is no
// matter.
func TestHopKilled(t *testing.T) {
	for _, kind := range hopKinds {
		for _, who := range []string{"application", "proxy"} {
			t.Run(kind.name+"/"+who, func(t *testing.T) {
				w := newHopWorld(t)
				app, proxy, key := w.connect(kind, unix.SOCK_NONBLOCK)
				if !w.isSpliced(key) {
					t.Fatal("not spliced")
				}
				dies, dead, lives, alive := w.application(kind), app, w.proxy, proxy
				if who == "proxy" {
					dies, dead, lives, alive = lives, alive, dies, dead
				}
				lives.must(call{Op: "write", FD: alive, Data: "never read"})
				dies.must(call{Op: "write", FD: dead, Data: "last words"})
				dies.kill()
				lives.with(alive, func(fd int) error {
					err := patiently.expect(fd, []byte("last words"))
					ended(t, fd)
					return err
				})
			})
		}
	}
}

// TestHopCloseUnread: who closes without having read all is done with, as far as
// the other side can tell: it reads what there is, then the end, and is refused
// when it writes.
func TestHopCloseUnread(t *testing.T) {
	for _, who := range []string{"application", "proxy"} {
		t.Run(who, func(t *testing.T) {
			eachHop(t, func(t *testing.T, h *hopPair) {
				closes, stays := &h.app, h.proxy
				if who == "proxy" {
					closes, stays = &h.proxy, h.app
				}
				message := randomBytes(5, 5000)
				if err := errors.Join(patiently.write(stays, message), patiently.write(*closes, message)); err != nil {
					t.Fatal(err)
				}
				closeOnce(closes)
				if err := patiently.expect(stays, message); err != nil {
					t.Fatal(err)
				}
				ended(t, stays)
				for deadline := time.Now().Add(time.Minute); ; elapse(firstPause) {
					if _, err := unix.Write(stays, message); errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) {
						return
					}
					if time.Now().After(deadline) {
						t.Fatal("writing to nobody goes on")
					}
				}
			})
		})
	}
}

// TestHopPassed: a socket whose process passes it to another one, with something
// unread, goes on there.
func TestHopPassed(t *testing.T) {
	w := newHopWorld(t)
	for _, kind := range hopKinds {
		t.Run(kind.name, func(t *testing.T) {
			app, proxy, key := w.connect(kind, unix.SOCK_NONBLOCK)
			w.application(kind).must(call{Op: "write", FD: app, Data: "question"})
			if r := w.proxy.must(call{Op: "recvfrom", FD: proxy}); r.Data != "question" {
				t.Fatalf("the proxy reads %q", r.Data)
			}
			w.proxy.must(call{Op: "write", FD: proxy, Data: "answer"})
			if !w.isSpliced(key) {
				t.Fatal("not spliced")
			}
			h := &hopPair{hopWorld: w, key: key, wanted: w.HopsWanted()}
			var err error
			if h.app, err = unix.PidfdGetfd(w.application(kind).pidfd, app, 0); err != nil {
				t.Fatal(err)
			}
			w.application(kind).close(app)
			if h.proxy, err = unix.PidfdGetfd(w.proxy.pidfd, proxy, 0); err != nil {
				t.Fatal(err)
			}
			w.proxy.close(proxy)
			defer h.close()
			if err := patiently.expect(h.app, []byte("answer")); err != nil {
				t.Fatal(err)
			}
			h.exchange(1000)
		})
	}
}

// TestHopMPTCP: a client that asks for it is TCP to the proxy, which does not
// offer it, and a server that offers it to the proxy, which doesn't ask.
func TestHopMPTCP(t *testing.T) {
	w := newHopWorld(t)
	for at, listener := range w.servers {
		w.back.close(listener)
		w.servers[at] = w.back.mptcp(domainOf(at))
		if err := w.back.bind(w.servers[at], at); err != nil {
			t.Fatal(err)
		}
		w.back.must(call{Op: "listen", FD: w.servers[at]})
	}
	for _, kind := range hopKinds {
		t.Run(kind.name, func(t *testing.T) {
			for range 3 {
				app, proxy, _ := w.connect(kind, unix.SOCK_NONBLOCK)
				talk(t, w.application(kind), app, w.proxy, proxy)
				w.application(kind).close(app)
				w.proxy.close(proxy)
			}
		})
		if kind.dialled {
			continue
		}
		t.Run(kind.name+"/client", func(t *testing.T) {
			app := w.front.mptcp(domainOf(kind.addr))
			if err := w.front.connect(app, kind.addr); err != nil {
				t.Fatal(err)
			}
			proxy, client := w.proxy.acceptNonblock(w.outbound[domainOf(kind.addr)])
			if _, err := w.Flow(w.cookie, client, w.proxy.local(proxy)); err != nil {
				t.Fatal(err)
			}
			talk(t, w.front, app, w.proxy, proxy)
			w.front.close(app)
			w.proxy.close(proxy)
		})
	}
}

func talk(t *testing.T, a *actor, afd int, b *actor, bfd int) {
	t.Helper()
	for range 3 {
		a.must(call{Op: "write", FD: afd, Data: "question"})
		if r := b.must(call{Op: "recvfrom", FD: bfd}); r.Data != "question" {
			t.Fatalf("read %q", r.Data)
		}
		b.must(call{Op: "write", FD: bfd, Data: "answer"})
		if r := a.must(call{Op: "recvfrom", FD: afd}); r.Data != "answer" {
			t.Fatalf("read %q", r.Data)
		}
	}
}

// TestHopSpliceCall: splice(2) from a spliced socket finds nothing, which is why
// there is splice: off; nothing is lost of what it does not find.
func TestHopSpliceCall(t *testing.T) {
	eachHop(t, func(t *testing.T, h *hopPair) {
		var pipe [2]int
		if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
			t.Fatal(err)
		}
		defer unix.Close(pipe[0])
		defer unix.Close(pipe[1])
		message := randomBytes(9, 3000)
		if err := h.send(message); err != nil {
			t.Fatal(err)
		}
		n, err := unix.Splice(h.app, nil, pipe[1], nil, len(message), unix.SPLICE_F_NONBLOCK)
		if !errors.Is(err, unix.EAGAIN) {
			t.Errorf("splice %d, %v; the documents say that it finds nothing", n, err)
		}
		if err := patiently.expect(h.app, message); err != nil {
			t.Fatal(err)
		}
	})
}

// TestHopYield: the process that has handed over looks after its hops to their
// end, while those of the other one begin.
func TestHopYield(t *testing.T) {
	for _, kind := range hopKinds {
		t.Run(kind.name, func(t *testing.T) {
			w := newHopWorld(t)
			h := w.hop(kind)
			h.exchange(100)
			next := w.follower()
			s := State{
				Workloads:    []Workload{w.workload("front"), w.workload("back")},
				Destinations: []Destination{destination(virtual4, "db"), destination(virtual6, "db")},
			}
			if err := next.Prepare(s); err != nil {
				t.Fatal(err)
			}
			if err := w.Yield(); err != nil {
				t.Fatal(err)
			}
			h.exchange(100)
			if err := next.TakeOver(); err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(next.Apply(s), next.Commit(), next.PauseHops("")); err != nil {
				t.Fatal(err)
			}
			old := w.Capture
			w.Capture = next
			w.testSplice()
			w.Capture = old
			h.exchange(1000)
			if !old.HasHops() || !next.HasHops() {
				t.Error("somebody thinks that there are no hops")
			}
			// An application that does not read: the old process hears of it.
			sent := randomBytes(3, 3<<20)
			done := make(chan error, 1)
			go func() { done <- h.send(sent) }()
			if err := patiently.expect(h.app, sent); err != nil {
				t.Fatal(err)
			}
			if err := <-done; err != nil {
				t.Fatal(err)
			}
			if err := h.leave(); err != nil {
				t.Fatal(err)
			}
			h.exchange(1000)

			w.Capture = next
			g := w.hop(kind)
			g.exchange(1000)
			if !w.isSpliced(g.key) {
				t.Error("a connection of the new process is not spliced")
			}
			g.close()
		})
	}
}

// TestHopThroughRestart: the state outlives the process, and so does what an
// application has not read.
func TestHopThroughRestart(t *testing.T) {
	eachHop(t, func(t *testing.T, h *hopPair) {
		message := randomBytes(4, 4000)
		if err := h.send(message); err != nil {
			t.Fatal(err)
		}
		if err := h.Capture.Close(); err != nil {
			t.Fatal(err)
		}
		h.open()
		if err := patiently.expect(h.app, message); err != nil {
			t.Fatal(err)
		}
		if err := h.PauseHops(""); err != nil {
			t.Fatal(err)
		}
		h.testSplice()
		h.exchange(1000)
	})
}

// TestHopFull: without a place in the map, connections are TCP.
func TestHopFull(t *testing.T) {
	w := newHopWorld(t)
	hops := w.kernel.maps[bpf.CaptureMapHops]
	for i := range uint64(hops.MaxEntries()) {
		if err := hops.Put(1<<60+i, bpf.CaptureHop{}); err != nil {
			break
		}
	}
	for _, kind := range hopKinds {
		t.Run(kind.name, func(t *testing.T) {
			h := w.hop(kind)
			h.exchange(1000)
			if w.isSpliced(h.key) {
				t.Error("spliced without a place")
			}
			h.close()
		})
	}
}

// TestHopCounts: an application is told how much there is to read, whichever way
// it came.
func TestHopCounts(t *testing.T) {
	eachHop(t, func(t *testing.T, h *hopPair) {
		for _, n := range []int{1000, 100_000} { // redirected, and by TCP
			message := randomBytes(uint64(n), n)
			if err := patiently.write(h.proxy, message); err != nil {
				t.Fatal(err)
			}
			if err := patiently.await(h.app, unix.POLLIN); err != nil {
				t.Fatal(err)
			}
			told, err := unix.IoctlGetInt(h.app, unix.TIOCINQ)
			if err != nil || told == 0 {
				t.Errorf("of %d bytes %d are told, %v", n, told, err)
			}
			if err := patiently.expect(h.app, message); err != nil {
				t.Fatal(err)
			}
		}
	})
}
