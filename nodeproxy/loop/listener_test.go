// SPDX-License-Identifier: Apache-2.0

package loop_test

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/meshproxy/meshproxy/nodeproxy/loop"
)

// listen opens a listener whose descriptor loops may use.
func listen(t *testing.T, network, addr string) (fd int, at netip.AddrPort) {
	t.Helper()
	ln, err := net.Listen(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	f, err := ln.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if fd, err = unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd, ln.Addr().(*net.TCPAddr).AddrPort()
}

func TestListenOnTwoLoops(t *testing.T) {
	for _, addr := range []string{"127.0.0.1:0", "[::1]:0"} {
		t.Run(addr, func(t *testing.T) {
			fd, at := listen(t, "tcp", addr)
			remotes := make(chan netip.AddrPort, 100)
			for range 2 {
				l := start(t, loop.Options{})
				do(t, l, func() {
					_, err := l.Listen(fd, func(fd int, remote netip.AddrPort) {
						if local := loop.LocalAddr(fd); local != at {
							t.Errorf("local address %v, want %v", local, at)
						}
						if loop.RemoteAddr(fd) != remote {
							t.Errorf("remote address %v", remote)
						}
						unix.Close(fd)
						remotes <- remote
					})
					if err != nil {
						t.Error(err)
					}
				})
			}
			want := map[netip.AddrPort]bool{}
			for range 50 {
				c, err := net.Dial("tcp", at.String())
				if err != nil {
					t.Fatal(err)
				}
				want[c.LocalAddr().(*net.TCPAddr).AddrPort()] = true
				c.Close()
			}
			for range 50 {
				if r := <-remotes; !want[r] {
					t.Errorf("unexpected %v", r)
				}
			}
		})
	}
}

func TestAcceptSurvivesPanic(t *testing.T) {
	l := start(t, loop.Options{})
	fd, at := listen(t, "tcp", "127.0.0.1:0")
	second := make(chan struct{})
	var n atomic.Int64
	do(t, l, func() {
		_, err := l.Listen(fd, func(fd int, _ netip.AddrPort) {
			if n.Add(1) == 1 {
				panic("first")
			}
			unix.Close(fd)
			close(second)
		})
		if err != nil {
			t.Error(err)
		}
	})
	for range 2 {
		c, err := net.Dial("tcp", at.String())
		if err != nil {
			t.Fatal(err)
		}
		c.SetReadDeadline(time.Now().Add(patience))
		if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error("the connection stays open:", err)
		}
		c.Close()
	}
	await(t, second, "the second connection")
}

// With no descriptor left the listener rests instead of spinning, and accepts
// what waited when there is one again.
func TestAcceptWithoutDescriptors(t *testing.T) {
	l := start(t, loop.Options{TickInterval: time.Millisecond})
	fd, at := listen(t, "tcp", "127.0.0.1:0")
	accepted := make(chan struct{}, 1)
	do(t, l, func() {
		_, err := l.Listen(fd, func(fd int, _ netip.AddrPort) {
			unix.Close(fd)
			accepted <- struct{}{}
		})
		if err != nil {
			t.Error(err)
		}
	})
	s, err := loop.Socket(at.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(s)

	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	// A soft limit below what is open: every new descriptor is EMFILE.
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 3, Max: old.Max}); err != nil {
		t.Fatal(err)
	}
	restore := func() { _ = unix.Setrlimit(unix.RLIMIT_NOFILE, &old) }
	defer restore()
	if e := loop.Connect(s, at); e != 0 && e != unix.EINPROGRESS {
		t.Fatal(e)
	}
	paused := make(chan loop.Stats, 1)
	do(t, l, func() {
		var poll func()
		poll = func() {
			if s := l.Stats(); s.AcceptPauses > 0 {
				paused <- s
				return
			}
			l.After(time.Millisecond, poll)
		}
		poll()
	})
	<-paused
	select {
	case <-accepted:
		t.Error("accepted without a descriptor")
	default:
	}
	restore()
	await(t, accepted, "the connection that waited")
	if s := l.Stats(); s.AcceptPauses > 100 {
		t.Errorf("%d pauses: the listener spins", s.AcceptPauses)
	}
}

func TestListenerClose(t *testing.T) {
	l := start(t, loop.Options{})
	fd, at := listen(t, "tcp", "127.0.0.1:0")
	do(t, l, func() {
		ln, err := l.Listen(fd, func(fd int, _ netip.AddrPort) {
			t.Error("accepted after close")
			unix.Close(fd)
		})
		if err != nil {
			t.Fatal(err)
		}
		ln.Close()
		ln.Close()
	})
	c, err := net.Dial("tcp", at.String()) // the kernel's backlog takes it
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for range 3 {
		do(t, l, func() {})
	}
}
