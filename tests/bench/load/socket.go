// SPDX-License-Identifier: Apache-2.0

package load

import (
	"fmt"
	"io"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

// rawRead and rawWrite block the thread and its P; see the package comment.
func rawRead(fd int, p []byte) (int, unix.Errno) {
	return rawIO(unix.SYS_READ, fd, p)
}

func rawWrite(fd int, p []byte) (int, unix.Errno) {
	return rawIO(unix.SYS_WRITE, fd, p)
}

func rawIO(call uintptr, fd int, p []byte) (int, unix.Errno) {
	for {
		n, _, errno := unix.RawSyscall(call, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)))
		if errno == 0 {
			return int(n), 0
		}
		if errno != unix.EINTR {
			return 0, errno
		}
	}
}

// rawWait waits for events of an epoll descriptor, up to a number of
// milliseconds; -1 is for ever.
func rawWait(epfd int, events []unix.EpollEvent, timeout int) (int, error) {
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(epfd),
			uintptr(unsafe.Pointer(unsafe.SliceData(events))), uintptr(len(events)), uintptr(timeout), 0, 0)
		if errno == 0 {
			return int(n), nil
		}
		if errno != unix.EINTR {
			return 0, fmt.Errorf("wait for events: %w", errno)
		}
	}
}

// await waits until a socket is ready for events of poll(2).
func await(fd int, events int16) error {
	wanted := [1]unix.PollFd{{Fd: int32(fd), Events: events}}
	for {
		_, _, errno := unix.RawSyscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&wanted)), 1, 0, 0, 0, 0)
		switch errno {
		case 0:
			return nil
		case unix.EINTR:
		default:
			return fmt.Errorf("wait for a socket: %w", errno)
		}
	}
}

// readFull reads all of p, or returns why it couldn't.
func readFull(fd int, p []byte) error {
	for done := 0; done < len(p); {
		n, errno := rawRead(fd, p[done:])
		if errno == unix.EAGAIN {
			if err := await(fd, unix.POLLIN); err != nil {
				return err
			}
			continue
		}
		if errno != 0 {
			return fmt.Errorf("read: %w", errno)
		}
		if n == 0 {
			return fmt.Errorf("read: %w", io.ErrUnexpectedEOF)
		}
		done += n
	}
	return nil
}

func sockaddr(a netip.AddrPort) (family int, sa unix.Sockaddr) {
	if a.Addr().Is4() {
		return unix.AF_INET, &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return unix.AF_INET6, &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

// dial returns a connected, non-blocking socket.
func dial(addr netip.AddrPort) (int, error) {
	family, sa := sockaddr(addr)
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, fmt.Errorf("open socket: %w", err)
	}
	if err := connect(fd, sa); err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("connect to %s: %w", addr, err)
	}
	noDelay(fd)
	return fd, nil
}

func connect(fd int, sa unix.Sockaddr) error {
	if err := unix.Connect(fd, sa); err != unix.EINPROGRESS {
		return err
	}
	if err := await(fd, unix.POLLOUT); err != nil {
		return err
	}
	errno, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err == nil && errno != 0 {
		err = unix.Errno(errno)
	}
	return err
}

func noDelay(fd int) { _ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1) }

// dialEcho returns a connection whose first ping was answered: the whole way
// to the server exists.
func dialEcho(addr netip.AddrPort) (int, error) {
	fd, err := dial(addr)
	if err != nil {
		return -1, err
	}
	first := make([]byte, 1+messageSize)
	first[0] = opEcho
	if _, errno := rawWrite(fd, first); errno != 0 {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("write: %w", errno)
	}
	if err := readFull(fd, first[:messageSize]); err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}
