// SPDX-License-Identifier: Apache-2.0

package handover

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Socket is a socket that passes from one process to the next.
type Socket struct {
	// Scope says which of several sockets with the same address it is: the
	// network namespace.
	Scope string
	// FD is whoever's has the Socket.
	FD int
}

// Sockets are those that a process was given and has not taken up yet. Methods
// may be called from any goroutine; a nil *Sockets is an empty one.
type Sockets struct {
	mu   sync.Mutex
	left []given
}

type given struct {
	Socket
	network string // "tcp", "udp" or "unix"
	address string
}

// NewSockets takes over the descriptors of the list. One that is not a bound
// socket is closed, and named in the error, with which the others are usable.
func NewSockets(list []Socket) (*Sockets, error) {
	s := &Sockets{}
	var errs []error
	for _, sock := range list {
		g := given{Socket: sock}
		var err error
		if g.network, g.address, err = inspect(sock.FD); err != nil {
			_ = unix.Close(sock.FD)
			errs = append(errs, fmt.Errorf("inherited descriptor of %s: %w", sock.Scope, err))
			continue
		}
		s.left = append(s.left, g)
	}
	return s, errors.Join(errs...)
}

// Scopes returns the scopes of what is left, each once, sorted.
func (s *Sockets) Scopes() (list []string) {
	if s == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, g := range s.left {
		list = append(list, g.Scope)
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// Peek returns a descriptor of the scope, which stays the Sockets', or -1.
func (s *Sockets) Peek(scope string) int {
	if s == nil {
		return -1
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, g := range s.left {
		if g.Scope == scope {
			return g.FD
		}
	}
	return -1
}

// Listener returns the listener of the scope on an address, as net.Listen takes
// it, or nil when there is none.
func (s *Sockets) Listener(scope, network, address string) (net.Listener, error) {
	fd, ok := s.take(scope, network, address)
	if !ok {
		return nil, nil
	}
	f := os.NewFile(uintptr(fd), network+" "+address)
	defer f.Close()
	ln, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("take over listener %s: %w", address, err)
	}
	return ln, nil
}

// PacketConn is Listener for datagrams.
func (s *Sockets) PacketConn(scope, address string) (net.PacketConn, error) {
	fd, ok := s.take(scope, "udp", address)
	if !ok {
		return nil, nil
	}
	f := os.NewFile(uintptr(fd), "udp "+address)
	defer f.Close()
	pc, err := net.FilePacketConn(f)
	if err != nil {
		return nil, fmt.Errorf("take over socket %s: %w", address, err)
	}
	return pc, nil
}

func (s *Sockets) take(scope, network, address string) (int, bool) {
	if s == nil {
		return -1, false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	want := canonical(network, address)
	for i, g := range s.left {
		if g.Scope == scope && g.network == network && g.address == want {
			s.left = slices.Delete(s.left, i, i+1)
			return g.FD, true
		}
	}
	return -1, false
}

// Close closes what nobody has taken up, and says what that was.
func (s *Sockets) Close() (left []string) {
	if s == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, g := range s.left {
		_ = unix.Close(g.FD)
		left = append(left, g.network+" "+g.address)
	}
	s.left = nil
	return left
}

// inspect asks the kernel what a socket is bound to.
func inspect(fd int) (network, address string, err error) {
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return "", "", fmt.Errorf("read its address: %w", err)
	}
	typ, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil {
		return "", "", fmt.Errorf("read its type: %w", err)
	}
	network = "tcp"
	if typ == unix.SOCK_DGRAM {
		network = "udp"
	}
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		address = netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port)).String()
	case *unix.SockaddrInet6:
		address = netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), uint16(sa.Port)).String()
	case *unix.SockaddrUnix:
		network, address = "unix", sa.Name
	default:
		return "", "", fmt.Errorf("address of type %T", sa)
	}
	return network, canonical(network, address), nil
}

// canonical gives an address one form: net.Listen takes ":80" for any address
// of both families, which the kernel calls [::]:80, or 0.0.0.0:80 where there is
// no IPv6.
func canonical(network, address string) string {
	if network == "unix" {
		return address
	}
	if strings.HasPrefix(address, ":") {
		address = "0.0.0.0" + address
	}
	at, err := netip.ParseAddrPort(address)
	if err != nil {
		return address
	}
	if at.Addr().IsUnspecified() {
		at = netip.AddrPortFrom(netip.IPv4Unspecified(), at.Port())
	}
	return at.String()
}

// Duplicate returns a descriptor of the same socket, which is the caller's. A
// listener's own File method would do, but it makes the socket block, for the
// process that listens too.
func Duplicate(fd int) (int, error) {
	own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("duplicate descriptor: %w", err)
	}
	return own, nil
}
