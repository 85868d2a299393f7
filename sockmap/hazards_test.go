// SPDX-License-Identifier: Apache-2.0

package sockmap

import (
	"errors"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/meshproxy/meshproxy/bpf"
)

// TestHazards is what went wrong elsewhere, on both families.
func TestHazards(t *testing.T) {
	w := newSplicing(t)
	for _, family := range []struct{ name, addr, at string }{{"IPv4", virtual4, direct4}, {"IPv6", virtual6, direct6}, {"mapped", mapped, direct4}} {
		for _, h := range hazards {
			t.Run(family.name+"/"+h.name, func(t *testing.T) {
				p := w.pair(family.addr, family.at)
				defer p.closeClient()
				defer p.closeServer()
				w.isSpliced(t, p.client)
				w.isSpliced(t, p.server)
				h.run(t, w, p)
			})
		}
	}
}

var hazards = []struct {
	name string
	run  func(*testing.T, *splicing, *pair)
}{
	{"receiver does not read", func(t *testing.T, w *splicing, p *pair) {
		// What TCP takes by itself, and the buffer once more.
		bound := w.bound(t)
		for _, way := range [][2]int{{p.client, p.server}, {p.server, p.client}} {
			sent, err := fill(way[0], bound)
			if err != nil {
				t.Fatal(err)
			}
			if s, err := w.spliceOf(way[0]); err != nil || s.Fallback != bpf.CaptureFallbackFALLBACK_MEMORY || s.Messages == 0 {
				t.Errorf("state %+v, %v", s, err)
			}
			t.Logf("%d bytes accepted of %d", len(sent), bound)
			if err := patiently.expect(way[1], sent); err != nil {
				t.Error(err)
			}
		}
		p.exchange(t, 5000)
	}},
	{"receiver stops reading", func(t *testing.T, _ *splicing, p *pair) {
		for _, way := range [][2]int{{p.client, p.server}, {p.server, p.client}} {
			if err := stream(way[0], way[1], 8, 4<<20, nil); err != nil {
				t.Fatal(err)
			}
			sent, err := fill(way[0], 64<<20)
			if err != nil {
				t.Fatal(err)
			}
			// What both buffers hold, which TCP makes grow, and the room of
			// ROOM_MOST in splice.c with one message more than fits.
			bound := 1<<20 + 64<<10
			for fd, option := range map[int]int{way[0]: unix.SO_SNDBUF, way[1]: unix.SO_RCVBUF} {
				size, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, option)
				if err != nil {
					t.Fatal(err)
				}
				bound += size
			}
			if t.Logf("%d bytes accepted of %d", len(sent), bound); len(sent) > bound {
				t.Errorf("%d bytes accepted, at most %d expected", len(sent), bound)
			}
			if err := patiently.expect(way[1], sent); err != nil {
				t.Error(err)
			}
		}
	}},
	{"buffer of the receiver's choice", func(t *testing.T, _ *splicing, p *pair) {
		// The kernel does not make it grow: what TCP dropped would come late.
		if err := unix.SetsockoptInt(p.server, unix.SOL_SOCKET, unix.SO_RCVBUF, 40_000); err != nil {
			t.Fatal(err)
		}
		if err := stream(p.client, p.server, 10, 4<<20, nil); err != nil {
			t.Error(err)
		}
		sent, err := fill(p.client, 64<<20)
		if err != nil {
			t.Fatal(err)
		}
		if err := patiently.expect(p.server, sent); err != nil {
			t.Error(err)
		}
	}},
	{"order", func(t *testing.T, _ *splicing, p *pair) {
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := stream(p.client, p.server, 1, 8<<20, nil); err != nil {
				t.Error(err)
			}
		})
		wg.Go(func() {
			if err := stream(p.server, p.client, 2, 8<<20, nil); err != nil {
				t.Error(err)
			}
		})
		wg.Wait()
	}},
	{"half-close by the client", func(t *testing.T, _ *splicing, p *pair) { halfClosed(t, p.client, p.server) }},
	{"half-close by the server", func(t *testing.T, _ *splicing, p *pair) { halfClosed(t, p.server, p.client) }},
	{"write after shutdown", func(t *testing.T, _ *splicing, p *pair) {
		p.exchange(t, 100)
		if err := unix.Shutdown(p.client, unix.SHUT_WR); err != nil {
			t.Fatal(err)
		}
		if err := unix.Sendto(p.client, []byte("late"), unix.MSG_NOSIGNAL, nil); !errors.Is(err, unix.EPIPE) {
			t.Errorf("write: %v", err)
		}
		if n, err := patiently.read(p.server, make([]byte, 8)); n != 0 || err != nil {
			t.Errorf("read %d, %v", n, err)
		}
	}},
	{"close with data under way", func(t *testing.T, _ *splicing, p *pair) {
		message := randomBytes(3, 100_000)
		if err := patiently.write(p.client, message); err != nil {
			t.Fatal(err)
		}
		p.closeClient()
		if err := patiently.expect(p.server, message); err != nil {
			t.Error(err)
		}
		if n, err := patiently.read(p.server, make([]byte, 8)); n != 0 || err != nil {
			t.Errorf("read %d, %v at the end", n, err)
		}
	}},
	{"answer and close after half-close", func(t *testing.T, _ *splicing, p *pair) {
		message := randomBytes(4, 100_000)
		if err := unix.Shutdown(p.client, unix.SHUT_WR); err != nil {
			t.Fatal(err)
		}
		if err := patiently.write(p.server, message); err != nil {
			t.Fatal(err)
		}
		p.closeServer()
		if err := patiently.expect(p.client, message); err != nil {
			t.Error(err)
		}
	}},
	{"close with unread data", func(t *testing.T, w *splicing, p *pair) {
		// Plain TCP resets. The peer must notice in either case: a spliced
		// one sees the end of the stream and is refused what it sends then.
		if _, err := unix.Write(p.client, []byte("nobody reads this")); err != nil {
			t.Fatal(err)
		}
		p.closeServer()
		n, err := patiently.read(p.client, make([]byte, 8))
		if n > 0 || err != nil && !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("read %d, %v", n, err)
		}
		// The answer to what it sends may take a moment.
		w.eventually("the client is refused", func() bool {
			err := unix.Sendto(p.client, []byte("x"), unix.MSG_NOSIGNAL, nil)
			return err != nil && !errors.Is(err, unix.EAGAIN)
		})
	}},
	{"reset", func(t *testing.T, _ *splicing, p *pair) {
		p.exchange(t, 100)
		if err := unix.SetsockoptLinger(p.client, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
			t.Fatal(err)
		}
		p.closeClient()
		if _, err := patiently.read(p.server, make([]byte, 8)); !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("read: %v", err)
		}
	}},
	{"peek and FIONREAD", func(t *testing.T, _ *splicing, p *pair) {
		if _, err := unix.Write(p.client, []byte("hello world")); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 5)
		for range 2 {
			if n, _, err := unix.Recvfrom(p.server, buf, unix.MSG_PEEK); n != 5 || err != nil || string(buf) != "hello" {
				t.Errorf("peeked %q, %v", buf[:max(n, 0)], err)
			}
		}
		if n, err := unix.IoctlGetInt(p.server, unix.TIOCINQ); n != 11 || err != nil {
			t.Errorf("FIONREAD %d, %v", n, err)
		}
		if err := patiently.expect(p.server, []byte("hello world")); err != nil {
			t.Error(err)
		}
		if n, err := unix.IoctlGetInt(p.server, unix.TIOCINQ); n != 0 || err != nil {
			t.Errorf("FIONREAD %d, %v when empty", n, err)
		}
	}},
	{"edge-triggered epoll", func(t *testing.T, _ *splicing, p *pair) { edgeTriggered(t, p) }},
	{"a writer that was held back wakes", func(t *testing.T, _ *splicing, p *pair) {
		sent, err := fill(p.client, 8<<20)
		if err != nil {
			t.Fatal(err)
		}
		more := randomBytes(9, 300_000)
		done := make(chan error, 1)
		go func() { done <- patiently.write(p.client, more) }()
		if err := patiently.expect(p.server, append(sent, more...)); err != nil {
			t.Error(err)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
	}},
	{"splice(2) by the sender", func(t *testing.T, _ *splicing, p *pair) {
		message := randomBytes(11, 50_000)
		f, err := os.CreateTemp(t.TempDir(), "")
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.Write(message); err != nil {
			t.Fatal(err)
		}
		for off := int64(0); off < int64(len(message)); {
			if _, err := unix.Sendfile(p.client, int(f.Fd()), &off, len(message)-int(off)); err != nil && !errors.Is(err, unix.EAGAIN) {
				t.Fatal(err)
			}
		}
		if err := patiently.expect(p.server, message); err != nil {
			t.Error(err)
		}
	}},
}

// bound is what a sender may get rid of while nobody reads: as much as by TCP
// alone, and what the receiver's buffer may hold besides, with one message more
// than fits.
func (w *splicing) bound(t *testing.T) int {
	t.Helper()
	if err := w.PauseSplicing("to compare"); err != nil {
		t.Fatal(err)
	}
	p := w.pair(virtual4, direct4)
	sent, err := fill(p.client, 64<<20)
	if err != nil {
		t.Fatal(err)
	}
	buffer, err := unix.GetsockoptInt(p.server, unix.SOL_SOCKET, unix.SO_RCVBUF)
	if err != nil {
		t.Fatal(err)
	}
	p.closeClient()
	p.closeServer()
	if err := w.PauseSplicing(""); err != nil {
		t.Fatal(err)
	}
	return len(sent) + buffer + 64<<10
}

func halfClosed(t *testing.T, a, b int) {
	t.Helper()
	message := randomBytes(5, 70_000)
	if err := patiently.write(a, message); err != nil {
		t.Fatal(err)
	}
	if err := unix.Shutdown(a, unix.SHUT_WR); err != nil {
		t.Fatal(err)
	}
	if err := patiently.expect(b, message); err != nil {
		t.Error(err)
	}
	if n, err := patiently.read(b, make([]byte, 8)); n != 0 || err != nil {
		t.Errorf("read %d, %v", n, err)
	}
	if err := stream(b, a, 6, 1<<20, nil); err != nil {
		t.Error(err)
	}
	if err := unix.Shutdown(b, unix.SHUT_WR); err != nil {
		t.Fatal(err)
	}
	if n, err := patiently.read(a, make([]byte, 8)); n != 0 || err != nil {
		t.Errorf("read %d, %v", n, err)
	}
}

// edgeTriggered: every message wakes a reader that has read until EAGAIN, and
// reading wakes a writer that was held back.
func edgeTriggered(t *testing.T, p *pair) {
	t.Helper()
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(ep)
	for _, fd := range []int{p.client, p.server} {
		ev := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLRDHUP | unix.EPOLLET&0xffffffff, Fd: int32(fd)}
		if err := unix.EpollCtl(ep, unix.EPOLL_CTL_ADD, fd, &ev); err != nil {
			t.Fatal(err)
		}
	}
	told := make(map[int]uint32) // edges that came while another one was awaited
	wait := func(fd int, what uint32) {
		t.Helper()
		deadline := time.Now().Add(time.Duration(patiently))
		if told[fd]&what != 0 {
			told[fd] &^= what
			return
		}
		for time.Now().Before(deadline) {
			events := make([]unix.EpollEvent, 4)
			n, err := unix.EpollWait(ep, events, 200)
			if err != nil && !errors.Is(err, unix.EINTR) {
				t.Fatal(err)
			}
			for _, e := range events[:max(n, 0)] {
				told[int(e.Fd)] |= e.Events
			}
			if told[fd]&what != 0 {
				told[fd] &^= what
				return
			}
		}
		t.Fatalf("no wake-up for %#x", what)
	}
	drain := func(fd int) (total int) {
		buf := make([]byte, 64<<10)
		for {
			n, err := unix.Read(fd, buf)
			if n <= 0 || err != nil {
				return total
			}
			total += n
		}
	}
	for i := range 50 {
		from, to := p.client, p.server
		if i%2 == 1 {
			from, to = to, from
		}
		clear(told)
		if _, err := unix.Write(from, []byte("ping")); err != nil {
			t.Fatal(err)
		}
		wait(to, unix.EPOLLIN)
		if n := drain(to); n != 4 {
			t.Fatalf("read %d bytes", n)
		}
	}
	clear(told)
	total, got := 0, 0
	for {
		n, err := unix.Write(p.client, make([]byte, 32<<10))
		if errors.Is(err, unix.EAGAIN) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		total += n
	}
	for got < total {
		wait(p.server, unix.EPOLLIN)
		got += drain(p.server)
	}
	wait(p.client, unix.EPOLLOUT)
	if err := unix.Shutdown(p.client, unix.SHUT_WR); err != nil {
		t.Fatal(err)
	}
	wait(p.server, unix.EPOLLRDHUP)
}

// TestPauseUnderLoad: living connections turn to TCP without losing a byte.
func TestPauseUnderLoad(t *testing.T) {
	w := newSplicing(t)
	var wg sync.WaitGroup
	var pairs []*pair
	for i := range 4 {
		pairs = append(pairs, w.pair([]string{virtual4, virtual6}[i%2], []string{direct4, direct6}[i%2]))
	}
	for i, p := range pairs {
		pause := func() {
			if err := errors.Join(w.PauseSplicing("paused"), w.PauseSplicing("")); err != nil {
				t.Error(err)
			}
		}
		if i == 0 {
			pause = func() {
				if err := w.PauseSplicing("paused"); err != nil {
					t.Error(err)
				}
			}
		}
		wg.Go(func() {
			if err := stream(p.client, p.server, uint64(i), 16<<20, pause); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if err := w.PauseSplicing("paused"); err != nil {
		t.Fatal(err)
	}
	for _, p := range pairs {
		p.exchange(t, 1000)
		if s, err := w.spliceOf(p.server); err != nil || s.Fallback != bpf.CaptureFallbackFALLBACK_PAUSED {
			t.Errorf("state %+v, %v", s, err)
		}
	}
	if s := w.stats().Splice; s.On || s.Reason != "paused" {
		t.Errorf("%+v", s)
	}
	q := w.pair(virtual4, direct4)
	if _, err := w.spliceOf(q.client); err == nil {
		t.Error("spliced while paused")
	}
	q.exchange(t, 1000)
	if err := w.PauseSplicing(""); err != nil {
		t.Fatal(err)
	}
	r := w.pair(virtual4, direct4)
	r.exchange(t, 1000)
	w.isSpliced(t, r.client)
}

// TestKilled: a process that is killed closes as TCP does.
func TestKilled(t *testing.T) {
	for _, who := range []string{"client", "server"} {
		t.Run(who, func(t *testing.T) {
			w := newSplicing(t)
			fd, err := w.front.dialNonblock(virtual4)
			if err != nil {
				t.Fatal(err)
			}
			conn, _ := w.back.acceptNonblock(w.listeners[direct4])
			dies, lives, of := w.front, w.back, conn
			data := fd
			if who == "server" {
				dies, lives, of, data = w.back, w.front, fd, conn
			}
			dies.must(call{Op: "write", FD: data, Data: "last words"})
			dies.kill()
			r := lives.must(call{Op: "recvfrom", FD: of})
			if r.Data != "last words" {
				t.Errorf("read %q", r.Data)
			}
			if r, err := lives.do(call{Op: "recvfrom", FD: of}); r.Data != "" || err != nil && !errors.Is(err, unix.ECONNRESET) {
				t.Errorf("read %q, %v", r.Data, err)
			}
		})
	}
}

// TestSpliceThroughRestart: the proxy dies under load and another comes;
// nothing is lost, and new connections are made all the while.
func TestSpliceThroughRestart(t *testing.T) {
	w := newSplicing(t)
	p := w.pair(virtual4, direct4)
	between := func() {
		w.proxy.kill()
		w.Capture.Close()
		q := w.pair(virtual6, direct6)
		q.exchange(t, 4000)
		w.open()
		q.exchange(t, 4000)
		w.isSpliced(t, q.client)
		w.isSpliced(t, q.server)
	}
	if err := stream(p.client, p.server, 7, 16<<20, between); err != nil {
		t.Error(err)
	}
	p.exchange(t, 1000)
}

// TestSplicingStaysOn: what was on when a process ended is on with the next one, from
// its first connection until the self-test, or somebody, says otherwise.
func TestSplicingStaysOn(t *testing.T) {
	w := newSplicing(t)
	again := func() {
		t.Helper()
		w.close()
		w.open()
	}
	again()
	if err := w.PauseSplicing(""); err != nil { // as a node does when it starts
		t.Fatal(err)
	}
	if s := w.stats().Splice; !s.On || s.Test.Ran {
		t.Errorf("%+v", s)
	}
	p := w.pair(virtual4, direct4)
	p.exchange(t, 1000)
	w.isSpliced(t, p.client)
	again()
	if err := w.PauseSplicing("paused"); err != nil {
		t.Fatal(err)
	}
	if err := w.PauseSplicing(""); err != nil {
		t.Fatal(err)
	}
	if s := w.stats().Splice; s.On {
		t.Errorf("on without a test: %+v", s)
	}
	w.testSplice()
	if s := w.stats().Splice; !s.On {
		t.Errorf("%+v", s)
	}
}

// TestShortConnections: connect, request, answer, close; many at once.
func TestShortConnections(t *testing.T) {
	w := newSplicing(t)
	for range 200 {
		p := w.pair(virtual4, direct4)
		p.exchange(t, 512)
		p.closeClient()
		if n, err := patiently.read(p.server, make([]byte, 8)); n != 0 || err != nil {
			t.Fatalf("read %d, %v", n, err)
		}
		p.closeServer()
	}
	w.over()
	tr := w.since()
	if tr.Opened != 200 || tr.Closed != 200 || tr.Spliced != 200 || tr.Sent != 200*512 || tr.Received != 200*512 || len(tr.Fallbacks) != 0 {
		t.Errorf("traffic %+v", tr)
	}
}
