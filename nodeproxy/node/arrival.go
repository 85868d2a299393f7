// SPDX-License-Identifier: Apache-2.0

package node

import (
	"errors"
	"net/netip"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/meshproxy/meshproxy/discovery/mesh"
	"github.com/meshproxy/meshproxy/nodeproxy/l4"
	"github.com/meshproxy/meshproxy/nodeproxy/telemetry"
	"github.com/meshproxy/meshproxy/nodeproxy/telemetry/reason"
	"github.com/meshproxy/meshproxy/nodeproxy/tunnel"
)

var errNoInstance = reason.Wrap(reason.NoWorkload, errors.New("no service of this node belongs to the identity that the client asked for"))

// AdmitLine implements l4.LineGate. A line says no more than whom it is for: the
// identity that this node has proven to be. So it goes to an instance of the
// service that the identity is for.
func (g *gate) AdmitLine(p *tunnel.Peer) (l4.Route, error) {
	s := &inbound{
		account: account{shard: g.shard}, gate: g, path: telemetry.PathMTLS,
		peer: p.Identity, client: p.Remote, to: p.Local, peerWorkload: workloadOf(p.Identity),
	}
	v := g.node.views.load()
	s.instances = instances(v.snapshot.Incoming(p.LocalIdentity, p.Local.Port()), g.turn)
	g.turn++
	if len(s.instances) == 0 {
		return g.refuse(s, errNoInstance)
	}
	s.to, s.instances = s.instances[0], s.instances[1:]
	if err := s.identify(v); err != nil {
		return g.refuse(s, err)
	}
	return g.admit(v, s)
}

// instances are where the best service among targets is, those that are said to
// be unhealthy last; clients take turns among the others.
func instances(targets []mesh.Target, turn int) []netip.AddrPort {
	var well, ill []netip.AddrPort
	for _, t := range targets {
		if t.Service != targets[0].Service || t.PortIndex != targets[0].PortIndex {
			break // sorted: the others serve something else
		}
		at := t.Endpoint.AddrPort(t.PortIndex)
		if t.Endpoint.Health == mesh.HealthUnhealthy {
			ill = append(ill, at)
		} else {
			well = append(well, at)
		}
	}
	if n := len(well); n > 1 {
		well = slices.Concat(well[turn%n:], well[:turn%n])
	}
	return append(well, ill...)
}

// elsewhere tries the next instance when the application does not listen at one.
func (s *inbound) elsewhere(failed error) (l4.Target, error) {
	v := s.gate.node.views.load()
	s.to, s.instances = s.instances[0], s.instances[1:]
	s.attempt, s.target, s.services = 0, nil, nil
	if err := s.identify(v); err != nil {
		return l4.Target{}, err
	}
	r := s.request()
	d := v.engine.Decide(r)
	if s.policy = d.Policy; !d.Allowed {
		return l4.Target{}, reason.Wrap(reason.PolicyDenied, denial(r, d))
	}
	return s.Next(failed)
}

// workloadOf is what the last segment of a SPIFFE ID says, for telemetry: the
// service in those of Consul, the service account in those of Kubernetes.
func workloadOf(id spiffeid.ID) string {
	path := id.Path()
	return path[strings.LastIndexByte(path, '/')+1:]
}
