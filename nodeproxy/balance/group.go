// SPDX-License-Identifier: Apache-2.0

package balance

import (
	"maps"
	"slices"
	"sort"
	"sync/atomic"

	"github.com/meshproxy/meshproxy/discovery/mesh"
)

// Distance says how near an endpoint is.
type Distance uint8

// The distances, from near to far.
const (
	SameNode Distance = iota
	SameZone
	SameRegion
	Anywhere
	distances = iota
)

func (d Distance) String() string {
	return [...]string{"node", "zone", "region", "anywhere"}[d]
}

// MarshalText implements encoding.TextMarshaler.
func (d Distance) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

func distance(n mesh.Node, e *mesh.Endpoint) Distance {
	here := n.Locality
	switch {
	case e.Node != "" && e.Node == n.Name:
		return SameNode
	case here.Region == "" || e.Locality.Region != here.Region:
		return Anywhere
	case here.Zone != "" && e.Locality.Zone == here.Zone:
		return SameZone
	}
	return SameRegion
}

// groups are the candidates of one *mesh.Service, by port.
type groups struct{ ports []*group }

// group holds the endpoints that may serve one port of a service. It does not
// change; what does is behind the members' pointers.
type group struct {
	service *mesh.Service
	members []member      // all of the others, for ejection
	levels  []level       // in the order of failover
	turn    atomic.Uint64 // of round robin
}

// level holds the endpoints of one priority.
type level struct {
	priority uint32
	near     [distances]tier
	// draining are used when near has nothing available, on any level.
	draining tier
}

// member is an endpoint together with what the node knows of it.
type member struct {
	endpoint *mesh.Endpoint
	state    *state
	check    *check // nil without active checks
	weight   uint64
}

func (m *member) available(now int64) bool {
	return m.state.ejectedUntil.Load() <= now && (m.check == nil || !m.check.failing.Load())
}

// tier is a set of members that a pick chooses from by weight.
type tier struct {
	members []member
	// upTo are the sums of the weights up to and including each member; nil
	// when all weights are the same.
	upTo  []uint64
	total uint64
	// stride is coprime to total: steps of that size visit every position
	// once before any twice, and spread the heavy ones evenly.
	stride uint64
}

func newTier(members []member) tier {
	t := tier{members: members, total: uint64(len(members)), stride: 1}
	equal := true
	for _, m := range members {
		equal = equal && m.weight == members[0].weight
	}
	if equal {
		return t
	}
	t.total = 0
	for _, m := range members {
		t.total += m.weight
		t.upTo = append(t.upTo, t.total)
	}
	// Near the golden section of the total, consecutive steps fall far from
	// each other.
	for t.stride = max(1, t.total*618/1000); gcd(t.stride, t.total) != 1; {
		t.stride++
	}
	return t
}

func gcd(a, b uint64) uint64 {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

// at returns the member at a position below total.
func (t *tier) at(position uint64) *member {
	if t.upTo == nil {
		return &t.members[position]
	}
	return &t.members[sort.Search(len(t.upTo), func(i int) bool { return position < t.upTo[i] })]
}

// groupOf returns the group for a port of the service.
func (b *Balancer) groupOf(svc *mesh.Service, port int) *group {
	all, ok := b.groups.Load(svc)
	if !ok {
		all, _ = b.groups.LoadOrStore(svc, b.newGroups(svc))
	}
	ports := all.(*groups).ports
	if port < 0 || port >= len(ports) {
		return nil
	}
	return ports[port]
}

func (b *Balancer) newGroups(svc *mesh.Service) *groups {
	b.mu.Lock()
	defer b.mu.Unlock()
	all := &groups{ports: make([]*group, len(svc.Ports))}
	for i := range svc.Ports {
		all.ports[i] = b.newGroup(svc, i)
	}
	return all
}

func (b *Balancer) newGroup(svc *mesh.Service, port int) *group {
	g := &group{service: svc}
	byPriority := make(map[uint32]*sorted)
	for _, e := range svc.Endpoints {
		if port >= len(e.Ports) || e.Ports[port] == 0 || e.Health == mesh.HealthUnhealthy {
			continue
		}
		m := member{
			endpoint: e, state: b.stateOf(keyOf(e, port)), check: b.checkOf(svc, e, port),
			weight: uint64(max(1, e.Weight)),
		}
		g.members = append(g.members, m)
		at := byPriority[e.Priority]
		if at == nil {
			at = &sorted{}
			byPriority[e.Priority] = at
		}
		if e.Health == mesh.HealthDraining {
			at.draining = append(at.draining, m)
			continue
		}
		d := distance(b.opts.Node, e)
		at.near[d] = append(at.near[d], m)
	}
	for _, p := range slices.Sorted(maps.Keys(byPriority)) {
		g.levels = append(g.levels, byPriority[p].level(p))
	}
	return g
}

// sorted are the members of a level to be.
type sorted struct {
	near     [distances][]member
	draining []member
}

func (s *sorted) level(priority uint32) level {
	l := level{priority: priority, draining: newTier(s.draining)}
	for d := range s.near {
		l.near[d] = newTier(s.near[d])
	}
	return l
}
