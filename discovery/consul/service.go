// SPDX-License-Identifier: Apache-2.0

package consul

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/meshproxy/meshproxy/discovery/mesh"
)

// chainKey is a service that workloads dial.
type chainKey struct {
	name       mesh.Name
	datacenter string // empty: the agent's
	// gateway is how some upstreams want it reached elsewhere; empty: as all
	// that dial it by its name.
	gateway string
}

// shared is the chain of a service under its own name.
func (k chainKey) shared() bool { return k.datacenter == "" && k.gateway == "" }

// meshName is the service's within the mesh. Consul allows no "@" and no "~" in
// names of its own that DNS can ask for.
func (k chainKey) meshName() mesh.Name {
	n := k.name.Canonical()
	if k.datacenter != "" {
		n.Name += "@" + k.datacenter
	}
	if k.gateway != "" {
		n.Name += "~" + k.gateway
	}
	return n
}

// service is what a chain comes to for connections. Requests are another
// matter: see routing.
func (x *translation) service(k chainKey, c *chain) (*mesh.Service, []string) {
	s := &mesh.Service{
		Name:      k.meshName(),
		Ports:     []mesh.Port{{Protocol: protocol(c.Protocol)}},
		Hostnames: x.hostnames(k),
	}
	legs, resolver, problem := x.legs(c)
	if problem != "" {
		return s, []string{fmt.Sprintf("service %s: %s", s.Name, problem)}
	}
	var warnings []string
	for _, l := range legs {
		list, w := x.endpoints(l)
		s.Endpoints = append(s.Endpoints, list...)
		for _, text := range w {
			warnings = append(warnings, fmt.Sprintf("service %s: %s", s.Name, text))
		}
	}
	if resolver != nil {
		s.ConnectTimeout = resolver.Resolver.ConnectTimeout.duration()
		s.Balance = balanceOf(resolver.LoadBalancer)
	}
	if k.gateway == "" {
		s.VirtualIPs = x.virtualIPs(c)
	}
	s.Endpoints = distinct(s.Endpoints)
	s.Routing = x.routing(c)
	return s, warnings
}

func protocol(p string) mesh.Protocol {
	switch p {
	case "http", "http2", "grpc":
		return mesh.Protocol(p)
	}
	return mesh.ProtocolTCP
}

// balanceOf is the policy for connections. What hashes requests has no meaning
// for them.
func balanceOf(lb *loadBalancer) mesh.Balance {
	if lb == nil {
		return ""
	}
	switch b := mesh.Balance(lb.Policy); b {
	case mesh.BalanceLeastRequest, mesh.BalanceRoundRobin, mesh.BalanceRandom:
		return b
	}
	return ""
}

// legs are the targets of connections to a chain: those of its resolver, in
// the order of failover, and with a splitter those of each split by its share.
// Of a router's routes, the last one is the one that is about everything.
func (x *translation) legs(c *chain) (legs []leg, resolver *chainNode, problem string) {
	n := c.Nodes[c.StartNode]
	if n != nil && n.Type == nodeRouter && len(n.Routes) > 0 {
		n = c.Nodes[n.Routes[len(n.Routes)-1].NextNode]
	}
	switch {
	case n == nil:
		return nil, nil, "its chain is incomplete"
	case n.Type == nodeResolver && n.Resolver != nil:
		return x.failover(c, n, 0), n, ""
	case n.Type == nodeSplitter:
		for _, split := range n.Splits {
			next := c.Nodes[split.NextNode]
			if next == nil || next.Resolver == nil || split.Weight <= 0 {
				continue
			}
			legs = append(legs, x.available(x.failover(c, next, hundredths(split.Weight)))...)
			resolver = cmp.Or(resolver, next)
		}
		return legs, resolver, ""
	}
	return nil, nil, fmt.Sprintf("its chain begins with a %s", n.Type)
}

// hundredths turns percents into hundredths of them.
func hundredths(weight float64) uint32 { return uint32(weight*100 + 0.5) }

// failover are the targets of a resolver in their order.
func (x *translation) failover(c *chain, n *chainNode, share uint32) (legs []leg) {
	add := func(id string) {
		if t := c.Targets[id]; t != nil {
			legs = append(legs, leg{chainTarget: t, priority: uint32(len(legs)), share: share})
		}
	}
	add(n.Resolver.Target)
	if n.Resolver.Failover != nil {
		for _, id := range n.Resolver.Failover.Targets {
			add(id)
		}
	}
	return legs
}

// available is the first leg that has a healthy endpoint: shares and
// priorities of several splits don't mix, so for each split failover follows
// the health in the catalog.
func (x *translation) available(legs []leg) []leg {
	for i := range legs {
		legs[i].priority = 0
		list, _ := x.endpoints(legs[i])
		if slices.ContainsFunc(list, func(e *mesh.Endpoint) bool { return e.Health != mesh.HealthUnhealthy }) {
			return legs[i : i+1]
		}
	}
	return legs[:min(1, len(legs))]
}

// virtualIPs are the chain's; one that was given out after the chain was
// compiled stands in the rows.
func (x *translation) virtualIPs(c *chain) (out []netip.Addr) {
	for _, text := range slices.Concat(c.AutoVirtualIPs, c.ManualVirtualIPs) {
		if a, err := netip.ParseAddr(text); err == nil && !slices.Contains(out, a.Unmap()) {
			out = append(out, a.Unmap())
		}
	}
	if len(out) > 0 || c.Datacenter != x.home.datacenter {
		return out
	}
	own := targetKey{service: c.ServiceName, namespace: c.Namespace, partition: c.Partition, datacenter: c.Datacenter}
	for _, in := range x.instances(own) {
		if in.vip.IsValid() {
			return []netip.Addr{in.vip}
		}
	}
	return nil
}

// hostnames are the names that Consul's DNS has for a service, and that lead
// to an address. (developer.hashicorp.com/consul/docs/services/discovery/dns-static-lookups)
func (x *translation) hostnames(k chainKey) []string {
	n, d := k.name.Canonical(), x.domain
	if d == "" || k.gateway != "" || k.datacenter != "" && through(x.gateways[k.name]) {
		return nil
	}
	dc := cmp.Or(k.datacenter, x.home.datacenter)
	if k.datacenter != "" && k.datacenter != x.home.datacenter {
		return []string{n.Name + ".service." + dc + "." + d}
	}
	if n.Namespace != mesh.DefaultNamespace {
		return []string{
			n.Name + ".virtual." + n.Namespace + ".ns." + d,
			n.Name + ".service." + n.Namespace + ".ns." + dc + ".dc." + d,
			n.Name + ".service." + n.Namespace + "." + dc + "." + d,
		}
	}
	return []string{
		n.Name + ".virtual." + d,
		n.Name + ".service." + d,
		n.Name + ".service." + dc + "." + d,
		n.Name + ".service." + dc + ".dc." + d,
	}
}
