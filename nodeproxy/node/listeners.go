// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"net"
	"net/netip"

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

// opener opens the listeners of one network namespace.
type opener struct {
	*sockets
	scope string
	ports sockmap.Ports
	in    binder
}

func (o *opener) tcp(ctx context.Context, at netip.AddrPort) (*net.TCPListener, error) {
	return o.keepTCP(o.scope, listenAddress(at), o.in.mark, func() (*net.TCPListener, error) { return o.in.listenTCP(ctx, at) })
}

// open opens the listeners that captured connections of a namespace need. A
// namespace without IPv6 gets along without; anything else that is missing is an
// error.
func (o *opener) open(ctx context.Context) (_ *listeners, err error) {
	l := &listeners{}
	defer func() {
		if err != nil {
			l.Close()
			o.forget(o.scope)
		}
	}()
	for _, loopback := range []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()} {
		if err := o.openOn(ctx, l, loopback); err != nil {
			if loopback.Is6() && errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.EAFNOSUPPORT) {
				continue
			}
			return nil, err
		}
	}
	if o.ports.InboundPlain != 0 {
		if l.plain, err = o.tcp(ctx, netip.AddrPortFrom(netip.Addr{}, o.ports.InboundPlain)); err != nil {
			return nil, err
		}
	}
	return l, nil
}

func (o *opener) openOn(ctx context.Context, l *listeners, loopback netip.Addr) error {
	out, err := o.tcp(ctx, netip.AddrPortFrom(loopback, o.ports.Outbound))
	if err != nil {
		return err
	}
	l.outbound = append(l.outbound, out)
	if o.ports.DNS == 0 {
		return nil
	}
	dns := netip.AddrPortFrom(loopback, o.ports.DNS)
	tcp, err := o.tcp(ctx, dns)
	if err != nil {
		return err
	}
	l.dnsTCP = append(l.dnsTCP, tcp)
	udp, err := o.keepUDP(o.scope, dns.String(), o.in.mark, func() (net.PacketConn, error) { return o.in.listenUDP(ctx, dns) })
	if err != nil {
		return err
	}
	l.dnsUDP = append(l.dnsUDP, udp)
	return nil
}

// closeAccepting closes the listeners of which the loops have duplicates.
func (l *listeners) closeAccepting() {
	for _, ln := range l.outbound {
		ln.Close()
	}
	if l.plain != nil {
		l.plain.Close()
	}
}

// Close closes every listener that is open.
func (l *listeners) Close() {
	l.closeAccepting()
	for _, ln := range l.dnsTCP {
		ln.Close()
	}
	for _, pc := range l.dnsUDP {
		pc.Close()
	}
}
