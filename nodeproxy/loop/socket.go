// SPDX-License-Identifier: Apache-2.0

package loop

import (
	"net/netip"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The calls of the copy path. They differ from those in x/sys/unix in that
// they return an Errno, which is no interface and so costs no allocation, and
// retry EINTR. They keep their P (RawSyscall): they don't block, and the longest,
// a write of 256 KiB over loopback that does the receiver's work too, takes
// 100 µs.

// Read reads from the socket fd into b, which must not be empty. It takes the
// socket's own call, which is shorter than read(2): that looks after file
// positions, watchers of files and vectors first.
func Read(fd int, b []byte) (int, unix.Errno) {
	return retry(unix.SYS_RECVFROM, fd, unsafe.Pointer(unsafe.SliceData(b)), len(b), 0)
}

// Write writes b, which must not be empty, to the socket fd.
func Write(fd int, b []byte) (int, unix.Errno) {
	return retry(unix.SYS_SENDTO, fd, unsafe.Pointer(unsafe.SliceData(b)), len(b), unix.MSG_NOSIGNAL)
}

// Readv reads from fd into the places that v names.
func Readv(fd int, v []unix.Iovec) (int, unix.Errno) {
	return retry(unix.SYS_READV, fd, unsafe.Pointer(unsafe.SliceData(v)), len(v), 0)
}

// Writev writes to fd from the places that v names.
func Writev(fd int, v []unix.Iovec) (int, unix.Errno) {
	return retry(unix.SYS_WRITEV, fd, unsafe.Pointer(unsafe.SliceData(v)), len(v), 0)
}

// retry makes a system call of a socket; those of vectors take no flags.
func retry(call uintptr, fd int, p unsafe.Pointer, n, flags int) (int, unix.Errno) {
	for {
		r, _, e := unix.RawSyscall6(call, uintptr(fd), uintptr(p), uintptr(n), uintptr(flags), 0, 0)
		if e == unix.EINTR {
			continue
		}
		runtime.KeepAlive(p)
		if e != 0 {
			return -1, e
		}
		return int(r), 0
	}
}

// Iovec describes b, which must not be empty, to Readv and Writev. The caller
// keeps b alive by other means than the Iovec's own pointer if it is not on
// the heap.
func Iovec(b []byte) unix.Iovec {
	v := unix.Iovec{Base: unsafe.SliceData(b)}
	v.SetLen(len(b))
	return v
}

// Accept takes one connection from a listening socket, non-blocking and
// close-on-exec, and returns its remote address, IPv4 never mapped.
func Accept(fd int) (int, netip.AddrPort, unix.Errno) {
	var sa unix.RawSockaddrInet6
	n := uint32(unix.SizeofSockaddrInet6)
	r, _, e := unix.RawSyscall6(unix.SYS_ACCEPT4, uintptr(fd), uintptr(unsafe.Pointer(&sa)),
		uintptr(unsafe.Pointer(&n)), unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0, 0)
	if e != 0 {
		return -1, netip.AddrPort{}, e
	}
	return int(r), addrPort(&sa), 0
}

// Connect begins, or asks about, a connection: EINPROGRESS and EALREADY mean
// not yet, EISCONN that it stands.
func Connect(fd int, to netip.AddrPort) unix.Errno {
	if to.Addr().Is4() {
		sa := unix.RawSockaddrInet4{Family: unix.AF_INET, Port: networkOrder(to.Port()), Addr: to.Addr().As4()}
		_, _, e := unix.RawSyscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&sa)), unix.SizeofSockaddrInet4)
		return e
	}
	sa := unix.RawSockaddrInet6{Family: unix.AF_INET6, Port: networkOrder(to.Port()), Addr: to.Addr().As16(), Scope_id: zone(to.Addr())}
	_, _, e := unix.RawSyscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&sa)), unix.SizeofSockaddrInet6)
	return e
}

// LocalAddr is getsockname(2); the zero AddrPort when there is none.
func LocalAddr(fd int) netip.AddrPort { return nameOf(unix.SYS_GETSOCKNAME, fd) }

// RemoteAddr is getpeername(2); the zero AddrPort when there is none.
func RemoteAddr(fd int) netip.AddrPort { return nameOf(unix.SYS_GETPEERNAME, fd) }

func nameOf(call uintptr, fd int) netip.AddrPort {
	var sa unix.RawSockaddrInet6
	n := uint32(unix.SizeofSockaddrInet6)
	if _, _, e := unix.RawSyscall(call, uintptr(fd), uintptr(unsafe.Pointer(&sa)), uintptr(unsafe.Pointer(&n))); e != 0 {
		return netip.AddrPort{}
	}
	return addrPort(&sa)
}

// Socket makes a non-blocking TCP socket of the address's family.
func Socket(to netip.Addr) (int, error) {
	family := unix.AF_INET6
	if to.Is4() {
		family = unix.AF_INET
	}
	return unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
}

// SocketError fetches and clears SO_ERROR.
func SocketError(fd int) unix.Errno {
	v, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if e, ok := err.(unix.Errno); ok {
		return e
	}
	return unix.Errno(v)
}

// SetNoDelay turns Nagle's algorithm off. An error is of no consequence: the
// socket is broken then, and the next read says so.
func SetNoDelay(fd int) { _ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1) }

// ShutdownWrite sends FIN.
func ShutdownWrite(fd int) { _ = unix.Shutdown(fd, unix.SHUT_WR) }

// ResetOnClose makes the next close(2) send RST instead of FIN.
func ResetOnClose(fd int) {
	_ = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
}

func addrPort(sa *unix.RawSockaddrInet6) netip.AddrPort {
	switch sa.Family {
	case unix.AF_INET:
		sa4 := (*unix.RawSockaddrInet4)(unsafe.Pointer(sa))
		return netip.AddrPortFrom(netip.AddrFrom4(sa4.Addr), networkOrder(sa4.Port))
	case unix.AF_INET6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr).Unmap(), networkOrder(sa.Port))
	}
	return netip.AddrPort{}
}

// networkOrder converts a port in either direction.
func networkOrder(p uint16) uint16 {
	b := (*[2]byte)(unsafe.Pointer(&p))
	return uint16(b[0])<<8 | uint16(b[1])
}

// zone is the scope of a link-local address, given by number (RFC 4007,
// section 11.2); names are resolved where addresses are parsed.
func zone(a netip.Addr) uint32 {
	var n uint32
	for _, c := range a.Zone() {
		if c < '0' || c > '9' {
			return 0
		}
		n = n*10 + uint32(c-'0')
	}
	return n
}
