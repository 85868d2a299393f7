// SPDX-License-Identifier: Apache-2.0

package consul

import (
	"net/netip"

	"github.com/meshproxy/meshproxy/discovery/mesh"
)

// remembered are the endpoints that were healthy when this node last heard of
// them, in an earlier run.
type remembered map[rememberedKey]bool

// rememberedKey is what an endpoint and the instance that it came from have in
// common: the snapshot does not know Consul's ids.
type rememberedKey struct {
	service mesh.Name // the one behind a proxy
	address netip.AddrPort
}

// remember picks out of a snapshot, which may be nil, what this source gave.
func remember(last *mesh.BuildInput) remembered {
	m := make(remembered)
	if last == nil {
		return m
	}
	for _, s := range last.Services {
		if s.Source != Name {
			continue
		}
		for _, e := range s.Endpoints {
			if e.Health != mesh.HealthHealthy {
				continue
			}
			for _, port := range e.Ports {
				m[rememberedKey{e.Workload.Canonical(), netip.AddrPortFrom(e.Address, port)}] = true
			}
		}
	}
	return m
}

// healthy reports whether the instance was, wherever its endpoint says that it
// is: at its proxy, at its own port on a node that speaks hbone, at home.
func (m remembered) healthy(service mesh.Name, in *instance, here *local) bool {
	at := func(a netip.Addr, port uint16) bool {
		return port != 0 && m[rememberedKey{service.Canonical(), netip.AddrPortFrom(a.Unmap(), port)}]
	}
	if here != nil && at(here.address, here.port) {
		return true
	}
	for _, known := range []struct {
		address string
		port    uint16
	}{{in.address, in.port}, {in.wan, in.wanPort}} {
		if a, err := netip.ParseAddr(known.address); err == nil && (at(a, known.port) || at(a, in.local)) {
			return true
		}
	}
	return false
}
