// SPDX-License-Identifier: Apache-2.0

package consul

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/meshproxy/meshproxy/discovery/mesh"
)

// local is an instance of a service that is registered with the local agent
// and that this node carries.
type local struct {
	agentService
	name    mesh.Name
	address netip.Addr
	port    uint16 // 0: it only has upstreams
}

// localServices picks out of what the agent has the instances that become
// workloads, by id, and says why others don't.
func localServices(all map[string]*agentService, address netip.Addr) (map[string]*local, []string) {
	out := make(map[string]*local)
	var warnings []string
	for _, id := range slices.Sorted(maps.Keys(all)) {
		s := all[id]
		switch {
		case s.Kind != kindTypical:
			continue
		case s.Connect != nil && s.Connect.Native:
			continue // it does mutual TLS itself
		case len(s.Ports) > 0:
			warnings = append(warnings, fmt.Sprintf("service %s has several ports, which Consul's mesh does not take; it is left alone", id))
			continue
		}
		l := &local{
			agentService: *s, address: address, port: asPort(s.Port),
			name: mesh.Name{Namespace: s.Namespace, Name: s.Service}.Canonical(),
		}
		if a, err := netip.ParseAddr(s.Address); err == nil && !a.IsLoopback() && !a.IsUnspecified() {
			l.address = a.Unmap()
		}
		out[id] = l
	}
	return out, warnings
}

// byName groups the instances by service, both in order.
func byName(locals map[string]*local) (names []mesh.Name, of map[mesh.Name][]*local) {
	of = make(map[mesh.Name][]*local)
	for _, id := range slices.Sorted(maps.Keys(locals)) {
		n := locals[id].name
		of[n] = append(of[n], locals[id])
	}
	return slices.SortedFunc(maps.Keys(of), mesh.Name.Compare), of
}

// upstreams are the explicit ones of a service: those of its proxies'
// registrations with the local agent, and the configured ones, which win.
func upstreams(instances []*local, all map[string]*agentService, configured []Upstream) (out []Upstream, warnings []string) {
	out = slices.Clone(configured)
	taken := make(map[netip.AddrPort]bool)
	for _, u := range configured {
		taken[u.Listen] = true
	}
	for _, id := range slices.Sorted(maps.Keys(all)) {
		p := all[id]
		if p.Kind != kindConnectProxy || p.Proxy == nil || !frontsAny(p, instances) {
			continue
		}
		for i := range p.Proxy.Upstreams {
			u, why := upstreamOf(&p.Proxy.Upstreams[i])
			switch {
			case why != "":
				warnings = append(warnings, fmt.Sprintf("upstream %s of %s is refused: %s", p.Proxy.Upstreams[i].DestinationName, id, why))
			case !taken[u.Listen]:
				taken[u.Listen] = true
				out = append(out, u)
			}
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

func upstreamOf(u *agentUpstream) (Upstream, string) {
	switch {
	case u.DestinationType != "" && u.DestinationType != "service":
		return Upstream{}, "its destination is a " + strings.ReplaceAll(u.DestinationType, "_", " ") + ", not a service"
	case u.DestinationPeer != "":
		return Upstream{}, "it is a service of cluster peer " + u.DestinationPeer
	case cmp.Or(u.DestinationPartition, standard) != standard:
		return Upstream{}, "it is in partition " + u.DestinationPartition
	case u.LocalBindSocketPath != "":
		return Upstream{}, "it listens on unix socket " + u.LocalBindSocketPath
	case u.LocalBindPort == 0:
		return Upstream{}, "it has no local_bind_port"
	case u.Datacenter != "" && u.MeshGateway.through():
		return Upstream{}, "datacenter " + u.Datacenter + " is reached by mesh gateways"
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
		Listen:     netip.AddrPortFrom(address, asPort(u.LocalBindPort)),
		Service:    mesh.Name{Namespace: u.DestinationNamespace, Name: u.DestinationName}.Canonical(),
		Datacenter: u.Datacenter,
	}, ""
}

// key is the chain that an upstream leads to.
func (u *Upstream) key(home location) chainKey {
	k := chainKey{name: u.Service.Canonical(), datacenter: u.Datacenter}
	if k.datacenter == home.datacenter {
		k.datacenter = ""
	}
	return k
}

// workload is what a local service is to this node.
func (x *translation) workload(n mesh.Name, base mesh.Workload, ups []Upstream, selectors []mesh.Selector) (*mesh.Workload, error) {
	w := base
	w.Name = n
	var err error
	if w.Identity, err = serviceID(x.trustDomain, x.home.partition, n.Namespace, x.home.datacenter, n.Name); err != nil {
		return nil, fmt.Errorf("make identity of service %s: %w", n, err)
	}
	w.Selectors = selectors
	for _, u := range ups {
		w.Upstreams = append(w.Upstreams, mesh.Upstream{Listen: u.Listen, Service: u.key(x.home).meshName()})
	}
	return &w, nil
}

// localEndpoints are the instances of a local service that its target does
// not have: not registered with a proxy yet, or not to be seen.
func (x *translation) localEndpoints(s *mesh.Service, instances []*local) (*mesh.Service, error) {
	var missing []*mesh.Endpoint
	for _, l := range instances {
		if l.port == 0 || !l.address.IsValid() || slices.ContainsFunc(s.Endpoints, func(e *mesh.Endpoint) bool {
			return e.Node == x.self.Name && e.Address == l.address && e.Ports[0] == l.port
		}) {
			continue
		}
		id, err := serviceID(x.trustDomain, x.home.partition, l.name.Namespace, x.home.datacenter, l.name.Name)
		if err != nil {
			return s, fmt.Errorf("make identity of service %s: %w", l.name, err)
		}
		// Nobody is sent there who asks for the service: Consul does not
		// list it. It takes what arrives.
		e := &mesh.Endpoint{Identity: id, Health: mesh.HealthUnhealthy, Weight: 1, Priority: 0}
		x.atHome(e, l)
		missing = append(missing, e)
	}
	if len(missing) == 0 {
		return s, nil
	}
	out := *s
	out.Endpoints = distinct(append(slices.Clone(s.Endpoints), missing...))
	return &out, nil
}

// trustDomainOf reads what /v1/agent/connect/ca/roots says.
func trustDomainOf(r *caRoots) (spiffeid.TrustDomain, error) {
	td, err := spiffeid.TrustDomainFromString(r.TrustDomain)
	if err != nil {
		return td, fmt.Errorf("read trust domain %q: %w", r.TrustDomain, err)
	}
	return td, nil
}
