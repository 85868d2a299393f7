// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// Control is called with a socket before it is bound, as
// net.ListenConfig.Control.
type Control func(network, address string, c syscall.RawConn) error

// Socket makes a socket in the namespace of fd, close-on-exec and
// non-blocking.
func Socket(fd, domain, typ, protocol int) (int, error) {
	sock := -1
	err := Do(fd, func() (err error) {
		sock, err = unix.Socket(domain, typ|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, protocol)
		return err
	})
	if err != nil {
		return -1, fmt.Errorf("make socket: %w", err)
	}
	return sock, nil
}

// Listen listens in the namespace of fd. The address must be literal: names
// are not looked up in that namespace. control may be nil.
//
// The listener is never one of MPTCP, which the programs do not see.
func Listen(ctx context.Context, fd int, network, address string, control Control) (net.Listener, error) {
	config := listenConfig(control)
	var l net.Listener
	err := Do(fd, func() (err error) {
		l, err = config.Listen(ctx, network, address)
		return err
	})
	return l, err
}

// ListenPacket is Listen for datagrams.
func ListenPacket(ctx context.Context, fd int, network, address string, control Control) (net.PacketConn, error) {
	config := listenConfig(control)
	var c net.PacketConn
	err := Do(fd, func() (err error) {
		c, err = config.ListenPacket(ctx, network, address)
		return err
	})
	return c, err
}

func listenConfig(control Control) *net.ListenConfig {
	config := &net.ListenConfig{Control: control}
	// Since Go 1.24 listeners are MPTCP by default.
	config.SetMultipathTCP(false)
	return config
}

// Cookie returns the cookie of the namespace of fd, as
// bpf_get_netns_cookie gives it: unlike the inode, it is never reused.
// It returns ErrNoCookie on kernels before 5.14; package netcookie has another
// way.
func Cookie(fd int) (uint64, error) {
	// Any family will do; this one can't be missing.
	sock, err := Socket(fd, unix.AF_UNIX, unix.SOCK_DGRAM, 0)
	if err != nil {
		return 0, fmt.Errorf("read cookie of network namespace: %w", err)
	}
	defer unix.Close(sock)
	return CookieOfSocket(sock)
}

// CookieOfSocket returns the cookie of the namespace that a socket is in.
func CookieOfSocket(sock int) (uint64, error) {
	cookie, err := unix.GetsockoptUint64(sock, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if errors.Is(err, unix.ENOPROTOOPT) {
		err = ErrNoCookie
	}
	if err != nil {
		return 0, fmt.Errorf("read cookie of network namespace: %w", err)
	}
	return cookie, nil
}
