// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/meshproxy/meshproxy/sockmap"
)

// control marks a socket before it is bound or connected (net.Dialer.Control).
type control = func(network, address string, c syscall.RawConn) error

// listeners are the proxy's own in one network namespace. Close closes all.
type listeners struct {
	outbound []*net.TCPListener // 127.0.0.1 and ::1
	plain    *net.TCPListener   // steered plaintext, any address
	dnsTCP   []net.Listener
	dnsUDP   []net.PacketConn
}

// openListeners opens the listeners that captured connections of a namespace
// need. It runs inside that namespace. A namespace without IPv6 gets along
// without; anything else that is missing is an error.
func openListeners(ctx context.Context, ports sockmap.Ports, mark control) (_ *listeners, err error) {
	l := &listeners{}
	defer func() {
		if err != nil {
			l.Close()
		}
	}()
	for _, loopback := range []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()} {
		if err := l.openOn(ctx, loopback, ports, mark); err != nil {
			if loopback.Is6() && errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.EAFNOSUPPORT) {
				continue
			}
			return nil, err
		}
	}
	if ports.InboundPlain != 0 {
		if l.plain, err = listenTCP(ctx, fmt.Sprintf(":%d", ports.InboundPlain), mark); err != nil {
			return nil, err
		}
	}
	return l, nil
}

func (l *listeners) openOn(ctx context.Context, loopback netip.Addr, ports sockmap.Ports, mark control) error {
	out, err := listenTCP(ctx, netip.AddrPortFrom(loopback, ports.Outbound).String(), mark)
	if err != nil {
		return err
	}
	l.outbound = append(l.outbound, out)
	if ports.DNS == 0 {
		return nil
	}
	dns := netip.AddrPortFrom(loopback, ports.DNS).String()
	tcp, err := listenTCP(ctx, dns, mark)
	if err != nil {
		return err
	}
	l.dnsTCP = append(l.dnsTCP, tcp)
	config := net.ListenConfig{Control: mark}
	udp, err := config.ListenPacket(ctx, "udp", dns)
	if err != nil {
		return fmt.Errorf("listen for DNS: %w", err)
	}
	l.dnsUDP = append(l.dnsUDP, udp)
	return nil
}

// listenTCP opens a listener without MPTCP: an MPTCP socket can't be steered to
// nor spliced.
func listenTCP(ctx context.Context, address string, mark control) (*net.TCPListener, error) {
	config := net.ListenConfig{Control: mark}
	config.SetMultipathTCP(false)
	ln, err := config.Listen(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	return ln.(*net.TCPListener), nil
}

// Close closes every listener that is open.
func (l *listeners) Close() {
	for _, ln := range l.outbound {
		ln.Close()
	}
	if l.plain != nil {
		l.plain.Close()
	}
	for _, ln := range l.dnsTCP {
		ln.Close()
	}
	for _, pc := range l.dnsUDP {
		pc.Close()
	}
}

// withFD calls f with the descriptor of a listener, which stays the
// listener's.
func withFD(c syscall.Conn, f func(fd int) error) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	if err := raw.Control(func(fd uintptr) { inner = f(int(fd)) }); err != nil {
		return err
	}
	return inner
}
