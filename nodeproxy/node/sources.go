// SPDX-License-Identifier: Apache-2.0

package node

import (
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/meshproxy/meshproxy/sockmap/netns"
)

// sources are what a socket of a namespace has as its address towards other
// nodes. They change: a node that starts before the network has none yet.
type sources struct {
	v4, v6 atomic.Pointer[netip.Addr]
	// all are the addresses of the namespace's interfaces.
	all atomic.Pointer[[]netip.Prefix]
}

// has reports whether an address is one of the namespace's own; each has
// loopback, which tells nothing.
func (n *namespace) has(a netip.Addr) bool {
	all := n.sources.all.Load()
	return all != nil && !a.IsLoopback() && slices.ContainsFunc(*all, func(p netip.Prefix) bool { return p.Addr() == a.Unmap() })
}

// towards returns the address of a's family, invalid when there is none.
func (s *sources) towards(a netip.Addr) netip.Addr {
	of := &s.v6
	if a.Is4() {
		of = &s.v4
	}
	if found := of.Load(); found != nil {
		return *found
	}
	return netip.Addr{}
}

// refreshSources finds the addresses anew. Where that fails, those before stay.
func (n *namespace) refreshSources(log *slog.Logger) {
	for _, look := range []struct {
		to   string
		keep *atomic.Pointer[netip.Addr]
	}{
		{"192.0.2.1:9", &n.sources.v4},
		{"[2001:db8::1]:9", &n.sources.v6},
	} {
		found, err := n.sourceAddress(netip.MustParseAddrPort(look.to))
		if err != nil {
			log.Debug("find own address", "netns", n.cookie, "error", err)
			continue
		}
		look.keep.Store(&found)
	}
	all, err := netns.Addresses(n.way, n.fd())
	if err != nil {
		log.Debug("list own addresses", "netns", n.cookie, "error", err)
		return
	}
	n.sources.all.Store(&all)
}

// sourceAddress is the address that the kernel chooses towards another network
// (RFC 5737 and 3849: nothing is sent there, connecting UDP sends nothing);
// without a route, the first global one of an interface.
func (n *namespace) sourceAddress(towards netip.AddrPort) (netip.Addr, error) {
	a, err := n.chosenAddress(towards)
	if err == nil {
		return a, nil
	}
	addrs, err := netns.Addresses(n.way, n.fd())
	if err != nil {
		return netip.Addr{}, err
	}
	for _, p := range addrs {
		if p.Addr().Is4() == towards.Addr().Is4() && p.Addr().IsGlobalUnicast() {
			return p.Addr(), nil
		}
	}
	return netip.Addr{}, nil
}

func (n *namespace) chosenAddress(towards netip.AddrPort) (netip.Addr, error) {
	fd, err := n.way.Socket(n.fd(), familyOf(towards.Addr()), unix.SOCK_DGRAM, 0)
	if err != nil {
		return netip.Addr{}, err
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, sockaddr(towards)); err != nil {
		return netip.Addr{}, fmt.Errorf("ask for a route: %w", err)
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("read own address: %w", err)
	}
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrFrom4(sa.Addr), nil
	case *unix.SockaddrInet6:
		return netip.AddrFrom16(sa.Addr), nil
	}
	return netip.Addr{}, fmt.Errorf("own address is a %T", sa)
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}
