// SPDX-License-Identifier: Apache-2.0

package consul

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/meshproxy/meshproxy/discovery/mesh"
)

// translation is what translating chains needs beside them.
type translation struct {
	home        location
	self        mesh.Node
	trustDomain spiffeid.TrustDomain
	domain      string // Consul's DNS domain
	hbone       uint16 // this node's own port
	locals      map[string]*local
	gateways    map[mesh.Name]string // how services are reached by their names
	instances   func(targetKey) []instance
}

// leg is a target as a service reaches it.
type leg struct {
	*chainTarget
	priority uint32
	// share is the leg's of all connections, in hundredths of a percent; 0
	// where there is no split.
	share uint32
}

// endpoints are those of a leg. What cannot be reached is left out and named.
func (x *translation) endpoints(l leg) (out []*mesh.Endpoint, warnings []string) {
	if why := l.refused(x.home); why != "" {
		return nil, []string{fmt.Sprintf("target %s is refused: %s", l.ID, why)}
	}
	id, err := serviceID(x.trustDomain, l.Partition, l.Namespace, l.Datacenter, l.Service)
	if err != nil {
		return nil, []string{fmt.Sprintf("target %s is refused: %v", l.ID, err)}
	}
	seen := make(map[string]bool) // local services by id
	instances := x.instances(l.key())
	for i := range instances {
		in := &instances[i]
		e := &mesh.Endpoint{
			Node: in.node, Transport: mesh.TransportMTLS, Identity: id, SNI: l.SNI,
			Workload: mesh.Name{Namespace: cmp.Or(l.Namespace, standard), Name: l.Service},
			Locality: in.locality, Priority: l.priority,
		}
		e.Health, e.Weight = in.health(l.Subset.OnlyPassing)
		if here := x.locals[in.fronts]; in.node == x.home.node && l.Datacenter == x.home.datacenter && here != nil {
			if !seen[in.fronts] {
				seen[in.fronts] = true
				x.atHome(e, here)
				out = append(out, e)
			} else {
				// Two proxies in front of one application, as during a
				// migration: it is healthy if either row is.
				x.better(out, here, e.Health)
			}
			continue
		}
		if problem := x.elsewhere(e, in, l); problem != "" {
			warnings = append(warnings, fmt.Sprintf("instance %s of %s is left out: %s", in.id, l.Service, problem))
			continue
		}
		out = append(out, e)
	}
	if l.share > 0 {
		spread(out, l.share)
	}
	return out, warnings
}

// atHome turns e into the endpoint of a service of this node: no proxy is in
// between, whoever else's row says that it is reachable.
func (x *translation) atHome(e *mesh.Endpoint, s *local) {
	e.Node = x.self.Name
	e.Address, e.Ports = s.address, []uint16{s.port}
	e.Workload = s.name
	e.Transport, e.SNI = mesh.TransportHBONE, ""
	if x.self.Address.IsValid() {
		e.Tunnel = netip.AddrPortFrom(x.self.Address, x.hbone)
	}
}

func (x *translation) better(list []*mesh.Endpoint, s *local, h mesh.Health) {
	for _, e := range list {
		if e.Node == x.self.Name && e.Address == s.address && e.Ports[0] == s.port && e.Health == mesh.HealthUnhealthy {
			e.Health = h
		}
	}
}

// elsewhere fills in how an instance on another node is reached, or one of
// this node that no workload is.
func (x *translation) elsewhere(e *mesh.Endpoint, in *instance, l leg) (problem string) {
	address, port := in.address, in.port
	if l.Datacenter != x.home.datacenter {
		address, port = in.wan, in.wanPort
	}
	a, err := netip.ParseAddr(address)
	if err != nil {
		return fmt.Sprintf("its address %q is no IP address", address)
	}
	if port == 0 {
		return "it has no port"
	}
	if e.Node == x.self.Name {
		// A node of that name which is not this one, or a sidecar's service
		// that this node does not carry.
		e.Node = ""
	}
	e.Address, e.Ports = a.Unmap(), []uint16{port}
	e.Tunnel = netip.AddrPortFrom(a.Unmap(), port)
	if in.hbone != 0 && in.local != 0 {
		e.Ports = []uint16{in.local}
		e.Transport, e.SNI = mesh.TransportHBONE, ""
		e.Tunnel = netip.AddrPortFrom(a.Unmap(), in.hbone)
	}
	return ""
}

// spread scales the weights of a leg's endpoints so that together they get
// its share.
func spread(list []*mesh.Endpoint, share uint32) {
	var total uint64
	for _, e := range list {
		if e.Health != mesh.HealthUnhealthy {
			total += uint64(e.Weight)
		}
	}
	if total == 0 {
		return
	}
	const scale = 1000
	for _, e := range list {
		e.Weight = uint32(max(1, uint64(e.Weight)*uint64(share)*scale/total))
	}
}

// distinct sorts endpoints as the model wants them. Of those that are one and
// the same, such as an instance that is in a target and in its failover, the
// first priority stays; two rows behind one port of a node proxy share it.
func distinct(list []*mesh.Endpoint) []*mesh.Endpoint {
	slices.SortStableFunc(list, func(a, b *mesh.Endpoint) int {
		return cmp.Or(mesh.CompareEndpoints(a, b), cmp.Compare(a.Priority, b.Priority))
	})
	out := list[:0]
	for _, e := range list {
		last := len(out) - 1
		if last < 0 || mesh.CompareEndpoints(out[last], e) != 0 {
			out = append(out, e)
			continue
		}
		kept := out[last]
		switch {
		case kept.Priority != e.Priority || e.Health == mesh.HealthUnhealthy:
		case kept.Health == mesh.HealthUnhealthy:
			out[last] = e
		default:
			kept.Weight += e.Weight
		}
	}
	return slices.Clip(out)
}
