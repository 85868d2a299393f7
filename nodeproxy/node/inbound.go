// SPDX-License-Identifier: Apache-2.0

package node

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/meshproxy/meshproxy/discovery/mesh"
	"github.com/meshproxy/meshproxy/nodeproxy/l4"
	"github.com/meshproxy/meshproxy/nodeproxy/policy"
	"github.com/meshproxy/meshproxy/nodeproxy/telemetry"
	"github.com/meshproxy/meshproxy/nodeproxy/telemetry/reason"
	"github.com/meshproxy/meshproxy/nodeproxy/tunnel"
)

// gate decides about what arrives for workloads of this node: streams in
// tunnels, lines, and plaintext that capture steers here. One per loop.
type gate struct {
	node  *Node
	shard *telemetry.Shard
	turn  int // among a service's instances here
}

// Admit implements l4.Gate: a CONNECT in a tunnel.
func (g *gate) Admit(r *l4.Request) (l4.Route, error) {
	s := &inbound{
		account: account{shard: g.shard}, gate: g,
		path: telemetry.PathHBONE, peer: r.Peer.Identity, client: r.Peer.Remote,
		peerWorkload: baggageWorkload(r.Field("baggage")),
	}
	to, err := netip.ParseAddrPort(r.Authority)
	if err != nil {
		return g.refuse(s, reason.Wrap(reason.TunnelRefused, fmt.Errorf("authority %.64q: want an address and port", r.Authority)))
	}
	s.to = netip.AddrPortFrom(to.Addr().Unmap(), to.Port())
	s.speaksFor(r.Field("forwarded"), g.node.settings().forwardedFrom)
	v := g.node.views.load()
	if err := s.identify(v); err != nil {
		return g.refuse(s, err)
	}
	if err := answersFor(r.Peer, s.target); err != nil {
		return g.refuse(s, err)
	}
	return g.admit(v, s)
}

// answersFor: a peer that asked for an identity by name has verified that one;
// its streams belong to that workload and to no other one here.
func answersFor(peer *tunnel.Peer, w *mesh.Workload) error {
	if peer.ServerName == "" || peer.LocalIdentity == w.Identity {
		return nil
	}
	return reason.Wrap(reason.TunnelRefused,
		fmt.Errorf("tunnel is for %s, the endpoint belongs to %s", peer.LocalIdentity, w.Identity))
}

// plainRouter takes plaintext connections to permissive workloads.
type plainRouter struct{ *gate }

// Route implements l4.Router. What the client dialled is the listener's
// address, since sk_lookup steers without rewriting.
func (g plainRouter) Route(c *l4.Client) (l4.Route, error) {
	s := &inbound{
		account: account{shard: g.shard}, gate: g.gate,
		path: telemetry.PathPlaintext, client: c.Remote, to: c.Local, netns: c.NetNS,
	}
	v := g.node.views.load()
	if err := s.identify(v); err != nil {
		return g.refuse(s, err)
	}
	if s.target.Inbound != mesh.InboundPermissive {
		return g.refuse(s, reason.Wrap(reason.PlaintextRefused, errors.New("the workload takes mutual TLS only")))
	}
	return g.admit(v, s)
}

// admit applies policy.
func (g *gate) admit(v *view, s *inbound) (l4.Route, error) {
	r := s.request()
	d := v.engine.Decide(r)
	s.policy = d.Policy
	if !d.Allowed {
		return g.refuse(s, reason.Wrap(reason.PolicyDenied, denial(r, d)))
	}
	audited(g.node.metrics, s.record, r, d)
	return l4.Route{Session: s, Limit: v.limits[s.target.Canonical()], Idle: g.node.settings().idleTimeout}, nil
}

func (g *gate) refuse(s *inbound, err error) (l4.Route, error) {
	g.node.metrics.Refused(s.record(), reason.Of(err), err.Error())
	return l4.Route{}, err
}

// inbound is a connection to a workload of this node.
type inbound struct {
	account
	gate         *gate
	path         telemetry.Path
	peer         spiffeid.ID // zero for plaintext
	peerWorkload string      // as it says; for telemetry
	client       netip.AddrPort
	speaker      netip.AddrPort // who says that it is the client, where that is no proof
	to           netip.AddrPort
	target       *mesh.Workload
	services     []mesh.Name
	policy       string
	netns        uint64 // where plaintext came in
	attempt      int
	instances    []netip.AddrPort // that may do as well as to
}

var errNobody = reason.Wrap(reason.NoWorkload, errors.New("no workload of this node has this address"))

// identify finds whose address it is.
func (s *inbound) identify(v *view) error {
	for _, t := range v.snapshot.LocalEndpoints(s.to) {
		s.services = append(s.services, t.Service.Name)
		if s.target == nil {
			s.target = t.Workload
		}
	}
	if s.target == nil && s.path == telemetry.PathPlaintext {
		// A port that no service registers is protected because a workload
		// listens on it; capture knows which one.
		if name, ok := s.gate.node.capture.ListenerWorkload(s.netns, s.to); ok {
			s.target = v.snapshot.Workload(name)
		}
	}
	if s.target == nil && s.path != telemetry.PathPlaintext {
		s.target, s.services = v.formerly(s.to, time.Now())
	}
	if s.target == nil {
		return errNobody
	}
	return nil
}

// illegal implements judged.
func (s *inbound) illegal(v *view) error {
	r := s.request()
	if d := v.engine.Decide(r); !d.Allowed {
		return denial(r, d)
	}
	return nil
}

func (s *inbound) request() policy.Request {
	r := policy.Request{
		Identity: s.peer,
		Source:   s.client,
		Services: s.services,
		Workload: s.target.Name,
		Port:     s.to.Port(),
	}
	if s.speaker.IsValid() {
		r.Source, r.Claimed = s.speaker, s.client.Addr()
	}
	return r
}

// Next implements l4.Session: the address that was asked for, then loopback
// for an application that is bound to that only.
func (s *inbound) Next(failed error) (l4.Target, error) {
	s.attempt++
	n := s.namespace()
	t := l4.Target{Addr: s.to, Socket: s.gate.node.socketFrom(n.cookie, s.client), Timeout: s.gate.node.settings().connectTimeout, Hop: s.gate.node.hopTo()}
	switch {
	case s.attempt == 1:
		s.begin(s.record(), failed)
		return t, nil
	case s.attempt == 2 && notThere(failed) && !s.to.Addr().IsLoopback():
		t.Addr = netip.AddrPortFrom(loopbackOf(s.to.Addr()), s.to.Port())
		return t, nil
	case len(s.instances) > 0 && notThere(failed):
		return s.elsewhere(failed)
	default:
		return l4.Target{}, failed
	}
}

// notThere: nobody listens at that address, or it is not one of this machine's
// (a floating or translated address).
func notThere(err error) bool {
	switch reason.Of(err) {
	case reason.ConnectRefused, reason.ConnectUnreachable:
		return true
	}
	return false
}

func (s *inbound) namespace() *namespace {
	if s.netns != 0 {
		if n := s.gate.node.namespaces.get(s.netns); n != nil {
			return n
		}
	}
	return s.gate.node.namespaces.at(s.target.Name, s.to.Addr())
}

// Connected implements l4.Session.
func (s *inbound) Connected(*tunnel.Peer) { s.Connection.Connected() }

// Closed implements l4.Session.
func (s *inbound) Closed(why reason.Reason, text string) {
	s.end(s.gate.node.metrics, s.record, why, text)
}

func (s *inbound) record() telemetry.Record {
	r := telemetry.Record{
		Direction: telemetry.Inbound, Path: s.path,
		Source: s.peerWorkload, SourceIdentity: idString(s.peer),
		Client: s.client, Dialled: s.to, Endpoint: s.to, Policy: s.policy,
	}
	if s.target != nil {
		r.Destination = s.target.Name.String()
		r.DestinationIdentity = idString(s.target.Identity)
	}
	if len(s.services) > 0 {
		r.Service = s.services[0].String()
	}
	return r
}
