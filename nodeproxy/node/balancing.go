// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/meshproxy/meshproxy/discovery/mesh"
	"github.com/meshproxy/meshproxy/nodeproxy/admin/api"
	"github.com/meshproxy/meshproxy/nodeproxy/balance"
	"github.com/meshproxy/meshproxy/nodeproxy/telemetry/reason"
)

func (n *Node) startBalance(ctx context.Context) error {
	n.balancer = balance.New(balance.Options{Node: n.settingsFile().MeshNode(), Changed: n.redirect, Logger: n.log})
	n.checker = balance.NewChecker(n.balancer, balance.CheckerOptions{Dial: n.dialCheck, Logger: n.log})
	n.tasks.Go(func() { n.checker.Run(ctx, n.merger.Store()) })
	return nil
}

// outcomeOf says whether a failed attempt is the endpoint's fault.
func outcomeOf(err error) balance.Outcome {
	switch reason.Of(err) {
	case reason.ConnectRefused, reason.ConnectTimeout, reason.ConnectUnreachable, reason.PeerUnavailable,
		reason.TunnelUnresponsive, reason.HandshakeTimeout, reason.IdentityMismatch, reason.TLSExpired,
		reason.PeerUntrusted, reason.TLSHandshake, reason.TunnelReset:
		return balance.OutcomeConnectFailed
	default:
		return balance.OutcomeUnknown
	}
}

// dialCheck connects an active check: to the application itself where that is
// on this node, or outside the mesh; to the node proxy of an endpoint on
// another node, whose application takes mutual TLS only.
func (n *Node) dialCheck(ctx context.Context, _ *mesh.Service, e *mesh.Endpoint, addr netip.AddrPort) (net.Conn, error) {
	if e.Transport != mesh.TransportNone && e.Node != n.name {
		return n.dialThroughTunnel(ctx, e, addr)
	}
	conn, err := n.dialOwn(ctx, e.Workload, addr)
	if err != nil && e.Node == n.name && reason.Of(err) == reason.ConnectRefused && !addr.Addr().IsLoopback() {
		return n.dialOwn(ctx, e.Workload, netip.AddrPortFrom(loopbackOf(addr.Addr()), addr.Port()))
	}
	return conn, err
}

// dialOwn connects from the namespace of a workload, as the proxy does.
func (n *Node) dialOwn(ctx context.Context, w mesh.Name, addr netip.AddrPort) (net.Conn, error) {
	ns := n.namespaces.at(w, addr.Addr())
	return binder{way: n.namespaces.way, ns: ns.fd(), mark: n.capture.Control}.dialTCP(ctx, addr)
}

// balanceView adds what the balancer knows of an endpoint.
func (n *Node) balanceView(svc *mesh.Service, views []api.Endpoint) {
	for i, s := range n.balancer.Summary(svc).Endpoints {
		v := &views[i]
		v.Active = int(s.InFlight)
		switch {
		case s.Check == "failing":
			v.Health, v.HealthDetail = api.HealthUnhealthy, s.CheckError
		case s.EjectedFor > 0:
			v.Health = api.HealthEjected
			v.HealthDetail = fmt.Sprintf("for another %v, after failures to connect", s.EjectedFor.Round(time.Second))
		case s.Check == "passing":
			v.Health = api.HealthHealthy
		}
	}
}
