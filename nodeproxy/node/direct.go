// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"net/netip"

	"github.com/meshproxy/meshproxy/discovery/mesh"
	"github.com/meshproxy/meshproxy/nodeproxy/admin/api"
	"github.com/meshproxy/meshproxy/nodeproxy/config"
	"github.com/meshproxy/meshproxy/nodeproxy/policy"
	"github.com/meshproxy/meshproxy/nodeproxy/telemetry"
	"github.com/meshproxy/meshproxy/sockmap"
	"github.com/meshproxy/meshproxy/sockmap/sockdiag"
)

// Connections between workloads of this node need the proxy only for what the
// kernel can't do: an L7 protocol, a policy about addresses, an endpoint that
// listens on loopback only.

func (n *Node) startSplice(context.Context) error {
	if err := n.startLocals(); err != nil {
		return err
	}
	return n.applySplicing(n.conf.Load())
}

// applySplicing puts the configuration's word in force, and the command's. When
// it is to be on for the first time the self-test decides.
func (n *Node) applySplicing(c *config.Config) error {
	if err := n.capture.PauseSplicing(n.unspliced(c.Splicing)); err != nil {
		return err
	}
	if err := n.capture.PauseHops(n.unspliced(c.SpliceHops)); err != nil {
		return err
	}
	if c.Splicing == config.SplicingOff && c.SpliceHops == config.SplicingOff {
		return nil
	}
	stats, err := n.capture.Stats()
	if err != nil || stats.Splice.Test.Ran {
		return err
	}
	if err := n.capture.TestSplice(nil); err != nil && !errors.Is(err, sockmap.ErrNoSplice) {
		n.log.Warn("connections of this node are not spliced", "error", err)
		return nil
	}
	if stats, err = n.capture.Stats(); err != nil {
		return err
	}
	if s := &stats.Splice; s.On {
		n.log.Info("connections of this node are spliced", "test", s.Test.Took, "accepted", s.Test.Accepted)
	} else if c.Splicing != config.SplicingOff {
		n.log.Warn("connections of this node are not spliced", "reason", s.Reason)
	}
	if s := &stats.Splice; s.Hops {
		n.log.Info("connections between applications and the proxy are spliced", "test", s.Test.Took)
	} else if c.SpliceHops != config.SplicingOff {
		n.log.Warn("connections between applications and the proxy are not spliced", "reason", s.HopsReason)
	}
	return nil
}

// unspliced is why nothing is spliced, or "".
func (n *Node) unspliced(s config.Splicing) string {
	switch {
	case s == config.SplicingOff:
		return "off in the configuration"
	case n.splicePaused.Load():
		return "paused"
	}
	return ""
}

// SetSplice implements admin.Node.
func (n *Node) SetSplice(_ context.Context, s api.SpliceControl) (api.Splice, error) {
	n.splicePaused.Store(s.Pause)
	if err := n.applySplicing(n.conf.Load()); err != nil {
		return api.Splice{}, err
	}
	stats, err := n.capture.Stats()
	if err != nil {
		return api.Splice{}, err
	}
	n.log.Info("splicing", "on", stats.Splice.On, "reason", stats.Splice.Reason)
	return *spliceStatus(&stats), nil
}

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
	if p := found.Service.Ports[found.PortIndex].Protocol; p != "" && p != mesh.ProtocolTCP {
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
	to.OnlyLocal = true
	for i, e := range endpoints {
		l, ok := d.local(e, found.PortIndex)
		ok = ok && ready(i)
		if !ok {
			to.OnlyLocal = false
			continue
		}
		to.Locals = append(to.Locals, l)
		d.judge(l)
	}
	if len(to.Locals) == 0 {
		to.OnlyLocal = false
	}
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

// local: an endpoint at loopback would see its clients come from there, and
// applications grant that more than others; the proxy shows the true source.
func (d *direct) local(e *mesh.Endpoint, port int) (sockmap.Local, bool) {
	if e.Node == "" || e.Node != d.node || e.Transport == mesh.TransportNone || e.Address.IsLoopback() {
		return sockmap.Local{}, false
	}
	if port >= len(e.Ports) || e.Ports[port] == 0 || d.view.snapshot.Workload(e.Workload) == nil {
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
		if v == sockmap.Allow && d.namespace(w.Name) != l.NetNS && !d.reaches(w.Name, l) {
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
	r := directRequest(v, w, l, netip.AddrPort{})
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

func directRequest(v *view, w *mesh.Workload, l sockmap.Local, client netip.AddrPort) policy.Request {
	r := policy.Request{Identity: w.Identity, Source: client, Workload: l.Workload, Port: l.Addr.Port()}
	for _, t := range v.snapshot.LocalEndpoints(l.Addr) {
		r.Services = append(r.Services, t.Service.Name)
	}
	return r
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

// closeIllegal closes the direct connections that the policy in force denies.
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
		w := v.snapshot.Workload(c.Source)
		if w == nil {
			continue
		}
		r := directRequest(v, w, c.Endpoint, c.Client)
		d := v.engine.Decide(r)
		if d.Allowed {
			continue
		}
		err := n.capture.CloseDirect(c)
		switch {
		case errors.Is(err, sockdiag.ErrGone):
			again = again || !c.Established
		case err != nil:
			n.log.Error("close direct connection", "source", c.Source, "service", c.Service, "error", err)
		default:
			n.directDenied(c, denial(r, d).Error())
		}
	}
	return again
}

// spliceStatus is what status says of the direct way.
func spliceStatus(stats *sockmap.Stats) *api.Splice {
	s := &api.Splice{
		On: stats.Splice.On, Paused: stats.Splice.Paused != "", Reason: stats.Splice.Reason,
		Test: stats.Splice.Test.Took, Accepted: stats.Splice.Test.Accepted,
	}
	r := directReading(stats)
	s.Opened, s.Active, s.Spliced = r.Opened, r.Opened-min(r.Opened, r.Closed), r.Spliced
	s.Sent, s.Received, s.Redirected, s.Fallbacks = r.Sent, r.Received, r.Redirected, r.Fallbacks
	s.Hops = splicedHops(stats)
	return s
}

// directReading sums what went without the proxy.
func directReading(stats *sockmap.Stats) telemetry.DirectReading {
	r := telemetry.DirectReading{On: stats.Splice.On, Fallbacks: make(map[string]uint64)}
	for i := range stats.Traffic {
		t := &stats.Traffic[i]
		r.Pairs = append(r.Pairs, telemetry.DirectPair{
			Workload: display(t.Source), Service: display(t.Service),
			Opened: t.Opened, Closed: t.Closed, Spliced: t.Spliced, Sent: t.Sent, Received: t.Received, Redirected: t.Redirected,
		})
		r.Opened += t.Opened
		r.Closed += t.Closed
		r.Spliced += t.Spliced
		r.Sent += t.Sent
		r.Received += t.Received
		r.Redirected += t.Redirected
		for why, c := range t.Fallbacks {
			r.Fallbacks[why.String()] += c
		}
	}
	return r
}
