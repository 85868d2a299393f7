// SPDX-License-Identifier: Apache-2.0

package node

import (
	"errors"

	"github.com/meshproxy/meshproxy/discovery/mesh"
	"github.com/meshproxy/meshproxy/nodeproxy/config"
	"github.com/meshproxy/meshproxy/nodeproxy/policy"
	"github.com/meshproxy/meshproxy/sockmap"
	"github.com/meshproxy/meshproxy/sockmap/sockdiag"
)

// Connections between workloads of this node need the proxy only for what the
// kernel can't do: an L7 protocol, a policy about addresses or to be audited, a
// limit of a workload's connections, an order among several endpoints of this
// node, one that listens on loopback only. What bounds the proxy's own work (the
// node's limit per workload, idle and connect timeouts, a drain) is not for them.

// direct adds to the kernel's state where workloads need no proxy.
type direct struct {
	view  *view
	node  string
	state *sockmap.State
	// namespace and reaches know the workloads' network namespaces.
	namespace func(mesh.Name) uint64
	reaches   func(source mesh.Name, l sockmap.Local) bool
	// usable says, per endpoint of a service, whether it is healthy.
	usable func(*mesh.Service) []bool
	judged map[sockmap.Local]bool
}

func (d *direct) add() {
	d.judged = make(map[sockmap.Local]bool)
	for i := range d.state.Destinations {
		d.lead(&d.state.Destinations[i])
	}
}

// kernelState is what the kernel is to do.
func (n *Node) kernelState(s *mesh.Snapshot) sockmap.State {
	state := captureState(s, n.namespaces.cookieOf, n.bypassed.all())
	if n.conf.Load().Splicing == config.SplicingAuto {
		d := direct{
			view: n.views.load(), node: n.name, state: &state,
			namespace: n.namespaces.cookieOf, reaches: n.reaches, usable: n.usable,
		}
		d.add()
	}
	return state
}

// lead fills in the endpoints of this node that a destination has.
func (d *direct) lead(to *sockmap.Destination) {
	s := d.view.snapshot
	found, ok := s.Destination(to.Workload, to.Addr)
	if !ok || found.PortIndex < 0 {
		return
	}
	if p := found.Service.Ports[found.PortIndex].Protocol; p != "" && p != mesh.ProtocolTCP || found.Service.Routing != nil {
		return
	}
	endpoints := found.Service.Endpoints
	if found.Endpoint != nil {
		endpoints = []*mesh.Endpoint{found.Endpoint}
	}
	ready := func(int) bool { return true } // who dials an endpoint wants that one
	if found.Endpoint == nil {
		ready = d.inTurn(found.Service)
	}
	var here []*mesh.Endpoint
	for i, e := range endpoints {
		if !ready(i) || !d.serves(e, found.PortIndex) {
			continue
		}
		here = append(here, e)
		if l, ok := d.local(e, found.PortIndex); ok {
			to.Locals = append(to.Locals, l)
		}
	}
	// Where one needs the proxy it would get less than its share.
	if len(to.Locals) < len(here) || !evenly(found.Service.Balance, here) {
		to.Locals = nil
		return
	}
	to.OnlyLocal = len(here) > 0 && len(here) == len(endpoints)
	for _, l := range to.Locals {
		d.judge(l)
	}
}

// evenly: the kernel takes one of several at random, each as likely as another,
// which is as good as the least loaded one (the balance of who asks for none)
// and neither an order nor weights.
func evenly(b mesh.Balance, endpoints []*mesh.Endpoint) bool {
	if len(endpoints) > 1 && b == mesh.BalanceRoundRobin || len(endpoints) > sockmap.MaxLocals {
		return false
	}
	for _, e := range endpoints {
		if max(1, e.Weight) != max(1, endpoints[0].Weight) {
			return false
		}
	}
	return true
}

// inTurn says which of a service's endpoints may be chosen now: those that are
// usable, while none that comes earlier in the order of failover is.
func (d *direct) inTurn(s *mesh.Service) func(int) bool {
	usable := d.usable(s)
	first := ^uint32(0)
	for i, e := range s.Endpoints {
		if i < len(usable) && usable[i] {
			first = min(first, e.Priority)
		}
	}
	return func(i int) bool { return i < len(usable) && usable[i] && s.Endpoints[i].Priority == first }
}

// serves says whether a port's endpoint is on this node.
func (d *direct) serves(e *mesh.Endpoint, port int) bool {
	return e.Node != "" && e.Node == d.node && port < len(e.Ports) && e.Ports[port] != 0
}

// local: an endpoint at loopback would see its clients come from there, and
// applications grant that more than others; the proxy shows the true source.
func (d *direct) local(e *mesh.Endpoint, port int) (sockmap.Local, bool) {
	w := d.view.snapshot.Workload(e.Workload)
	if e.Transport == mesh.TransportNone || e.Address.IsLoopback() || w == nil || w.MaxConnections > 0 {
		return sockmap.Local{}, false
	}
	return sockmap.Local{Addr: e.AddrPort(port), Workload: e.Workload.Canonical(), NetNS: d.namespace(e.Workload)}, true
}

// judge decides for every workload, once per endpoint.
func (d *direct) judge(l sockmap.Local) {
	if d.judged[l] {
		return
	}
	d.judged[l] = true
	for _, w := range d.view.snapshot.Workloads() {
		if w.Identity.IsZero() {
			continue
		}
		v := verdict(d.view, w, l)
		if v == sockmap.Allow && (w.MaxConnections > 0 || d.namespace(w.Name) != l.NetNS && !d.reaches(w.Name, l)) {
			v = sockmap.Ask
		}
		if v != sockmap.Ask {
			d.state.Accesses = append(d.state.Accesses, sockmap.Access{Source: w.Name, Local: l, Verdict: v})
		}
	}
}

// verdict is what policy says of a workload and an endpoint, where that is the
// same whatever the client's address, and nobody wants to hear of it.
func verdict(v *view, w *mesh.Workload, l sockmap.Local) sockmap.Verdict {
	r := (&between{source: w.Name, workload: l.Workload, at: l.Addr}).request(v)
	for _, p := range v.snapshot.Policies() {
		if aboutAddresses(p) && aims(p, &r) {
			return sockmap.Ask
		}
	}
	d := v.engine.Decide(r)
	switch {
	case d.Audited:
		return sockmap.Ask
	case d.Allowed:
		return sockmap.Allow
	default:
		return sockmap.Deny
	}
}

func aboutAddresses(p *mesh.Policy) bool {
	for _, from := range p.From {
		if from.CIDR.IsValid() {
			return true
		}
	}
	return false
}

// aims says whether a policy may be about a destination; the ports don't
// matter, since saying yes too often only costs the direct way.
func aims(p *mesh.Policy, r *policy.Request) bool {
	if len(p.To) == 0 {
		return true
	}
	for _, to := range p.To {
		if !to.Workload.IsZero() && to.Workload.Canonical() != r.Workload.Canonical() {
			continue
		}
		if to.Service.IsZero() {
			return true
		}
		for _, s := range r.Services {
			if to.Service.Canonical() == s.Canonical() {
				return true
			}
		}
	}
	return false
}

// redirect has the kernel told of endpoints that became usable, or ceased to be;
// the proxy asks the balancer for each connection.
func (n *Node) redirect() {
	if n.conf.Load().Splicing == config.SplicingAuto {
		n.reloads.applySoon()
	}
}

// usable is what the balancer thinks of a service's endpoints.
func (n *Node) usable(svc *mesh.Service) []bool {
	sum := n.balancer.Summary(svc)
	list := make([]bool, len(sum.Endpoints))
	for i := range sum.Endpoints {
		list[i] = sum.Endpoints[i].Usable
	}
	return list
}

// reaches says whether there is a way from a workload's namespace to an
// endpoint in another one: a container may have no network but the mesh.
func (n *Node) reaches(source mesh.Name, l sockmap.Local) bool {
	from := n.namespaces.of(source)
	if from == nil {
		return false
	}
	a, err := from.chosenAddress(l.Addr)
	return err == nil && a.IsValid()
}

// closeIllegal closes the direct connections that may not be open any more.
// It reports whether there are some that can't be closed yet, because their
// sockets have not sent anything.
func (n *Node) closeIllegal() (again bool) {
	v := n.views.load()
	list, err := n.capture.DirectConnections()
	if err != nil {
		n.log.Error("list direct connections", "error", err)
		return false
	}
	for i := range list {
		c := &list[i]
		b := between{source: c.Source, client: c.Client, workload: c.Endpoint.Workload, service: c.Service, at: c.Endpoint.Addr}
		why := b.illegal(v)
		if why == nil {
			continue
		}
		err := n.capture.CloseDirect(c)
		switch {
		case errors.Is(err, sockdiag.ErrGone):
			again = again || !c.Established
		case err != nil:
			n.log.Error("close direct connection", "source", c.Source, "service", c.Service, "error", err)
		default:
			n.directDenied(c, why.Error())
		}
	}
	return again
}
