// SPDX-License-Identifier: Apache-2.0

package node

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/meshproxy/meshproxy/discovery/mesh"
)

// forwarded is the header that tells the other node who the client is, in the
// form that ztunnel uses: RFC 7239, with an address and port in quotes.
func forwarded(client netip.AddrPort, service mesh.Name) string {
	return `for="` + client.String() + `";host=` + service.Name
}

// maxForwarded bounds the header that is read.
const maxForwarded = 256

// forwardedFor reads the client from the header. The peer that sent it has
// proven its identity and vouches for it; what is malformed is ignored.
func forwardedFor(header string) (netip.AddrPort, bool) {
	if header == "" || len(header) > maxForwarded {
		return netip.AddrPort{}, false
	}
	// Only the first element: the hop next to the client added it.
	first, _, _ := strings.Cut(header, ",")
	for pair := range strings.SplitSeq(first, ";") {
		key, value, ok := strings.Cut(strings.TrimSpace(pair), "=")
		if !ok || !strings.EqualFold(key, "for") {
			continue
		}
		value = strings.Trim(value, `"`)
		if ap, err := netip.ParseAddrPort(value); err == nil && usable(ap.Addr()) {
			return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()), true
		}
		return netip.AddrPort{}, false
	}
	return netip.AddrPort{}, false
}

// speaksFor takes what the peer of a tunnel says about its client. Whoever holds
// the key of a workload, and not only a node proxy, can open a tunnel as that
// workload; so it is proof only where an operator has said that node proxies are
// there. Where nobody has said where they are, the application is shown the
// address as claimed, and policy takes it for what it is.
func (s *inbound) speaksFor(header string, nodes []netip.Prefix) {
	client, ok := forwardedFor(header)
	switch {
	case !ok:
	case believed(nodes, s.client.Addr(), client.Addr()):
		s.client = client
	case len(nodes) == 0:
		s.client, s.speaker = client, s.client
	}
}

// believed reports whether the peer of a tunnel may speak for a client. Everybody
// may speak for his own address, as ztunnel does, which dials from the client's.
func believed(nodes []netip.Prefix, peer, client netip.Addr) bool {
	peer = peer.Unmap()
	return peer == client.Unmap() || slices.ContainsFunc(nodes, func(p netip.Prefix) bool { return p.Contains(peer) })
}

// usable: an address that a server may be shown as its client's. Loopback is
// not: applications grant it more than others.
func usable(a netip.Addr) bool {
	a = a.Unmap()
	return a.IsValid() && a.Zone() == "" && !a.IsLoopback() && !a.IsUnspecified() && !a.IsMulticast()
}

// baggage is what ztunnel sends along about the source workload (W3C Baggage).
func baggage(source mesh.Name) string {
	ns := source.Namespace
	if ns == "" {
		ns = mesh.DefaultNamespace
	}
	return "k8s.namespace.name=" + token(ns) + ",service.name=" + token(source.Name)
}

// token keeps what a baggage value may hold unescaped; names have little else.
func token(s string) string {
	return strings.Map(func(r rune) rune {
		if r > ' ' && r < 0x7f && !strings.ContainsRune(`",;\=%`, r) {
			return r
		}
		return '_'
	}, s)
}

// baggageWorkload reads the source workload's name from the header, for
// telemetry only; nothing is decided by it.
func baggageWorkload(header string) string {
	if len(header) > 4*maxForwarded {
		return ""
	}
	var n mesh.Name
	for member := range strings.SplitSeq(header, ",") {
		key, value, _ := strings.Cut(strings.TrimSpace(member), "=")
		value, _, _ = strings.Cut(value, ";")
		if token(value) != value || len(value) > 253 {
			continue
		}
		switch key {
		case "k8s.namespace.name":
			n.Namespace = value
		case "service.name":
			n.Name = value
		}
	}
	if n.Name == "" {
		return ""
	}
	return n.String()
}
