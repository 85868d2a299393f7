// SPDX-License-Identifier: Apache-2.0

package sockmap

import (
	"errors"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/meshproxy/meshproxy/bpf"
)

// Sockets whose owner waits inside of patiently.read(2) stay TCP.

func TestBlockingClient(t *testing.T) {
	w := newSplicing(t)
	fd, err := w.front.dial(virtual4)
	if err != nil {
		t.Fatal(err)
	}
	conn, _ := w.back.acceptNonblock(w.listeners[direct4])
	notSpliced := func(fd int) error {
		if s, err := w.spliceOf(fd); !errors.Is(err, unix.ENOENT) {
			t.Errorf("state %+v, %v", s, err)
		}
		return nil
	}
	w.front.with(fd, notSpliced)
	w.back.with(conn, notSpliced)
	if tr := w.since(); tr.Opened != 1 || tr.Spliced != 0 || tr.Fallbacks[FallbackBlocking] != 1 {
		t.Errorf("traffic %+v", tr)
	}
}

// TestBlockingServer: a listener whose sockets block is not spliced, even
// after one that did not.
func TestBlockingServer(t *testing.T) {
	w := newSplicing(t)
	fd, err := w.front.dialNonblock(virtual4)
	if err != nil {
		t.Fatal(err)
	}
	conn, _ := w.back.accept(w.listeners[direct4])
	for range 3 {
		w.front.must(call{Op: "write", FD: fd, Data: "question"})
		if r := w.back.must(call{Op: "recvfrom", FD: conn}); r.Data != "question" {
			t.Fatalf("read %q", r.Data)
		}
		w.back.must(call{Op: "write", FD: conn, Data: "answer"})
		if r := w.front.must(call{Op: "recvfrom", FD: fd}); r.Data != "answer" {
			t.Fatalf("read %q", r.Data)
		}
	}
	if tr := w.since(); tr.Redirected != 0 {
		t.Errorf("traffic %+v", tr)
	}
	w.eventually("the listener is known", func() bool {
		return w.port(direct4).Flags&bpf.CapturePortFlagsPORT_BLOCKING != 0
	})
	p := w.pair(virtual4, direct4)
	p.exchange(t, 1000)
	if s, err := w.spliceOf(p.client); !errors.Is(err, unix.ENOENT) {
		t.Errorf("state %+v, %v", s, err)
	}
}

// TestFirstConnection: a listener and a client that are known only by their first
// connection are known too little to splice that.
func TestFirstConnection(t *testing.T) {
	w := newUnproven(t)
	p := w.pair(virtual4, direct4)
	p.exchange(t, 1000)
	if s, err := w.spliceOf(p.client); !errors.Is(err, unix.ENOENT) {
		t.Errorf("state %+v, %v", s, err)
	}
	p.exchange(t, 1000) // the client has read before it writes
	w.eventually("the listener is known", func() bool {
		return w.port(direct4).Flags&bpf.CapturePortFlagsPORT_NONBLOCKING != 0
	})
	w.eventually("the client is known", func() bool {
		return w.habits("front", "db").Reads != 0
	})
	q := w.pair(virtual4, direct4)
	q.exchange(t, 1000)
	w.isSpliced(t, q.client)
	// Another listener is another server.
	w.back.close(w.listeners[direct4])
	w.listeners[direct4] = w.back.listen(direct4)
	r := w.pair(virtual4, direct4)
	if s, err := w.spliceOf(r.client); !errors.Is(err, unix.ENOENT) {
		t.Errorf("state %+v, %v", s, err)
	}
}

// TestTurnsBlocking: what turns blocking later gets its data by TCP from then
// on, after what was redirected.
func TestTurnsBlocking(t *testing.T) {
	w := newSplicing(t)
	p := w.pair(virtual4, direct4)
	p.exchange(t, 1000)
	before, after := randomBytes(1, 3000), randomBytes(2, 3000)
	if err := patiently.write(p.client, before); err != nil {
		t.Fatal(err)
	}
	if err := unix.SetNonblock(p.server, false); err != nil {
		t.Fatal(err)
	}
	if err := patiently.write(p.client, after); err != nil {
		t.Fatal(err)
	}
	if s, err := w.spliceOf(p.client); err != nil || s.Fallback != bpf.CaptureFallbackFALLBACK_BLOCKING {
		t.Errorf("state %+v, %v", s, err)
	}
	if err := patiently.expect(p.server, append(before, after...)); err != nil {
		t.Error(err)
	}
}

// TestSignals: a blocking read that a signal interrupts goes on where the
// signal's handler lets it, as TCP's does and a spliced socket's would not.
func TestSignals(t *testing.T) {
	w := newSplicing(t)
	fd, err := w.front.dial(virtual4)
	if err != nil {
		t.Fatal(err)
	}
	conn, _ := w.back.acceptNonblock(w.listeners[direct4])
	mine := make(chan int)
	type result struct {
		n   int
		err error
	}
	done := make(chan result)
	w.front.with(fd, func(fd int) error {
		// With a limit of time, a signal would end TCP's read too (signal(7)).
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{}); err != nil {
			return err
		}
		go func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			mine <- unix.Gettid()
			n, err := unix.Read(fd, make([]byte, 16))
			done <- result{n, err}
		}()
		thread := <-mine
		for range 1000 {
			// Go's runtime has a handler for it, with SA_RESTART.
			if err := unix.Tgkill(unix.Getpid(), thread, unix.SIGURG); err != nil {
				return err
			}
			runtime.Gosched()
		}
		w.back.must(call{Op: "write", FD: conn, Data: "at last"})
		if r := <-done; r.n != 7 || r.err != nil {
			t.Errorf("read %d, %v", r.n, r.err)
		}
		return nil
	})
}

// TestBackAndForth: from redirecting to TCP and back, many times, in order.
func TestBackAndForth(t *testing.T) {
	w := newSplicing(t)
	p := w.pair(virtual4, direct4)
	for range 20 {
		sent, err := fill(p.client, 128<<20)
		if err != nil {
			t.Fatal(err)
		}
		// The receiver's buffer takes what is redirected, and TCP's window was
		// promised besides.
		ends := testPair{client: p.client, server: p.server}
		buffers, err := ends.buffers()
		if err != nil {
			t.Fatal(err)
		}
		if len(sent) > 2*buffers+slack {
			t.Fatalf("%d bytes were accepted by buffers of %d", len(sent), buffers)
		}
		if s, err := w.spliceOf(p.client); err != nil || s.Fallback == 0 {
			t.Fatalf("state %+v, %v", s, err)
		}
		if err := patiently.expect(p.server, sent); err != nil {
			t.Fatal(err)
		}
		// After a send that found no room the kernel does not ask the program
		// again, once.
		p.exchange(t, 100)
		p.exchange(t, 100)
		w.isSpliced(t, p.client)
	}
}

// TestApplyKeepsWhatIsSeen: a listener that is known to accept sockets that don't
// block stays known when the state is applied again.
func TestApplyKeepsWhatIsSeen(t *testing.T) {
	w := newSplicing(t)
	if w.port(direct4).Flags&bpf.CapturePortFlagsPORT_NONBLOCKING == 0 {
		t.Fatal("the listener is not known")
	}
	w.apply(w.directState(Allow))
	p := w.pair(virtual4, direct4)
	p.exchange(t, 1000)
	w.isSpliced(t, p.client)
}
