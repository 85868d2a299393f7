// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strings"
)

// claim is an endpoint of a service at an address and port. Several services
// may rightly claim the same one: they select the same application.
type claim struct {
	slot     slot
	port     uint16 // index into the service's ports
	endpoint *Endpoint
}

func cmpString(a, b string) int { return strings.Compare(a, b) }

// index moves what the service in slot at claims from was to is; nil stands
// for nothing. While it runs the slot holds a service of that name and source.
func (b *build) index(at slot, was, is *Service) {
	var none Service
	if was == nil {
		was = &none
	}
	if is == nil {
		is = &none
	}
	if !slices.Equal(was.VirtualIPs, is.VirtualIPs) {
		for _, a := range was.VirtualIPs {
			b.unclaimVIP(at, a)
		}
		for _, a := range is.VirtualIPs {
			b.claimVIP(at, a)
		}
	}
	if !slices.Equal(was.Hostnames, is.Hostnames) {
		for _, h := range was.Hostnames {
			b.unclaimHost(at, h)
		}
		for _, h := range is.Hostnames {
			b.claimHost(at, h)
		}
	}
	b.indexEndpoints(at, was, is)
}

func (b *build) indexEndpoints(at slot, was, is *Service) {
	b.endpoints += len(is.Endpoints) - len(was.Endpoints)
	if len(b.local[at]) > 0 {
		// Local targets point to the service, so they follow it even if none
		// of its endpoints changed.
		b.ownLocalMap()
	}
	merge(was.Endpoints, is.Endpoints, CompareEndpoints, func(old, now *Endpoint) {
		if old != nil {
			b.eachPort(was, old, func(k addrKey, i uint16) { b.unclaimAddr(k, claim{at, i, old}) })
			b.moveLocal(at, old, false)
		}
		if now != nil {
			b.eachPort(is, now, func(k addrKey, i uint16) { b.claimAddr(k, claim{at, i, now}) })
			b.moveLocal(at, now, true)
		}
	})
}

// eachPort calls f for the ports of the service that the endpoint serves.
func (b *build) eachPort(s *Service, e *Endpoint, f func(k addrKey, index uint16)) {
	for i := range min(len(e.Ports), len(s.Ports)) {
		if e.addressed(i) {
			f(keyOf(e.Address, e.Ports[i]), uint16(i))
		}
	}
}

// moveLocal adds or removes an endpoint of this node.
func (b *build) moveLocal(at slot, e *Endpoint, add bool) {
	if e.Node == "" || e.Node != b.localNode {
		return
	}
	b.ownLocalMap()
	list := without(b.local[at], e)
	if add {
		list = append(slices.Clip(list), e)
	}
	if len(list) == 0 {
		delete(b.local, at)
		return
	}
	b.local[at] = list
}

func (b *build) ownLocalMap() {
	if b.ownLocal {
		return
	}
	b.local = maps.Clone(b.local)
	if b.local == nil {
		b.local = make(map[slot][]*Endpoint)
	}
	b.ownLocal = true
}

// CompareEndpoints orders endpoints by address, then ports: the order that a
// Service's endpoints are in.
func CompareEndpoints(a, b *Endpoint) int {
	if c := a.Address.Compare(b.Address); c != 0 {
		return c
	}
	return slices.Compare(a.Ports, b.Ports)
}

// before orders the claimants of one thing: the first one has it.
func (b *build) before(x, y slot) int {
	sx, sy := b.slots.get(x), b.slots.get(y)
	if c := cmp.Compare(b.rankOf(sx.Source), b.rankOf(sy.Source)); c != 0 {
		return c
	}
	return sx.Compare(sy.Name)
}

func (b *build) rankOf(source string) int {
	if r, ok := b.rank[source]; ok {
		return r
	}
	return len(b.rank)
}

// The lists in the indexes are shared with older snapshots, so they are never
// changed in place.

func (b *build) claimVIP(at slot, a netip.Addr) {
	k := keyOf(a, 0)
	claimants, _ := b.vips.get(k)
	claimants = insert(claimants, at, b.before)
	b.vips.set(k, claimants)
	b.judge(conflictKey{kind: conflictVIP, addr: k}, claimants)
}

func (b *build) unclaimVIP(at slot, a netip.Addr) {
	k := keyOf(a, 0)
	claimants, _ := b.vips.get(k)
	claimants = without(claimants, at)
	setOrDelete(b.vips, k, claimants)
	b.judge(conflictKey{kind: conflictVIP, addr: k}, claimants)
}

func (b *build) claimHost(at slot, h string) {
	claimants, _ := b.hosts.get(h)
	claimants = insert(claimants, at, b.before)
	b.hosts.set(h, claimants)
	b.judge(conflictKey{kind: conflictHost, name: h}, claimants)
}

func (b *build) unclaimHost(at slot, h string) {
	claimants, _ := b.hosts.get(h)
	claimants = without(claimants, at)
	setOrDelete(b.hosts, h, claimants)
	b.judge(conflictKey{kind: conflictHost, name: h}, claimants)
}

func (b *build) claimAddr(k addrKey, c claim) {
	claims, _ := b.addrs.get(k)
	claims = insert(claims, c, b.beforeClaim)
	b.addrs.set(k, claims)
	b.judgeClaims(k, claims)
}

func (b *build) unclaimAddr(k addrKey, c claim) {
	claims, _ := b.addrs.get(k)
	claims = without(claims, c)
	setOrDelete(b.addrs, k, claims)
	b.judgeClaims(k, claims)
}

func (b *build) beforeClaim(x, y claim) int {
	if x.slot == y.slot {
		return cmp.Compare(x.port, y.port)
	}
	return b.before(x.slot, y.slot)
}

func insert[T any](list []T, v T, compare func(a, b T) int) []T {
	i, _ := slices.BinarySearchFunc(list, v, compare)
	out := make([]T, 0, len(list)+1)
	out = append(out, list[:i]...)
	out = append(out, v)
	return append(out, list[i:]...)
}

// without removes one v.
func without[T comparable](list []T, v T) []T {
	i := slices.Index(list, v)
	if i < 0 {
		return list
	}
	if len(list) == 1 {
		return nil
	}
	out := make([]T, 0, len(list)-1)
	out = append(out, list[:i]...)
	return append(out, list[i+1:]...)
}

func setOrDelete[K comparable, T any](e *tableEdit[K, []T], k K, list []T) {
	if len(list) == 0 {
		e.delete(k)
		return
	}
	e.set(k, list)
}
