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

// listeners are the proxy's own in one network namespace. Close closes all.
type listeners struct {
	outbound []*net.TCPListener // 127.0.0.1 and ::1
	plain    *net.TCPListener   // steered plaintext, any address
	dnsTCP   []net.Listener
	dnsUDP   []net.PacketConn
}

// openListeners opens the listeners that captured connections of a namespace
// need. A namespace without IPv6 gets along without; anything else that is
// missing is an error.
func openListeners(ctx context.Context, ports sockmap.Ports, in binder) (_ *listeners, err error) {
	l := &listeners{}
	defer func() {
		if err != nil {
			l.Close()
		}
	}()
	for _, loopback := range []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()} {
		if err := l.openOn(ctx, loopback, ports, in); err != nil {
			if loopback.Is6() && errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.EAFNOSUPPORT) {
				continue
			}
			return nil, err
		}
	}
	if ports.InboundPlain != 0 {
		if l.plain, err = in.listenTCP(ctx, netip.AddrPortFrom(netip.Addr{}, ports.InboundPlain)); err != nil {
			return nil, err
		}
	}
	return l, nil
}

func (l *listeners) openOn(ctx context.Context, loopback netip.Addr, ports sockmap.Ports, in binder) error {
	out, err := in.listenTCP(ctx, netip.AddrPortFrom(loopback, ports.Outbound))
	if err != nil {
		return err
	}
	l.outbound = append(l.outbound, out)
	if ports.DNS == 0 {
		return nil
	}
	dns := netip.AddrPortFrom(loopback, ports.DNS)
	tcp, err := in.listenTCP(ctx, dns)
	if err != nil {
		return err
	}
	l.dnsTCP = append(l.dnsTCP, tcp)
	udp, err := in.listenUDP(ctx, dns)
	if err != nil {
		return fmt.Errorf("listen for DNS: %w", err)
	}
	l.dnsUDP = append(l.dnsUDP, udp)
	return nil
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
