// SPDX-License-Identifier: Apache-2.0

package balance

import (
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/meshproxy/meshproxy/discovery/mesh"
)

// checkKey is a port of an endpoint as a service checks it.
type checkKey struct {
	service mesh.Name
	addr    netip.AddrPort
	node    string
}

// check is the active check of a port of an endpoint. Picks read failing and nothing
// else; the rest belongs to the Checker's loop.
type check struct {
	failing atomic.Bool
	// failure is why it is failing, for people.
	failure atomic.Pointer[string]

	key      checkKey
	service  *mesh.Service
	endpoint *mesh.Endpoint
	port     int
	streak   int  // results in a row that contradict failing
	running  bool // a probe is under way
	gone     bool // the endpoint was removed meanwhile
	due      time.Time
	index    int // in the queue; -1 when not in it
}

// speaksHTTP reports whether the check of a port is the service's HTTP request:
// of those that speak it, or of the first one when none says so. The others are
// connected to.
func speaksHTTP(svc *mesh.Service, port int) bool {
	if svc.HealthCheck == nil || svc.HealthCheck.HTTPPath == "" {
		return false
	}
	for i := range svc.Ports {
		if svc.Ports[i].Protocol == mesh.ProtocolHTTP {
			return svc.Ports[port].Protocol == mesh.ProtocolHTTP
		}
	}
	return port == 0
}

// checkOf returns the check of an endpoint's port, or nil if the service has
// none. Each port is checked and judged by itself: behind one address there may
// be several processes, and one that hangs must not take the others along. The
// caller holds b.mu.
func (b *Balancer) checkOf(svc *mesh.Service, e *mesh.Endpoint, port int) *check {
	if svc.HealthCheck == nil || port >= len(svc.Ports) || port >= len(e.Ports) || e.Ports[port] == 0 {
		return nil
	}
	at := keyOf(e, port)
	k := checkKey{svc.Canonical(), at.addr, at.node}
	c := b.checks[k]
	if c == nil {
		c = &check{key: k, index: -1}
		b.checks[k] = c
	}
	return c
}

// judge takes a result and reports whether the state changed.
func (c *check) judge(spec *mesh.HealthCheck, err error) bool {
	failing := c.failing.Load()
	if failing == (err != nil) {
		c.streak = 0
	} else {
		c.streak++
	}
	if err != nil {
		text := err.Error()
		c.failure.Store(&text)
	}
	need := max(1, spec.Unhealthy)
	if failing {
		need = max(1, spec.Healthy)
	}
	if c.streak < need {
		return false
	}
	c.streak = 0
	c.failing.Store(!failing)
	return true
}

// queue orders checks by when they are due (container/heap).
type queue []*check

func (q queue) Len() int           { return len(q) }
func (q queue) Less(i, j int) bool { return q[i].due.Before(q[j].due) }
func (q queue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].index, q[j].index = i, j
}

func (q *queue) Push(x any) {
	c := x.(*check)
	c.index = len(*q)
	*q = append(*q, c)
}

func (q *queue) Pop() any {
	last := len(*q) - 1
	c := (*q)[last]
	(*q)[last] = nil
	*q = (*q)[:last]
	c.index = -1
	return c
}
