// SPDX-License-Identifier: Apache-2.0

package sockmap

import (
	"errors"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

// What is short, missing, or not for splicing: the connection works all the
// same.

// TestSplicedFull: with room for both ends of one connection, for one end more,
// and for none.
func TestSplicedFull(t *testing.T) {
	w := newWorld(t)
	w.opts.maxSpliced = 5 // two are the self-test's, which the proxy's process keeps open
	s := w.splicing()
	first := s.pair(virtual4, direct4)
	first.exchange(t, 1000)
	s.isSpliced(t, first.client)
	half := s.pair(virtual4, direct4) // the client's end alone
	half.exchange(t, 1000)
	if sp, err := s.spliceOf(half.client); err != nil || Fallback(sp.Fallback) != FallbackPeer || sp.Messages != 0 {
		t.Errorf("state %+v, %v", sp, err)
	}
	none := s.pair(virtual6, direct6)
	none.exchange(t, 1000)
	if err := stream(half.client, half.server, 1, 4<<20, nil); err != nil {
		t.Error(err)
	}
	if tr := s.since(); tr.Opened != 3 || tr.Spliced != 2 || tr.Fallbacks[FallbackFull] != 2 {
		t.Errorf("traffic %+v", tr)
	}
	first.exchange(t, 1000)
	s.isSpliced(t, first.client)
}

// TestDirectsFull: who can't be noted takes the way of the proxy.
func TestDirectsFull(t *testing.T) {
	w := newWorld(t)
	w.opts.maxDirects = 1
	s := w.splicing()
	s.pair(virtual4, direct4).exchange(t, 1000)
	if _, err := s.front.dial(virtual4); err != nil {
		t.Fatal(err)
	}
	if f, err := s.accepted(unix.AF_INET); err != nil || f.Service != name("db") {
		t.Errorf("flow %+v, %v", f, err)
	}
	if n := s.stats().DirectsFull; n != 1 {
		t.Errorf("counted %d", n)
	}
}

// TestPassedSocket: a descriptor that another process gets (SCM_RIGHTS) is the
// same socket.
func TestPassedSocket(t *testing.T) {
	w := newSplicing(t)
	p := w.pair(virtual4, direct4)
	p.exchange(t, 1000)
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(ends[0])
	defer unix.Close(ends[1])
	if err := patiently.write(p.client, []byte("before")); err != nil {
		t.Fatal(err)
	}
	if err := unix.Sendmsg(ends[0], []byte{0}, unix.UnixRights(p.client, p.server), nil, 0); err != nil {
		t.Fatal(err)
	}
	p.closeClient()
	p.closeServer()
	oob := make([]byte, 64)
	_, n, _, _, err := unix.Recvmsg(ends[1], make([]byte, 1), oob, 0)
	if err != nil {
		t.Fatal(err)
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(messages) != 1 {
		t.Fatal(messages, err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 2 {
		t.Fatal(fds, err)
	}
	p.client, p.server = fds[0], fds[1]
	if err := patiently.expect(p.server, []byte("before")); err != nil {
		t.Error(err)
	}
	p.exchange(t, 1000)
	w.isSpliced(t, p.client)
	w.isSpliced(t, p.server)
}

// TestMPTCPListener: a plain client's connection to it works; MPTCP sockets are
// never spliced (the kernel refuses them), what they accept of plain TCP may be.
func TestMPTCPListener(t *testing.T) {
	w := newSplicing(t)
	w.back.close(w.listeners[direct4])
	fd := w.back.mptcp(unix.AF_INET)
	if err := w.back.bind(fd, direct4); err != nil {
		t.Fatal(err)
	}
	w.back.must(call{Op: "listen", FD: fd})
	w.listeners[direct4] = fd
	for i := range 4 {
		p := w.pair(virtual4, direct4)
		p.exchange(t, 1000)
		if err := stream(p.client, p.server, uint64(i), 1<<20, nil); err != nil {
			t.Error(err)
		}
		if err := stream(p.server, p.client, uint64(i), 1<<20, nil); err != nil {
			t.Error(err)
		}
	}
}

// TestDeferredAccept: the first data comes before the connection is accepted.
func TestDeferredAccept(t *testing.T) {
	w := newSplicing(t)
	w.back.with(w.listeners[direct4], func(fd int) error {
		return unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT, 5)
	})
	for i := range 20 {
		fd, err := w.front.dialNonblock(virtual4)
		if err != nil {
			t.Fatal(err)
		}
		w.front.must(call{Op: "write", FD: fd, Data: "first "})
		w.front.must(call{Op: "write", FD: fd, Data: "second "})
		conn, _ := w.back.acceptNonblock(w.listeners[direct4])
		w.front.must(call{Op: "write", FD: fd, Data: "third"})
		var got string
		for len(got) < len("first second third") {
			got += w.back.must(call{Op: "recvfrom", FD: conn}).Data
		}
		if got != "first second third" {
			t.Fatalf("connection %d: read %q", i, got)
		}
		w.front.close(fd)
		w.back.close(conn)
	}
}

// TestZeroCopy: who asked to hear when its data was taken is told by TCP alone.
func TestZeroCopy(t *testing.T) {
	w := newSplicing(t)
	p := w.pair(virtual4, direct4)
	p.exchange(t, 1000)
	if err := unix.SetsockoptInt(p.client, unix.SOL_SOCKET, unix.SO_ZEROCOPY, 1); err != nil {
		t.Fatal(err)
	}
	p.exchange(t, 1000)
	if s, err := w.spliceOf(p.client); err != nil || Fallback(s.Fallback) != FallbackOptions {
		t.Errorf("state %+v, %v", s, err)
	}
}

// TestSpliceSyscall: splice(2) finds nothing on a spliced socket, read(2) does;
// with the switch of its workload, new connections are as ever. One that is
// spliced already has its data elsewhere, TCP's too.
func TestSpliceSyscall(t *testing.T) {
	w := newSplicing(t)
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_NONBLOCK); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pipe[0])
	defer unix.Close(pipe[1])
	message := []byte("by which way?")
	splice := func(p *pair) (int64, error) {
		if err := patiently.write(p.client, message); err != nil {
			t.Fatal(err)
		}
		if err := patiently.await(p.server, unix.POLLIN); err != nil {
			t.Fatal(err)
		}
		return unix.Splice(p.server, nil, pipe[1], nil, 1<<16, unix.SPLICE_F_NONBLOCK)
	}
	p := w.pair(virtual4, direct4)
	if n, err := splice(p); !errors.Is(err, unix.EAGAIN) {
		t.Errorf("spliced %d, %v: does this kernel know better?", n, err)
	}
	if err := patiently.expect(p.server, message); err != nil {
		t.Error(err)
	}
	s := w.directState(Allow)
	s.Workloads[1].Unspliced = true
	w.apply(s)
	if n, err := splice(p); !errors.Is(err, unix.EAGAIN) {
		t.Errorf("spliced %d, %v: does this kernel know better?", n, err)
	}
	if err := patiently.expect(p.server, message); err != nil {
		t.Error(err)
	}
	if n, err := splice(w.pair(virtual4, direct4)); n != int64(len(message)) || err != nil {
		t.Errorf("spliced %d, %v", n, err)
	}
	if err := patiently.expect(pipe[0], message); err != nil {
		t.Error(err)
	}
}

// TestStallHeals: a receiver that does not read holds back its sender by the
// window. What TCP had to drop for want of room would be sent again at
// intervals that double, and the reader, when it reads at last, would wait for
// the next of them.
func TestStallHeals(t *testing.T) {
	w := newSplicing(t)
	for _, size := range []int{64, 600, 4 << 10, 20_000, 64 << 10, 200_000} {
		t.Run(strconv.Itoa(size), func(t *testing.T) { stall(t, w, size) })
	}
}

func stall(t *testing.T, w *splicing, size int) {
	p := w.pair(virtual4, direct4)
	if err := w.PauseSplicing("for a window that has grown"); err != nil {
		t.Fatal(err)
	}
	if err := stream(p.client, p.server, 1, 8<<20, nil); err != nil {
		t.Fatal(err)
	}
	if err := w.PauseSplicing(""); err != nil {
		t.Fatal(err)
	}
	message := randomBytes(77, size)
	var sent []byte
	w.eventually("nothing is under way that the receiver has no room for", func() bool {
		for { // what was queued may have found room meanwhile
			n, err := unix.Write(p.client, message)
			if errors.Is(err, unix.EAGAIN) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			sent = append(sent, message[:n]...)
		}
		info, err := unix.GetsockoptTCPInfo(p.client, unix.IPPROTO_TCP, unix.TCP_INFO)
		if err != nil {
			t.Fatal(err)
		}
		return info.Unacked == 0 && info.Notsent_bytes > 0
	})
	if err := patiently.expect(p.server, sent); err != nil {
		t.Fatal(err)
	}
}
