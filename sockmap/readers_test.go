// SPDX-License-Identifier: Apache-2.0

package sockmap

import (
	"errors"
	"path/filepath"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/meshproxy/meshproxy/bpf"
)

// notSpliced wants a connection's ends to be TCP.
func (w *splicing) notSpliced(p *pair) {
	w.t.Helper()
	for _, fd := range []int{p.client, p.server} {
		if s, err := w.spliceOf(fd); !errors.Is(err, unix.ENOENT) {
			w.t.Errorf("state %+v, %v", s, err)
		}
	}
}

// forget is for what was learned while the world was made.
func (w *splicing) forget(workload string) {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.forgetReaders(map[uint32]bool{w.names.byName[newEntity(kindWorkload, name(workload))]: true}); err != nil {
		w.t.Fatal(err)
	}
}

// wantReader wants one to be on record, and nobody else.
func (w *splicing) wantReader(want Reader) {
	w.t.Helper()
	s, err := w.Stats()
	if err != nil {
		w.t.Fatal(err)
	}
	if len(s.Readers) != 1 || s.Readers[0] != want {
		w.t.Errorf("readers %v, want %v", s.Readers, want)
	}
}

// interruptedRead has a blocking read interrupted by signals whose handler
// restarts, and then data from the other end; it returns what the read gives.
func interruptedRead(t *testing.T, reader, writer int) (string, error) {
	t.Helper()
	// With a limit of time, a signal would end TCP's read too (signal(7)).
	if err := unix.SetsockoptTimeval(reader, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{}); err != nil {
		t.Fatal(err)
	}
	type result struct {
		text string
		err  error
	}
	reading, done := make(chan int), make(chan result)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		reading <- unix.Gettid()
		buf := make([]byte, 64)
		n, err := unix.Read(reader, buf)
		done <- result{string(buf[:max(n, 0)]), err}
	}()
	thread := <-reading
	for range 200 {
		// Go's runtime has a handler for it, with SA_RESTART.
		if err := unix.Tgkill(unix.Getpid(), thread, unix.SIGURG); err != nil {
			t.Fatal(err)
		}
		runtime.Gosched()
	}
	if err := patiently.write(writer, []byte("at last")); err != nil {
		t.Fatal(err)
	}
	r := <-done
	return r.text, r.err
}

// TestBlocksAfterConnect: a client that connects without blocking, for a limit of
// time, and blocks from then on, as hiredis and libmysql do, is never spliced,
// from its first connection on; signals don't disturb its reads.
func TestBlocksAfterConnect(t *testing.T) {
	for _, tc := range []struct {
		name  string
		world func(*testing.T) *splicing
	}{
		{"new listener", newUnproven},
		{"known listener", func(t *testing.T) *splicing {
			w := newSplicing(t)
			w.forget("front")
			return w
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := tc.world(t)
			for range 2 {
				p := w.pair(virtual4, direct4)
				if err := unix.SetNonblock(p.client, false); err != nil {
					t.Fatal(err)
				}
				p.exchange(t, 100)
				w.notSpliced(p)
				if text, err := interruptedRead(t, p.client, p.server); text != "at last" || err != nil {
					t.Errorf("read %q, %v", text, err)
				}
				p.exchange(t, 100)
				w.eventually("the client is known", func() bool {
					return w.habits("front", "db").Blocks != 0
				})
			}
			if tr := w.traffic(); tr.Spliced != w.before.Spliced {
				t.Errorf("traffic %+v", tr)
			}
			w.wantReader(Reader{Workload: name("front"), Service: name("db"), Why: FallbackBlocking})
		})
	}
}

// TestLearnsBlocking: of a client that turns blocking on a connection that is
// spliced, no further ones are.
func TestLearnsBlocking(t *testing.T) {
	w := newSplicing(t)
	p := w.pair(virtual4, direct4)
	p.exchange(t, 100)
	w.isSpliced(t, p.client)
	if err := unix.SetNonblock(p.client, false); err != nil {
		t.Fatal(err)
	}
	p.exchange(t, 100)
	q := w.pair(virtual4, direct4)
	q.exchange(t, 100)
	w.notSpliced(q)
	if tr := w.since(); tr.Fallbacks[FallbackBlocking] == 0 {
		t.Errorf("traffic %+v", tr)
	}
}

// TestKeepsReaders: what is known of a listener stays while the state is brought up
// to date.
func TestKeepsReaders(t *testing.T) {
	w := newSplicing(t)
	before := map[string]bpf.CapturePort{}
	for at := range w.listeners {
		before[at] = w.port(at)
	}
	w.apply(w.directState(Allow))
	for at, was := range before {
		if is := w.port(at); is != was {
			t.Errorf("%s: %+v, was %+v", at, is, was)
		}
	}
}

// TestForgetsReaders: what is known of a workload goes with its processes, by
// their cgroup.
func TestForgetsReaders(t *testing.T) {
	w := newSplicing(t)
	w.front.stop()
	removeCgroup(filepath.Join(w.dir, "front"))
	w.eventually("nothing is known", func() bool { return w.habits("front", "db") == (bpf.CaptureHabit{}) })
	w.front = w.process("front")
	p := w.pair(virtual4, direct4)
	p.exchange(t, 100)
	w.notSpliced(p)
}

// TestReadsBySplice: a workload that uses splice(2), on a connection that is TCP,
// is known by that, and none of its connections is spliced any more. Where the
// kernel lets nobody see that, the state of splicing says so.
func TestReadsBySplice(t *testing.T) {
	for _, which := range []string{"front", "back"} {
		t.Run(which, func(t *testing.T) {
			w := newSplicing(t)
			w.forget("front")
			fd, err := w.front.dialNonblock(virtual4)
			if err != nil {
				t.Fatal(err)
			}
			conn, _ := w.back.acceptNonblock(w.listeners[direct4])
			writer, from, reader, to := w.back, conn, w.front, fd
			if which == "back" {
				writer, from, reader, to = w.front, fd, w.back, conn
			}
			writer.must(call{Op: "write", FD: from, Data: "news"})
			if r := reader.must(call{Op: "splice", FD: to}); r.Data != "news" {
				t.Fatalf("spliced %q", r.Data)
			}
			s, err := w.Stats()
			if err != nil {
				t.Fatal(err)
			}
			if s.Splice.Blind != "" {
				t.Logf("the kernel does not tell: %s", s.Splice.Blind)
				if len(s.Readers) > 0 {
					t.Errorf("readers %v", s.Readers)
				}
				return
			}
			w.wantReader(Reader{Workload: name(which), Why: FallbackReader})
			for range 2 {
				p := w.pair(virtual4, direct4)
				p.exchange(t, 100)
				p.exchange(t, 100)
				w.notSpliced(p)
			}
		})
	}
}
