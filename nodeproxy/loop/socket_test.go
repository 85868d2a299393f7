// SPDX-License-Identifier: Apache-2.0

package loop_test

import (
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/meshproxy/meshproxy/nodeproxy/loop"
)

func TestConnectRefused(t *testing.T) {
	for _, addr := range []string{"127.0.0.1:1", "[::1]:1"} {
		to := netip.MustParseAddrPort(addr)
		fd, err := loop.Socket(to.Addr())
		if err != nil {
			t.Fatal(err)
		}
		e := loop.Connect(fd, to)
		if e == unix.EINPROGRESS {
			p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
			for {
				n, err := unix.Poll(p, int(patience.Milliseconds()))
				if err == unix.EINTR {
					continue
				}
				if n != 1 || err != nil {
					t.Fatal(n, err)
				}
				break
			}
			e = loop.SocketError(fd)
		}
		if e != unix.ECONNREFUSED {
			t.Errorf("%s: %v", addr, e)
		}
		unix.Close(fd)
	}
}

// The calls of the copy path allocate nothing.
func TestSocketCallsDoNotAllocate(t *testing.T) {
	a, b := pair(t)
	defer unix.Close(a)
	defer unix.Close(b)
	buf := make([]byte, 1024)
	iov := []unix.Iovec{loop.Iovec(buf[:512]), loop.Iovec(buf[512:])}
	allocs := testing.AllocsPerRun(100, func() {
		loop.Write(a, buf)
		loop.Read(b, buf)
		loop.Read(b, buf) // EAGAIN
		loop.Writev(a, iov)
		loop.Readv(b, iov)
		_ = loop.LocalAddr(a)
		_, _, _ = loop.Accept(a) // EINVAL
	})
	if allocs != 0 {
		t.Errorf("%v allocations", allocs)
	}
}
