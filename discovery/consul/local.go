// SPDX-License-Identifier: Apache-2.0

package consul

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/meshproxy/meshproxy/discovery/consulagent"
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

// leaveOut takes out of the local services those that configuration, or else their
// registration, wants left alone.
func (r *run) leaveOut() (warnings []string) {
	for _, id := range slices.Sorted(maps.Keys(r.locals)) {
		l := r.locals[id]
		out, err := consulagent.LeftOut(l.Meta)
		if err != nil {
			warnings = append(warnings, fmt.Sprintf("service %s is in the mesh: %v", id, err))
		}
		if c := r.configured(l.name); out || c != nil && c.LeftOut {
			delete(r.locals, id)
		}
	}
	return warnings
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
		w.Upstreams = append(w.Upstreams, mesh.Upstream{Listen: u.Listen, Service: x.key(&u).meshName()})
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
