// SPDX-License-Identifier: Apache-2.0

package node

import (
	"net/netip"
	"slices"

	"github.com/meshproxy/meshproxy/discovery/mesh"
	"github.com/meshproxy/meshproxy/sockmap"
)

// captureState is what the kernel is told of a snapshot. namespace returns the
// cookie of a workload's network namespace, 0 for the node's own. bypassed are
// the workloads that a command took out of the mesh.
func captureState(s *mesh.Snapshot, namespace func(mesh.Name) uint64, bypassed map[mesh.Name]bool) sockmap.State {
	var state sockmap.State
	ports := declaredPorts(s)
	for _, w := range s.Workloads() {
		k := sockmap.WorkloadOf(w)
		k.InboundPorts = ports[w.Canonical()]
		k.NetNS = namespace(w.Name)
		k.Bypass = k.Bypass || bypassed[w.Canonical()]
		state.Workloads = append(state.Workloads, k)
		if w.MTLSPort != 0 {
			state.OwnPorts = append(state.OwnPorts, w.MTLSPort)
		}
		for _, up := range w.Upstreams {
			// An upstream of an unknown service is captured all the same:
			// the proxy refuses it by name, where the application's own
			// port on loopback would answer in its place.
			state.Destinations = append(state.Destinations, sockmap.Destination{
				Workload: w.Name,
				Addr:     up.Listen,
				Service:  up.Service,
				Direct:   directTo(s.Service(up.Service), up.Port),
			})
		}
	}
	seen := make(map[netip.AddrPort]bool)
	for _, svc := range s.Services() {
		state.Destinations = appendVirtualIPs(state.Destinations, svc)
		state.Destinations = appendEndpoints(state.Destinations, svc, seen)
	}
	return state
}

// declaredPorts are the ports that services of this node have registered for
// each workload: protected before anybody listens on them.
func declaredPorts(s *mesh.Snapshot) map[mesh.Name][]uint16 {
	ports := make(map[mesh.Name][]uint16)
	for _, svc := range s.Services() {
		for _, e := range svc.Endpoints {
			if e.Node == "" || e.Node != s.Node().Name || e.Workload == (mesh.Name{}) {
				continue
			}
			name := e.Workload.Canonical()
			for _, p := range e.Ports {
				if p != 0 && !slices.Contains(ports[name], p) {
					ports[name] = append(ports[name], p)
				}
			}
		}
	}
	return ports
}

func appendVirtualIPs(list []sockmap.Destination, svc *mesh.Service) []sockmap.Destination {
	for _, vip := range svc.VirtualIPs {
		whole := sockmap.Destination{Addr: netip.AddrPortFrom(vip, 0), Service: svc.Name}
		if i := svc.PortIndex(0); i >= 0 {
			whole.AnyPort, whole.Direct = true, directTo(svc, 0)
		}
		list = append(list, whole)
		for _, p := range svc.Ports {
			if p.Port == 0 {
				continue
			}
			list = append(list, sockmap.Destination{
				Addr:    netip.AddrPortFrom(vip, p.Port),
				Service: svc.Name,
				Direct:  directTo(svc, p.Port),
			})
		}
	}
	return list
}

// appendEndpoints adds the endpoints' own addresses: a client that found them
// by other means is in the mesh as well. An address that two services share
// belongs to the first, as in mesh.Snapshot.Destination.
func appendEndpoints(list []sockmap.Destination, svc *mesh.Service, seen map[netip.AddrPort]bool) []sockmap.Destination {
	for _, e := range svc.Endpoints {
		for i := range e.Ports {
			at := e.AddrPort(i)
			if !e.Dialable(i) || seen[at] {
				continue
			}
			seen[at] = true
			list = append(list, sockmap.Destination{Addr: at, Service: svc.Name, Direct: at})
		}
	}
	return list
}

// directTo is where a connection to the service goes without the proxy
// (onProxyDown: direct): an endpoint of the same address family cannot be
// promised, so only the endpoint's health and place decide.
func directTo(svc *mesh.Service, port uint16) netip.AddrPort {
	if svc == nil {
		return netip.AddrPort{}
	}
	i := 0
	if port != 0 {
		i = svc.PortIndex(port)
	}
	if i < 0 || i >= len(svc.Ports) {
		return netip.AddrPort{}
	}
	var best *mesh.Endpoint
	for _, e := range svc.Endpoints {
		if e.Health == mesh.HealthUnhealthy || e.Health == mesh.HealthDraining || e.AddrPort(i) == e.Tunnel {
			continue
		}
		if best == nil || e.Priority < best.Priority || e.Transport == mesh.TransportNone && best.Transport != mesh.TransportNone {
			best = e
		}
	}
	if best == nil {
		return netip.AddrPort{}
	}
	return best.AddrPort(i)
}
