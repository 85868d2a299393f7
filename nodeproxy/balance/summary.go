// SPDX-License-Identifier: Apache-2.0

package balance

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/meshproxy/meshproxy/discovery/mesh"
)

// EndpointSummary is what the node knows of an endpoint.
type EndpointSummary struct {
	Address  netip.Addr  `json:"address"`
	Ports    []uint16    `json:"ports"`
	Node     string      `json:"node,omitempty"`
	Workload mesh.Name   `json:"workload,omitzero"`
	Distance Distance    `json:"distance"`
	Weight   uint32      `json:"weight"`
	Health   mesh.Health `json:"health"` // as the source has it
	// Usable is what all of it adds up to: the endpoint may be chosen while
	// there is no panic.
	Usable bool `json:"usable"`
	// Check is "passing", "failing", or empty without an active check.
	Check      string `json:"check,omitempty"`
	CheckError string `json:"checkError,omitempty"`
	// EjectedFor is the rest of an ejection.
	EjectedFor time.Duration `json:"ejectedForNanos,omitempty"`
	InFlight   int64         `json:"inFlight"`
	Picks      uint64        `json:"picks"`
	Failures   uint64        `json:"connectFailures"`
}

// ServiceSummary is what the node knows of a service's endpoints.
type ServiceSummary struct {
	Service   mesh.Name         `json:"service"`
	Balance   mesh.Balance      `json:"balance"`
	Usable    int               `json:"usable"`
	Endpoints []EndpointSummary `json:"endpoints"`
}

// Summary describes the endpoints of a service. It takes the balancer's lock
// and does not disturb picks.
func (b *Balancer) Summary(svc *mesh.Service) ServiceSummary {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := ServiceSummary{Service: svc.Canonical(), Balance: svc.Balance, Endpoints: make([]EndpointSummary, 0, len(svc.Endpoints))}
	if out.Balance == "" {
		out.Balance = mesh.BalanceLeastRequest
	}
	for _, e := range svc.Endpoints {
		s := b.summarize(svc, e)
		if s.Usable {
			out.Usable++
		}
		out.Endpoints = append(out.Endpoints, s)
	}
	return out
}

func (b *Balancer) summarize(svc *mesh.Service, e *mesh.Endpoint) EndpointSummary {
	s := EndpointSummary{
		Address: e.Address, Ports: e.Ports, Node: e.Node, Workload: e.Workload,
		Distance: distance(b.opts.Node, e), Weight: max(1, e.Weight), Health: e.Health,
	}
	now := b.now()
	for i := range min(len(svc.Ports), len(e.Ports)) {
		// Looked up, not made: describing an endpoint is no use of it.
		st := b.states[keyOf(e, i)]
		if st == nil {
			continue
		}
		s.InFlight += st.inFlight.Load()
		s.Picks += st.picks.Load()
		s.Failures += st.failed.Load()
		s.EjectedFor = max(s.EjectedFor, time.Duration(st.ejectedUntil.Load())-now)
	}
	if svc.HealthCheck != nil {
		b.summarizeCheck(&s, svc, e)
	}
	s.Usable = e.Health != mesh.HealthUnhealthy && e.Health != mesh.HealthDraining && s.EjectedFor <= 0 && s.Check != "failing"
	return s
}

// summarizeCheck: a port that fails makes the endpoint fail, for people.
func (b *Balancer) summarizeCheck(s *EndpointSummary, svc *mesh.Service, e *mesh.Endpoint) {
	for port := range min(len(svc.Ports), len(e.Ports)) {
		at := keyOf(e, port)
		c := b.checks[checkKey{svc.Canonical(), at.addr, at.node}]
		switch {
		case c == nil:
		case !c.failing.Load():
			if s.Check == "" {
				s.Check = "passing"
			}
		case s.Check != "failing":
			s.Check = "failing"
			if text := c.failure.Load(); text != nil {
				s.CheckError = *text
			}
			if len(svc.Ports) > 1 {
				s.CheckError = fmt.Sprintf("port %d: %s", e.Ports[port], s.CheckError)
			}
		}
	}
}
