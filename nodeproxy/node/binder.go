// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/meshproxy/meshproxy/sockmap/netns"
)

// control marks a socket before it is bound or connected (net.Dialer.Control).
type control = func(network, address string, c syscall.RawConn) error

// binder opens listeners and connections in a network namespace. In the node's
// own, package net does; in another one, the sockets are made there by whoever
// may enter it, and bound and connected here.
type binder struct {
	way  netns.Opener
	ns   int // netns.Own or a descriptor
	mark control
}

// backlog is what Linux allows by default since 5.4; the namespace's somaxconn
// bounds it.
const backlog = 4096

// listenTCP opens a listener without MPTCP: an MPTCP socket can't be steered to
// nor spliced.
func (b binder) listenTCP(ctx context.Context, at netip.AddrPort) (*net.TCPListener, error) {
	if b.ns == netns.Own {
		return listenTCP(ctx, listenAddress(at), b.mark)
	}
	f, err := b.bound(at, unix.SOCK_STREAM)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := unix.Listen(int(f.Fd()), backlog); err != nil {
		return nil, fmt.Errorf("listen on %s: %w", at, err)
	}
	ln, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", at, err)
	}
	return ln.(*net.TCPListener), nil
}

func (b binder) listenUDP(ctx context.Context, at netip.AddrPort) (net.PacketConn, error) {
	if b.ns == netns.Own {
		config := net.ListenConfig{Control: b.mark}
		return config.ListenPacket(ctx, "udp", at.String())
	}
	f, err := b.bound(at, unix.SOCK_DGRAM)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return net.FilePacketConn(f)
}

// bound makes a socket in the namespace and binds it. An invalid address means
// both families, on one socket where there is IPv6.
func (b binder) bound(at netip.AddrPort, typ int) (*os.File, error) {
	if !at.Addr().IsValid() {
		f, err := b.bound(netip.AddrPortFrom(netip.IPv6Unspecified(), at.Port()), typ)
		if errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EADDRNOTAVAIL) {
			return b.bound(netip.AddrPortFrom(netip.IPv4Unspecified(), at.Port()), typ)
		}
		return f, err
	}
	f, err := b.socket(familyOf(at.Addr()), typ)
	if err != nil {
		return nil, err
	}
	fd := int(f.Fd())
	// As package net does. The address may be in use by connections of a
	// node before.
	err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	if err == nil && at.Addr().Is6() {
		only := 0
		if !at.Addr().IsUnspecified() {
			only = 1
		}
		err = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, only)
	}
	if err == nil {
		err = unix.Bind(fd, sockaddr(at))
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("bind %s: %w", at, err)
	}
	return f, nil
}

// socket makes a socket that is the proxy's own, without binding it.
func (b binder) socket(family, typ int) (*os.File, error) {
	fd, err := b.way.Socket(b.ns, family, typ, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "socket")
	raw, err := f.SyscallConn()
	if err == nil {
		err = b.mark("", "", raw)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// connectStep is how often a connect under way looks whether it is still
// wanted.
const connectStep = 100 * time.Millisecond

// dialTCP connects from the namespace.
func (b binder) dialTCP(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	if b.ns == netns.Own {
		d := net.Dialer{Control: b.mark}
		return d.DialContext(ctx, "tcp", to.String())
	}
	f, err := b.socket(familyOf(to.Addr()), unix.SOCK_STREAM)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := connect(ctx, int(f.Fd()), to); err != nil {
		return nil, fmt.Errorf("dial %s: %w", to, err)
	}
	return net.FileConn(f)
}

// connect connects a socket, which it makes non-blocking: its owner may have
// asked for the descriptor with Fd, which makes it blocking.
func connect(ctx context.Context, fd int, to netip.AddrPort) error {
	if err := unix.SetNonblock(fd, true); err != nil {
		return err
	}
	err := unix.Connect(fd, sockaddr(to))
	for errors.Is(err, unix.EINPROGRESS) || errors.Is(err, unix.EINTR) {
		if err := ctx.Err(); err != nil {
			return err
		}
		ready := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
		n, pollErr := unix.Poll(ready, int(connectStep.Milliseconds()))
		if pollErr != nil && !errors.Is(pollErr, unix.EINTR) {
			return pollErr
		}
		if n < 1 {
			continue
		}
		code, optErr := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
		if optErr != nil {
			return optErr
		}
		if code != 0 {
			return unix.Errno(code)
		}
		return nil
	}
	return err
}

// listenTCP opens a listener in the node's own namespace. Its address need not
// be there yet (IP_FREEBIND): the node starts before the network does.
func listenTCP(ctx context.Context, address string, mark control) (*net.TCPListener, error) {
	config := net.ListenConfig{Control: func(network, address string, c syscall.RawConn) error {
		if err := mark(network, address, c); err != nil {
			return err
		}
		return freeBind(network, c)
	}}
	config.SetMultipathTCP(false)
	ln, err := config.Listen(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	return ln.(*net.TCPListener), nil
}

func freeBind(network string, c syscall.RawConn) (err error) {
	level, option := unix.IPPROTO_IP, unix.IP_FREEBIND
	if network == "tcp6" {
		level, option = unix.IPPROTO_IPV6, unix.IPV6_FREEBIND
	}
	if ctlErr := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), level, option, 1) }); ctlErr != nil {
		return ctlErr
	}
	return err
}
