// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/meshproxy/meshproxy/discovery/mesh"
	"github.com/meshproxy/meshproxy/nodeproxy/admin/api"
)

// Services implements admin.Node.
func (n *Node) Services(context.Context) ([]api.Service, error) {
	s := n.views.load().snapshot
	list := make([]api.Service, 0, len(s.Services()))
	for _, svc := range s.Services() {
		v := api.Service{
			Name: svc.Name.String(), Source: svc.Source, Hostnames: svc.Hostnames,
			Balance: string(svc.Balance), VirtualIPs: texts(svc.VirtualIPs),
		}
		if v.Balance == "" {
			v.Balance = string(mesh.BalanceLeastRequest)
		}
		for _, p := range svc.Ports {
			v.Ports = append(v.Ports, api.Port{Name: p.Name, Port: p.Port, Protocol: string(p.Protocol)})
		}
		for _, e := range svc.Endpoints {
			v.Endpoints = append(v.Endpoints, n.endpointView(e))
		}
		n.balanceView(svc, v.Endpoints)
		list = append(list, v)
	}
	return list, nil
}

func texts(addrs []netip.Addr) (list []string) {
	for _, a := range addrs {
		list = append(list, a.String())
	}
	return list
}

func (n *Node) endpointView(e *mesh.Endpoint) api.Endpoint {
	v := api.Endpoint{
		Address: e.Address.String(), Ports: e.Ports, Node: e.Node, Local: e.Node != "" && e.Node == n.name,
		Workload: display(e.Workload), Identity: idString(e.Identity), Transport: string(e.Transport),
		Zone: e.Locality.Zone, Weight: max(1, e.Weight), Health: healthText(e.Health),
	}
	if e.Tunnel.IsValid() {
		v.Tunnel = e.Tunnel.String()
	}
	return v
}

func healthText(h mesh.Health) string {
	switch h {
	case mesh.HealthHealthy:
		return api.HealthHealthy
	case mesh.HealthUnhealthy:
		return api.HealthUnhealthy
	case mesh.HealthDraining:
		return api.HealthDraining
	default:
		return api.HealthUnknown
	}
}

// Workloads implements admin.Node.
func (n *Node) Workloads(context.Context) ([]api.Workload, error) {
	v := n.views.load()
	leaves := make(map[string]int)
	sum := n.provider.Summary()
	for i, l := range sum.Leaves {
		leaves[l.Identity.String()] = i
	}
	off := n.bypassed.all()
	ports, err := n.capture.GuardedPorts()
	if err != nil {
		return nil, err
	}
	refused := n.refusedByWorkload()
	cgroups := n.cgroups.cgroupsOf(v.snapshot.Workloads())
	list := make([]api.Workload, 0, len(v.snapshot.Workloads()))
	for _, w := range v.snapshot.Workloads() {
		a := api.Workload{
			Name: w.Name.String(), Source: w.Source, Identity: idString(w.Identity),
			Cgroups: cgroups[w.Canonical()], NetNS: w.NetNS,
			Inbound: string(w.Inbound), InboundLocal: string(w.InboundLocal), Egress: string(w.Egress),
			OnProxyDown: string(w.OnProxyDown), Bypass: w.Bypass || off[w.Canonical()],
			Ports: ports[w.Canonical()], Refused: refused[w.Name.String()],
		}
		if ns := n.namespaces.of(w.Name); a.NetNS == "" && ns != nil && !ns.own {
			a.NetNS = fmt.Sprintf("cookie %d", ns.cookie)
		}
		for _, sel := range w.Selectors {
			a.Match = append(a.Match, selectorText(sel))
		}
		for _, up := range w.Upstreams {
			a.Upstreams = append(a.Upstreams, api.Upstream{Listen: up.Listen.String(), Service: up.Service.String(), Port: up.Port})
		}
		switch {
		case w.Bypass:
			a.BypassCause = "configuration"
		case a.Bypass:
			a.BypassCause = "command"
		}
		if i, ok := leaves[a.Identity]; ok {
			a.LeafExpires = sum.Leaves[i].NotAfter
		} else if n.leavesAreGiven() {
			a.LeafError = "no leaf"
		}
		if l := v.limits[w.Canonical()]; l != nil {
			a.Active = l.Connections()
		}
		a.MaxConnections = w.MaxConnections
		if a.MaxConnections == 0 {
			a.MaxConnections = n.settingsFile().Defaults.MaxConnectionsPerWorkload
		}
		list = append(list, a)
	}
	return list, nil
}

func selectorText(s mesh.Selector) string {
	kind := map[mesh.SelectorKind]string{
		mesh.SelectCgroup: "cgroup", mesh.SelectCgroupPrefix: "cgroup prefix",
		mesh.SelectUnit: "unit", mesh.SelectUser: "user",
	}[s.Kind]
	return kind + " " + s.Value
}

func (n *Node) refusedByWorkload() map[string]uint64 {
	counts := make(map[string]uint64)
	stats, err := n.capture.Stats()
	if err != nil {
		return counts
	}
	for _, r := range stats.Refusals {
		counts[display(r.Workload)] += r.Count
	}
	return counts
}

// Config implements admin.Node.
func (n *Node) Config(context.Context) (api.Config, error) {
	c := n.settingsFile()
	n.reloads.mu.Lock()
	answer := api.Config{File: c.File, LoadedAt: n.reloads.loadedAt}
	n.reloads.mu.Unlock()
	for _, s := range c.Settings() {
		answer.Settings = append(answer.Settings, api.Setting{Key: s.Key, Value: s.Value, Origin: s.Origin})
	}
	return answer, nil
}

// CA implements admin.Node.
func (n *Node) CA(context.Context) (api.CA, error) {
	sum := n.provider.Summary()
	answer := api.CA{Provider: sum.Provider, TrustDomain: n.trustDomain().Name(), Problems: sum.Problems}
	for _, r := range sum.Roots {
		answer.Roots = append(answer.Roots, api.Root{
			TrustDomain: r.TrustDomain, Subject: r.Subject, Fingerprint: r.Fingerprint, NotBefore: r.NotBefore, NotAfter: r.NotAfter,
			State: r.State, SignsFrom: r.SignsFrom, TrustedUntil: r.TrustedUntil,
		})
	}
	workloads := make(map[string]string)
	for _, w := range n.views.load().snapshot.Workloads() {
		workloads[w.Identity.String()] = w.Name.String()
	}
	for _, l := range sum.Leaves {
		answer.Leaves = append(answer.Leaves, api.Leaf{
			Workload: workloads[l.Identity.String()], Identity: l.Identity.String(), NotBefore: l.NotBefore, NotAfter: l.NotAfter,
			Serial: l.Serial, Issuer: l.Issuer,
		})
	}
	return answer, nil
}
