// SPDX-License-Identifier: Apache-2.0

package sockmap

import (
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/meshproxy/meshproxy/bpf"
)

// Clients of one workload that read from a service in both ways, as redis-benchmark
// does: each connection is spliced or not by what it does itself.

// ends says which ends of a connection are in the map.
func (w *splicing) ends(p *pair) (client, server bool) {
	w.t.Helper()
	cookie, err := unix.GetsockoptUint64(p.client, unix.SOL_SOCKET, unix.SO_COOKIE)
	if err != nil {
		w.t.Fatal(err)
	}
	in := func(side bpf.CaptureSide) bool {
		var value uint64
		err := w.kernel.maps[bpf.CaptureMapSpliced].Lookup(bpf.CaptureSpliceKey{Client: cookie, Side: side}, &value)
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			w.t.Fatal(err)
		}
		return err == nil
	}
	return in(bpf.CaptureSideSIDE_CLIENT), in(bpf.CaptureSideSIDE_SERVER)
}

// blockingPair is one whose client has connected without blocking, and blocks.
func (w *splicing) blockingPair(addr, at string) *pair {
	w.t.Helper()
	p := w.pair(addr, at)
	if err := unix.SetNonblock(p.client, false); err != nil {
		w.t.Fatal(err)
	}
	return p
}

var families = []struct{ addr, at string }{{virtual4, direct4}, {virtual6, direct6}, {mapped, direct4}}

// TestReadsBothWays: a client that blocks when it sends its first message is TCP
// before it reads, signals don't disturb it, and those that don't block are spliced
// all the while.
func TestReadsBothWays(t *testing.T) {
	w := newSplicing(t)
	for round := range 5 {
		for _, f := range families {
			before := w.pair(f.addr, f.at)
			p := w.blockingPair(f.addr, f.at)
			p.exchange(t, 100)
			if client, server := w.ends(p); client || server {
				t.Fatalf("round %d, %s: in the map: client %v, server %v", round, f.addr, client, server)
			}
			after := w.pair(f.addr, f.at)
			if text, err := interruptedRead(t, p.client, p.server); text != "at last" || err != nil {
				t.Errorf("read %q, %v", text, err)
			}
			for _, q := range []*pair{before, after} {
				q.exchange(t, 1000)
				w.isSpliced(t, q.client)
				if client, server := w.ends(q); !client || !server {
					t.Fatalf("round %d, %s: not in the map: client %v, server %v", round, f.addr, client, server)
				}
			}
			p.exchange(t, 100_000)
		}
	}
	if h := w.habits("front", "db"); h.Blocks == 0 || h.Waits != 0 {
		t.Errorf("habits %+v", h)
	}
	if s := w.stats(); len(s.Readers) != 0 {
		t.Errorf("readers %v: connections of theirs are spliced", s.Readers)
	}
}

// TestReadsBothWaysAtOnce: the same of many at a time, with answers that come while
// the question is still being sent.
func TestReadsBothWaysAtOnce(t *testing.T) {
	w := newSplicing(t)
	for range 3 {
		var talks sync.WaitGroup
		for i := range 24 {
			f := families[i%len(families)]
			p := w.pair(f.addr, f.at)
			if i%2 == 0 {
				if err := unix.SetNonblock(p.client, false); err != nil {
					t.Fatal(err)
				}
			}
			talks.Go(func() {
				if err := converse(p, i%2 == 0, 200); err != nil {
					t.Errorf("pair %d: %v", i, err)
				}
			})
		}
		talks.Wait()
	}
	if tr := w.since(); tr.Redirected == 0 {
		t.Errorf("traffic %+v: nothing was spliced", tr)
	}
	if h := w.habits("front", "db"); h.Waits != 0 {
		t.Errorf("habits %+v", h)
	}
}

// converse has a server answer a client's questions; the client may do one call for
// each answer, as those do that block.
func converse(p *pair, blocks bool, questions int) error {
	served := make(chan error, 1)
	go func() {
		for i := range questions {
			question := randomBytes(uint64(i), 1+i*31)
			if err := errors.Join(patiently.expect(p.server, question), patiently.write(p.server, question)); err != nil {
				served <- fmt.Errorf("server, question %d: %w", i, err)
				return
			}
		}
		served <- nil
	}()
	err := func() error {
		for i := range questions {
			question, answer := randomBytes(uint64(i), 1+i*31), make([]byte, 1+i*31)
			if err := patiently.write(p.client, question); err != nil {
				return err
			}
			if !blocks {
				if err := patiently.expect(p.client, question); err != nil {
					return err
				}
				continue
			}
			for {
				n, _, err := unix.Recvfrom(p.client, answer, unix.MSG_WAITALL)
				if errors.Is(err, unix.EINTR) {
					continue
				}
				if n != len(answer) || err != nil || string(answer) != string(question) {
					return fmt.Errorf("answer %d: %d of %d bytes, %w", i, n, len(answer), err)
				}
				break
			}
		}
		return nil
	}()
	if err != nil {
		_ = unix.Shutdown(p.client, unix.SHUT_RDWR) // lets the server go
	}
	return errors.Join(err, <-served)
}

// TestLeftIsCounted: what went over a connection that left the map.
func TestLeftIsCounted(t *testing.T) {
	w := newSplicing(t)
	if err := w.ReportDirect(true); err != nil {
		t.Fatal(err)
	}
	for _, first := range []string{"client", "server"} {
		before := w.traffic()
		p := w.blockingPair(virtual4, direct4)
		e := event[*DirectOpened](t, w.Capture)
		if !e.Spliced {
			t.Errorf("event %+v", e)
		}
		p.exchange(t, 100_000)
		if err := patiently.write(p.client, make([]byte, 5000)); err != nil {
			t.Fatal(err)
		}
		if err := patiently.expect(p.server, make([]byte, 5000)); err != nil {
			t.Fatal(err)
		}
		if list, err := w.DirectConnections(); err != nil || len(list) != 1 || list[0].Spliced {
			t.Errorf("connections %+v, %v", list, err)
		}
		close := []func(){p.closeClient, p.closeServer}
		fds := []int{p.client, p.server}
		if first == "server" {
			close[0], close[1] = close[1], close[0]
			fds[0], fds[1] = fds[1], fds[0]
		}
		if err := unix.Shutdown(fds[0], unix.SHUT_WR); err != nil {
			t.Fatal(err)
		}
		if n, err := patiently.read(fds[1], make([]byte, 8)); n != 0 || err != nil {
			t.Fatalf("read %d, %v", n, err)
		}
		close[1]()
		if n, err := patiently.read(fds[0], make([]byte, 8)); n != 0 || err != nil {
			t.Fatalf("read %d, %v", n, err)
		}
		close[0]()
		if c := event[*DirectClosed](t, w.Capture); c.Spliced || c.Sent != 105_000 || c.Received != 100_000 {
			t.Errorf("event %+v", c)
		}
		w.eventually("all of it is counted, once", func() bool {
			tr := w.traffic()
			return tr.Closed == before.Closed+1 && tr.Sent == before.Sent+105_000 && tr.Received == before.Received+100_000 &&
				tr.Redirected == before.Redirected
		})
	}
}

// TestWaits: whoever waits for data before it has sent anything can't be told in
// time from others; of such a client no further connections are spliced.
func TestWaits(t *testing.T) {
	for how, wait := range map[string]func(*splicing, *pair) error{
		"for a server that speaks first": func(w *splicing, p *pair) error {
			return errors.Join(patiently.write(p.server, []byte("hello")), patiently.expect(p.client, []byte("hello")),
				patiently.write(p.client, []byte("question")), patiently.expect(p.server, []byte("question")))
		},
		"in a thread of its own": func(w *splicing, p *pair) error {
			ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
			if err != nil {
				return err
			}
			defer unix.Close(ep)
			ev := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(p.client)}
			return errors.Join(unix.EpollCtl(ep, unix.EPOLL_CTL_ADD, p.client, &ev), // waits in its stead
				patiently.write(p.client, []byte("question")), patiently.expect(p.server, []byte("question")))
		},
	} {
		t.Run(how, func(t *testing.T) {
			w := newSplicing(t)
			for range 2 {
				p := w.blockingPair(virtual4, direct4)
				if err := wait(w, p); err != nil {
					t.Fatal(err)
				}
				w.eventually("that is known", func() bool { return w.habits("front", "db").Waits != 0 })
				p.exchange(t, 1000)
			}
			p := w.pair(virtual4, direct4)
			p.exchange(t, 100)
			w.notSpliced(p)
			w.wantReader(Reader{Workload: name("front"), Service: name("db"), Why: FallbackBlocking})
		})
	}
}
