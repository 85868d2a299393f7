// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"context"
	"errors"
	"net"
	"runtime"
	"syscall"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func fresh(t testing.TB) *Handle {
	t.Helper()
	h, err := New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = h.Close() })
	return h
}

// up sets the loopback interface of a namespace up.
func up(t testing.TB, h *Handle) {
	t.Helper()
	sock, err := Socket(h.FD(), unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(sock)
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		t.Fatal(err)
	}
	ifr.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(sock, unix.SIOCSIFFLAGS, ifr); err != nil {
		t.Fatal(err)
	}
}

func inodeHere(t testing.TB) uint64 {
	t.Helper()
	_, inode, err := identity(Own)
	if err != nil {
		t.Fatal(err)
	}
	return inode
}

func TestListen(t *testing.T) {
	h := fresh(t)
	up(t, h)
	controlled := 0
	control := func(_, _ string, c syscall.RawConn) error {
		return c.Control(func(fd uintptr) {
			controlled++
			if proto, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PROTOCOL); err != nil || proto == unix.IPPROTO_MPTCP {
				t.Errorf("protocol %d, %v", proto, err)
			}
		})
	}
	l, err := Listen(context.Background(), h.FD(), "tcp", "127.0.0.1:0", control)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	p, err := ListenPacket(context.Background(), h.FD(), "udp", "127.0.0.1:0", control)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if controlled != 2 {
		t.Errorf("control was called %d times, want 2", controlled)
	}

	connect := func() error {
		sock, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(sock)
		addr := l.Addr().(*net.TCPAddr)
		return unix.Connect(sock, &unix.SockaddrInet4{Port: addr.Port, Addr: [4]byte(addr.IP.To4())})
	}
	// Not from the machine's own namespace: somebody may listen on that port there.
	outside := fresh(t)
	up(t, outside)
	if err := Do(outside.FD(), connect); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("connect from outside: %v", err)
	}
	if err := Do(h.FD(), connect); err != nil {
		t.Fatalf("connect inside: %v", err)
	}
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
}

// BenchmarkSocket makes and closes a TCP socket: here, elsewhere by a Thread,
// elsewhere by Do.
func BenchmarkSocket(b *testing.B) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	h := fresh(b)
	th, err := OpenThread()
	if err != nil {
		b.Fatal(err)
	}
	defer th.Close()
	cycle := func(b *testing.B, fd int) {
		sock, err := Socket(fd, unix.AF_INET, unix.SOCK_STREAM, 0)
		if err != nil {
			b.Fatal(err)
		}
		_ = unix.Close(sock)
	}
	b.Run("here", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			cycle(b, Own)
		}
	})
	// b.Run changes goroutines, so the loop enters from one of its own.
	b.Run("thread", func(b *testing.B) {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		b.ReportAllocs()
		for b.Loop() {
			if err := th.Enter(h.FD()); err != nil {
				b.Fatal(err)
			}
			cycle(b, Own)
			if err := th.Leave(); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("do", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			cycle(b, h.FD())
		}
	})
}

func TestOfSocket(t *testing.T) {
	h := fresh(t)
	sock, err := Socket(h.FD(), unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(sock)
	got, err := OfSocket(sock)
	if err != nil {
		t.Fatal(err)
	}
	defer got.Close()
	if same, err := Same(got.FD(), h.FD()); !same || err != nil || got.Inode() != h.Inode() {
		t.Errorf("namespace %d, want %d: %v, %v", got.Inode(), h.Inode(), same, err)
	}
	if h, err := OfSocket(int(h.FD())); err == nil {
		t.Errorf("namespace %d of what is no socket", h.Inode())
	}
}
