// SPDX-License-Identifier: Apache-2.0

package balance

import (
	"sync/atomic"
	"time"

	"github.com/meshproxy/meshproxy/discovery/mesh"
)

// state is what connections told about an endpoint.
type state struct {
	inFlight atomic.Int64
	picks    atomic.Uint64
	failed   atomic.Uint64 // connect failures ever
	// failures are those in a row.
	failures atomic.Int32
	// ejectedUntil is a time since the balancer's start; past or 0 when not
	// ejected.
	ejectedUntil atomic.Int64
	// ejections are those without a long good time in between.
	ejections atomic.Int32
	// used is when a group last had it.
	used atomic.Int64
}

// Outcome says how a connection went.
type Outcome uint8

// The outcomes.
const (
	// OutcomeOK: the connection was made. How it ended says nothing about
	// the endpoint.
	OutcomeOK Outcome = iota
	// OutcomeConnectFailed: the endpoint could not be reached, or its
	// application not; the fault is not the client's, nor policy.
	OutcomeConnectFailed
	// OutcomeUnknown: the attempt was given up before it said anything about
	// the endpoint, or failed for another reason.
	OutcomeUnknown
)

// Connected tells that the connection was made, as soon as it was. Done comes
// later.
func (b *Balancer) Connected(p Picked) {
	if p.state == nil {
		return
	}
	// Writing only what differs keeps the cache line shared between cores.
	if p.state.failures.Load() != 0 {
		p.state.failures.Store(0)
	}
	if p.state.ejectedUntil.Load() > int64(b.now()) {
		// Panic mode, or an older connection attempt: it works.
		p.state.ejectedUntil.Store(0)
		b.opts.Changed()
		b.opts.Logger.Info("endpoint is reachable again", "service", p.group.service.Name, "endpoint", p.Endpoint.Address)
	}
}

// Done ends what Pick or Hold began: the attempt failed, or the connection is
// closed.
func (b *Balancer) Done(p Picked, o Outcome) {
	if p.state == nil {
		return
	}
	p.state.inFlight.Add(-1)
	if o != OutcomeConnectFailed {
		return
	}
	p.state.failed.Add(1)
	if int(p.state.failures.Add(1)) >= b.opts.Failures {
		b.eject(p)
	}
}

// eject takes the endpoint out for a while, unless too many are already.
func (b *Balancer) eject(p Picked) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := b.now()
	if time.Duration(p.state.ejectedUntil.Load()) > now {
		return // attempts that began before the ejection, or panic mode
	}
	if !b.ejectable(p.group, now) {
		return
	}
	n := p.state.ejections.Load()
	if n > 0 && now-time.Duration(p.state.ejectedUntil.Load()) > b.opts.MaxEjection {
		n = 0 // it has been good for long
	}
	d := b.opts.MaxEjection
	if n < 16 {
		d = min(d, b.opts.Ejection<<n)
	}
	p.state.ejections.Store(n + 1)
	p.state.ejectedUntil.Store(int64(now + d))
	// When it comes back, it is on probation: one failure suffices.
	p.state.failures.Store(int32(b.opts.Failures) - 1)
	b.opts.Changed()
	b.opts.Logger.Warn("endpoint ejected: connections to it fail", "service", p.group.service.Name,
		"endpoint", p.Endpoint.Address, "node", p.Endpoint.Node, "failures", b.opts.Failures, "for", d)
}

// readmit ends the ejection of a port whose active check passes again: that
// is newer than the failures of connections, and so better, evidence (as Envoy's
// successful_active_health_check_uneject_host).
func (b *Balancer) readmit(e *mesh.Endpoint, port int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if s := b.states[keyOf(e, port)]; s != nil {
		s.ejectedUntil.Store(0)
	}
}

// ejectable reports whether one more endpoint of the group may be ejected.
func (b *Balancer) ejectable(g *group, now time.Duration) bool {
	out := 0
	for i := range g.members {
		if time.Duration(g.members[i].state.ejectedUntil.Load()) > now {
			out++
		}
	}
	limit := len(g.members) * b.opts.EjectablePercent / 100
	if len(g.members) > 1 {
		limit = min(max(limit, 1), len(g.members)-1)
	} else {
		limit = 0
	}
	return out < limit
}
