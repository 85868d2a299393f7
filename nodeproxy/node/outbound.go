// SPDX-License-Identifier: Apache-2.0

package node

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/meshproxy/meshproxy/discovery/mesh"
	"github.com/meshproxy/meshproxy/nodeproxy/balance"
	"github.com/meshproxy/meshproxy/nodeproxy/identity"
	"github.com/meshproxy/meshproxy/nodeproxy/l4"
	"github.com/meshproxy/meshproxy/nodeproxy/telemetry"
	"github.com/meshproxy/meshproxy/nodeproxy/telemetry/reason"
	"github.com/meshproxy/meshproxy/nodeproxy/tunnel"
	"github.com/meshproxy/meshproxy/nodeproxy/tunnel/h2"
	"github.com/meshproxy/meshproxy/sockmap"
)

// maxAttempts is how many endpoints a connection tries.
const maxAttempts = 3

// Errors of routing.
var (
	errNoFlow      = reason.Wrap(reason.NoFlow, errors.New("capture has no record of this connection"))
	errNoWorkload  = reason.Wrap(reason.NoWorkload, errors.New("the workload is not configured any more"))
	errUnknownDst  = reason.Wrap(reason.EgressUnregistered, errors.New("the destination is not in the mesh any more"))
	errUnknownPort = reason.Wrap(reason.UnknownPort, errors.New("the service has no such port"))
	errNoEndpoint  = reason.Wrap(reason.NoHealthyEndpoint, errors.New("the service has no healthy endpoint"))
)

// router decides where captured connections go: one per loop.
type router struct {
	node    *Node
	shard   *telemetry.Shard
	servers map[spiffeid.ID]string // server names by identity
}

func newRouter(n *Node, s *telemetry.Shard) *router {
	return &router{node: n, shard: s, servers: make(map[spiffeid.ID]string)}
}

// Route implements l4.Router for the outbound listeners.
func (r *router) Route(c *l4.Client) (l4.Route, error) {
	flow, err := r.node.capture.Flow(c.NetNS, c.Remote, c.Local)
	if err != nil {
		if errors.Is(err, sockmap.ErrNoFlow) {
			if r.node.giveBack(c) {
				return l4.Route{}, l4.ErrTaken
			}
			err = errNoFlow
		}
		return r.refuse(telemetry.Record{Client: c.Remote}, err)
	}
	v := r.node.views.load()
	record := telemetry.Record{Source: flow.WorkloadName.String(), Client: c.Remote, Dialled: flow.OriginalDst}
	w := v.snapshot.Workload(flow.WorkloadName)
	if w == nil {
		return r.refuse(record, errNoWorkload)
	}
	record.SourceIdentity = idString(w.Identity)
	dst, ok := v.snapshot.Destination(w.Name, flow.OriginalDst)
	if !ok {
		return r.refuse(record, errUnknownDst)
	}
	record.Service = dst.Service.Name.String()
	if dst.PortIndex < 0 {
		return r.refuse(record, errUnknownPort)
	}
	s := &outbound{
		account: account{shard: r.shard}, router: r, source: w,
		service: dst.Service, port: dst.PortIndex, fixed: dst.Endpoint,
		client: c.Remote, dialled: flow.OriginalDst, netns: c.NetNS,
	}
	return l4.Route{
		Session: s, Limit: v.limits[w.Canonical()], Idle: r.node.settings().idleTimeout, Hop: r.node.hopFrom(flow.ClientCookie),
	}, nil
}

func (r *router) refuse(record telemetry.Record, err error) (l4.Route, error) {
	record.Direction = telemetry.Outbound
	r.node.metrics.Refused(record, reason.Of(err), err.Error())
	return l4.Route{}, err
}

// serverName is the SNI for an identity.
func (r *router) serverName(id spiffeid.ID) string {
	name, ok := r.servers[id]
	if !ok {
		name = identity.ServerName(id)
		r.servers[id] = name
	}
	return name
}

// outbound is a captured connection: it tries endpoints until one takes it.
type outbound struct {
	account
	router  *router
	source  *mesh.Workload
	service *mesh.Service
	port    int
	fixed   *mesh.Endpoint // the client dialled this one itself
	client  netip.AddrPort
	dialled netip.AddrPort
	netns   uint64

	endpoint *mesh.Endpoint   // being tried, or taken
	picked   balance.Picked   // endpoint's, until the balancer is told how it went
	server   *l4.Limit        // of the endpoint's workload, if it counts this connection
	tried    []*mesh.Endpoint // those that failed
	loopback bool             // endpoint is tried on loopback
}

// Next implements l4.Session.
func (s *outbound) Next(failed error) (l4.Target, error) {
	if failed != nil {
		if s.tryLoopback(failed) {
			return s.target()
		}
		s.settle(failed)
		if !retryable(failed) || s.fixed != nil || len(s.tried) >= maxAttempts {
			return l4.Target{}, failed
		}
	}
	picked, ok := s.pick()
	if !ok {
		if failed != nil {
			return l4.Target{}, failed
		}
		return l4.Target{}, errNoEndpoint
	}
	s.picked, s.endpoint, s.loopback = picked, picked.Endpoint, false
	if err := s.judge(); err != nil {
		return l4.Target{}, err
	}
	if err := s.enter(); err != nil {
		return s.Next(err)
	}
	s.begin(s.record(), failed)
	return s.target()
}

// enter counts the connection at the server's workload, where that is another one
// of this node.
func (s *outbound) enter() error {
	to := s.endpoint.Workload.Canonical()
	if !s.local() || to == s.source.Canonical() {
		return nil
	}
	l := s.router.node.views.load().limits[to]
	if err := l.Enter(); err != nil {
		return err
	}
	s.server = l
	return nil
}

func (s *outbound) pick() (balance.Picked, bool) {
	if s.fixed != nil {
		return s.router.node.balancer.Hold(s.service, s.port, s.fixed)
	}
	return s.router.node.balancer.Pick(s.service, s.port, s.tried)
}

// tryLoopback: an application that is bound to loopback only, as those behind
// a sidecar are, is there.
func (s *outbound) tryLoopback(failed error) bool {
	if s.loopback || !s.local() || reason.Of(failed) != reason.ConnectRefused {
		return false
	}
	s.loopback = true
	return true
}

// retryable: another endpoint may do what this one did not. What the other
// node's policy denied it would deny again.
func retryable(err error) bool {
	switch reason.Of(err) {
	case reason.PeerDenied, reason.PolicyDenied, reason.NoLeaf, reason.LimitFD, reason.Draining:
		return false
	}
	return true
}

func (s *outbound) local() bool {
	return s.endpoint.Node != "" && s.endpoint.Node == s.router.node.name
}

// judge applies this node's policy to a connection that ends here.
func (s *outbound) judge() error {
	if !s.endsHere() {
		return nil
	}
	v, b := s.router.node.views.load(), s.between()
	if err := b.illegal(v); err != nil {
		return reason.Wrap(reason.PolicyDenied, err)
	}
	r := b.request(v)
	audited(s.router.node.metrics, s.record, r, v.engine.Decide(r))
	return nil
}

// illegal implements judged.
func (s *outbound) illegal(v *view) error {
	if !s.endsHere() {
		return nil
	}
	return s.between().illegal(v)
}

// endsHere says whether this node's policy is about the connection.
func (s *outbound) endsHere() bool {
	return s.endpoint != nil && s.local() && s.endpoint.Transport != mesh.TransportNone
}

func (s *outbound) between() *between {
	return &between{
		source: s.source.Name, client: s.trueSource(),
		workload: s.endpoint.Workload, service: s.service.Name, at: s.endpoint.AddrPort(s.port),
	}
}

func (s *outbound) trueSource() netip.AddrPort {
	n := s.router.node.namespaces.get(s.netns)
	if n == nil {
		return s.client
	}
	return n.source(s.client, s.endpoint.Address)
}

// target is the way to the endpoint.
func (s *outbound) target() (l4.Target, error) {
	at := s.endpoint.AddrPort(s.port)
	t := l4.Target{Addr: at, Timeout: s.timeout()}
	switch {
	case s.endpoint.Transport == mesh.TransportNone:
		t.Socket = s.router.node.socketFrom(s.netns, netip.AddrPort{})
		return t, nil
	case s.local():
		n := s.router.node.namespaces.at(s.endpoint.Workload, at.Addr())
		if s.loopback {
			t.Addr = netip.AddrPortFrom(loopbackOf(at.Addr()), at.Port())
		}
		t.Socket, t.Hop = s.router.node.socketFrom(n.cookie, s.trueSource()), s.router.node.hopTo()
		return t, nil
	default:
		return s.tunnelTarget(t)
	}
}

func (s *outbound) tunnelTarget(t l4.Target) (l4.Target, error) {
	e := s.endpoint
	if e.Transport != mesh.TransportHBONE && e.Transport != mesh.TransportMTLS || !e.Tunnel.IsValid() {
		return t, reason.Wrap(reason.ConnectUnreachable, fmt.Errorf("endpoint %s: no tunnel (transport %q)", t.Addr, e.Transport))
	}
	name := e.SNI
	if name == "" {
		name = s.router.serverName(e.Identity)
	}
	t.Tunnel = &tunnel.Key{
		Source:       s.source.Identity,
		Destinations: accepted(e),
		Addr:         e.Tunnel,
		ServerName:   name,
	}
	if e.Transport == mesh.TransportMTLS {
		return t, nil
	}
	var err error
	t.Connect, err = s.connect(t.Addr)
	return t, err
}

// connect is the CONNECT for an endpoint.
func (s *outbound) connect(to netip.AddrPort) (*h2.Block, error) {
	block, err := h2.ConnectBlock(to.String())
	if err != nil {
		return nil, reason.Wrap(reason.Internal, fmt.Errorf("encode authority %s: %w", to, err))
	}
	// As ztunnel does (HBONE): who the client is, for the server's eyes.
	if err := errors.Join(
		block.Add("forwarded", forwarded(s.trueSource(), s.service.Name)),
		block.Add("baggage", baggage(s.source.Name)),
	); err != nil {
		return nil, reason.Wrap(reason.Internal, fmt.Errorf("encode request: %w", err))
	}
	return block, nil
}

// accepted are the identities that an endpoint may prove.
func accepted(e *mesh.Endpoint) tunnel.Identities {
	if len(e.Identities) == 0 {
		return tunnel.IdentitiesOf(e.Identity)
	}
	return tunnel.IdentitiesOf(append([]spiffeid.ID{e.Identity}, e.Identities...)...)
}

func (s *outbound) timeout() time.Duration {
	if d := s.service.ConnectTimeout; d > 0 {
		return d
	}
	return s.router.node.settings().connectTimeout
}

// Connected implements l4.Session.
func (s *outbound) Connected(*tunnel.Peer) {
	s.router.node.balancer.Connected(s.picked)
	s.Connection.Connected()
	s.tried = nil
}

// settle tells the balancer that an attempt failed.
func (s *outbound) settle(err error) {
	s.tried = append(s.tried, s.endpoint)
	s.release(outcomeOf(err))
}

// release gives the endpoint back to the balancer, once.
func (s *outbound) release(o balance.Outcome) {
	s.router.node.balancer.Done(s.picked, o)
	s.picked = balance.Picked{}
	s.server.Leave()
	s.server = nil
}

// Closed implements l4.Session.
func (s *outbound) Closed(why reason.Reason, text string) {
	s.release(balance.OutcomeOK)
	s.end(s.router.node.metrics, s.record, why, text)
}

// record describes the connection as it stands.
func (s *outbound) record() telemetry.Record {
	r := telemetry.Record{
		Direction: telemetry.Outbound, Path: telemetry.PathHBONE,
		Source: s.source.Name.String(), SourceIdentity: idString(s.source.Identity),
		Service: s.service.Name.String(), Client: s.client, Dialled: s.dialled,
	}
	e := s.endpoint
	if e == nil {
		return r
	}
	r.Client = s.trueSource()
	r.Endpoint = e.AddrPort(s.port)
	r.Destination = display(e.Workload)
	r.DestinationIdentity = idString(e.Identity)
	switch {
	case e.Transport == mesh.TransportNone:
		r.Path = telemetry.PathPassthrough
	case s.local():
		r.Path = telemetry.PathDirect
	case e.Transport == mesh.TransportMTLS:
		r.Path = telemetry.PathMTLS
	}
	return r
}
