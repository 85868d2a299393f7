// SPDX-License-Identifier: Apache-2.0

package consul

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/meshproxy/meshproxy/discovery/mesh"
)

// upstreams are the explicit ones of a service: those of its proxies'
// registrations with the local agent, and the configured ones, which win.
func (r *run) upstreams(n mesh.Name, instances []*local, configured []Upstream) (out []Upstream, warnings []string) {
	taken := make(map[netip.AddrPort]bool)
	add := func(u Upstream, of string) {
		if taken[u.Listen] {
			return
		}
		taken[u.Listen] = true
		u.gateway = cmp.Or(u.gateway, r.gateway(n, u.Service))
		if u.elsewhere(r.home) && through(u.gateway) {
			warnings = append(warnings, fmt.Sprintf("upstream %s of %s is refused: datacenter %s is reached by mesh gateways", u.Service.Name, of, u.Datacenter))
			return
		}
		out = append(out, u)
	}
	for _, u := range configured {
		u.Service.Namespace = cmp.Or(u.Service.Namespace, n.Namespace)
		add(u, n.String())
	}
	for _, id := range slices.Sorted(maps.Keys(r.all)) {
		p := r.all[id]
		if p.Kind != kindConnectProxy || p.Proxy == nil || !frontsAny(p, instances) {
			continue
		}
		for i := range p.Proxy.Upstreams {
			registered := &p.Proxy.Upstreams[i]
			if registered.LocalBindPort == 0 && registered.LocalBindSocketPath == "" {
				continue // the agent's note of what an entry says about an upstream
			}
			u, why := upstreamOf(registered, p, r.home)
			if why != "" {
				warnings = append(warnings, fmt.Sprintf("upstream %s of %s is refused: %s", registered.DestinationName, id, why))
				continue
			}
			add(u, id)
		}
	}
	return out, warnings
}

func frontsAny(p *agentService, instances []*local) bool {
	return slices.ContainsFunc(instances, func(l *local) bool {
		return p.Proxy.DestinationServiceID == l.ID ||
			p.Proxy.DestinationServiceID == "" && p.Proxy.DestinationServiceName == l.Service
	})
}

// upstreamOf reads an upstream of a proxy's registration.
func upstreamOf(u *agentUpstream, p *agentService, home location) (Upstream, string) {
	switch {
	case u.DestinationType != "" && u.DestinationType != "service":
		return Upstream{}, "its destination is a " + strings.ReplaceAll(u.DestinationType, "_", " ") + ", not a service"
	case u.DestinationPeer != "":
		return Upstream{}, "it is a service of cluster peer " + u.DestinationPeer
	case u.DestinationPartition != "" && u.DestinationPartition != home.partition:
		return Upstream{}, "it is in partition " + u.DestinationPartition
	case u.LocalBindSocketPath != "":
		return Upstream{}, "it listens on unix socket " + u.LocalBindSocketPath
	}
	address, err := netip.ParseAddr(cmp.Or(u.LocalBindAddress, "127.0.0.1"))
	if err != nil {
		return Upstream{}, fmt.Sprintf("its local_bind_address %q is no IP address", u.LocalBindAddress)
	}
	if address.IsUnspecified() {
		// The application dials loopback; nobody else may use it.
		address = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	return Upstream{
		Listen: netip.AddrPortFrom(address, asPort(u.LocalBindPort)),
		// Without a namespace it is in the proxy's (agent/proxycfg/connect_proxy.go).
		Service:    mesh.Name{Namespace: cmp.Or(u.DestinationNamespace, p.Namespace), Name: u.DestinationName}.Canonical(),
		Datacenter: u.Datacenter,
		gateway:    u.MeshGateway.Mode,
	}, ""
}

// elsewhere reports whether an upstream is asked for in another datacenter.
func (u *Upstream) elsewhere(home location) bool {
	return u.Datacenter != "" && u.Datacenter != home.datacenter
}

// key is the chain that an upstream leads to: that of the service's name if it
// is reached in the same way.
func (x *translation) key(u *Upstream) chainKey {
	k := chainKey{name: u.Service.Canonical(), gateway: u.gateway}
	if u.elsewhere(x.home) {
		k.datacenter = u.Datacenter
		return k
	}
	switch shared := x.gateways[k.name]; {
	case k.gateway == shared:
		k.gateway = ""
	case k.gateway == "":
		k.gateway = gatewayDefault
	}
	return k
}
