// SPDX-License-Identifier: Apache-2.0

package balance

import (
	"math/bits"
	"slices"

	"github.com/meshproxy/meshproxy/discovery/mesh"
)

// Picked is a chosen endpoint. Exactly one Done belongs to it.
type Picked struct {
	Endpoint *mesh.Endpoint
	// Panic says that no endpoint looked usable, and this one was chosen all
	// the same.
	Panic bool

	group *group
	state *state
}

// Pick chooses an endpoint for the service's port at the index. tried are
// endpoints that are not to be chosen, because an attempt failed. It reports
// false when the service has no endpoint left.
func (b *Balancer) Pick(svc *mesh.Service, port int, tried []*mesh.Endpoint) (Picked, bool) {
	g := b.groupOf(svc, port)
	if g == nil {
		return Picked{}, false
	}
	p := picking{b: b, g: g, tried: tried, now: int64(b.now())}
	m := p.choose()
	if m == nil {
		p.panic = true
		m = p.choose()
	}
	if m == nil {
		return Picked{}, false
	}
	m.state.inFlight.Add(1)
	m.state.picks.Add(1)
	return Picked{Endpoint: m.endpoint, Panic: p.panic, group: g, state: m.state}, true
}

// Hold counts a connection to an endpoint that was not chosen but dialled
// directly. It reports false when the endpoint does not serve the port.
func (b *Balancer) Hold(svc *mesh.Service, port int, e *mesh.Endpoint) (Picked, bool) {
	g := b.groupOf(svc, port)
	if g == nil || port >= len(e.Ports) || e.Ports[port] == 0 {
		return Picked{}, false
	}
	st := b.held(g, port, e)
	st.inFlight.Add(1)
	st.picks.Add(1)
	return Picked{Endpoint: e, group: g, state: st}, true
}

// held returns the state of an endpoint: that of the group's member, or one
// of its own if the group leaves the endpoint out, which takes the lock.
func (b *Balancer) held(g *group, port int, e *mesh.Endpoint) *state {
	i, found := slices.BinarySearchFunc(g.members, e, func(m member, e *mesh.Endpoint) int {
		return mesh.CompareEndpoints(m.endpoint, e)
	})
	if found && g.members[i].endpoint == e {
		return g.members[i].state
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.stateOf(keyOf(e, port))
}

// picking is one Pick; a value, so that it stays on the stack.
type picking struct {
	b     *Balancer
	g     *group
	tried []*mesh.Endpoint
	now   int64
	panic bool
}

func (p *picking) choose() *member {
	for i := range p.g.levels {
		l := &p.g.levels[i]
		for d := range l.near {
			if m := p.from(&l.near[d]); m != nil {
				return m
			}
		}
	}
	for i := range p.g.levels {
		if m := p.from(&p.g.levels[i].draining); m != nil {
			return m
		}
	}
	return nil
}

func (p *picking) usable(m *member) bool {
	for _, e := range p.tried {
		if e == m.endpoint {
			return false
		}
	}
	return p.panic || m.available(p.now)
}

func (p *picking) from(t *tier) *member {
	switch {
	case len(t.members) == 0:
		return nil
	case len(t.members) == 1:
		if m := &t.members[0]; p.usable(m) {
			return m
		}
		return nil
	case p.g.service.Balance == mesh.BalanceRoundRobin:
		return p.inTurn(t)
	case p.g.service.Balance == mesh.BalanceRandom:
		return p.random(t)
	}
	return p.lessLoaded(t)
}

// attempts at a random member that is usable, before all are looked at.
const attempts = 8

// random returns a usable member by weight: by trying, because most are
// usable most of the time, and else by going through all of them.
func (p *picking) random(t *tier) *member {
	for range attempts {
		if m := t.at(p.below(t.total)); p.usable(m) {
			return m
		}
	}
	var chosen *member
	var sum uint64
	for i := range t.members {
		m := &t.members[i]
		if !p.usable(m) {
			continue
		}
		// Reservoir sampling: the i-th usable one replaces the chosen one
		// with the share that its weight has of the sum so far.
		sum += m.weight
		if p.below(sum) < m.weight {
			chosen = m
		}
	}
	return chosen
}

// lessLoaded returns the one of two random members that has fewer connections
// in flight for its weight.
func (p *picking) lessLoaded(t *tier) *member {
	first := p.random(t)
	if first == nil {
		return nil
	}
	second := p.random(t)
	for i := 0; i < attempts/2 && second == first; i++ {
		second = p.random(t)
	}
	if second == nil { // the last usable one was ejected meanwhile
		return first
	}
	// first/weight > second/weight, without dividing
	if uint64(max(0, first.state.inFlight.Load()))*second.weight > uint64(max(0, second.state.inFlight.Load()))*first.weight {
		return second
	}
	return first
}

// inTurn returns the next usable member.
func (p *picking) inTurn(t *tier) *member {
	for range attempts {
		turn := p.g.turn.Add(1) - 1
		if m := t.at(turn % t.total * t.stride % t.total); p.usable(m) {
			return m
		}
	}
	// Mostly unusable: from the turn's member onwards, whatever the weights.
	start := int(p.g.turn.Add(1) % uint64(len(t.members)))
	for i := range t.members {
		if m := &t.members[(start+i)%len(t.members)]; p.usable(m) {
			return m
		}
	}
	return nil
}

// below returns a random number below n, by Lemire's multiplication; the bias
// of at most n/2^64 does not matter here.
func (p *picking) below(n uint64) uint64 {
	hi, _ := bits.Mul64(p.b.opts.Random(), n)
	return hi
}
