// SPDX-License-Identifier: Apache-2.0

package telemetry

import (
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/meshproxy/meshproxy/nodeproxy/telemetry/reason"
)

// Refused counts a connection that was refused, and logs it unless too many
// like it were logged just now. detail is what is known beyond the reason.
func (m *Metrics) Refused(r Record, why reason.Reason, detail string) {
	if m.watchers.any() {
		now := m.now()
		m.watchers.send(Event{
			Kind: EventRefused, Time: now, Connection: View{Record: r, Opened: now}, Reason: why, Detail: detail,
		})
	}
	m.refused(r, why, detail)
}

// refused counts and logs.
func (m *Metrics) refused(r Record, why reason.Reason, detail string) {
	m.refusals.counter(refusalKey{
		direction: r.Direction, reason: why,
		source: r.Source, destination: r.Destination, service: r.Service,
	}).Add(1)
	if m.accessLog != nil {
		m.accessLog.limited(&Entry{Record: r, Time: m.now(), Refused: true, Reason: why, Detail: detail})
	}
}

type refusalKey struct {
	direction                    Direction
	reason                       reason.Reason
	source, destination, service string
}

func (k refusalKey) other() refusalKey {
	return refusalKey{direction: k.direction, reason: k.reason, source: Other, destination: Other, service: Other}
}

// refusals counts by label set; beyond max of them, under Other.
type refusals struct {
	max    int
	mu     sync.RWMutex
	counts map[refusalKey]*atomic.Uint64
}

func (r *refusals) counter(key refusalKey) *atomic.Uint64 {
	r.mu.RLock()
	c := r.counts[key]
	r.mu.RUnlock()
	if c != nil {
		return c
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.counts[key] == nil && len(r.counts) >= r.max {
		key = key.other()
	}
	if c = r.counts[key]; c == nil {
		c = new(atomic.Uint64)
		r.counts[key] = c
	}
	return c
}

var refusalsDesc = desc("refusals_total", "Connections refused, by the reason.",
	"direction", "reason", "source", "destination", "service")

type refusalCollector struct{ m *Metrics }

// Describe implements prometheus.Collector.
func (refusalCollector) Describe(ch chan<- *prometheus.Desc) { ch <- refusalsDesc }

// Collect implements prometheus.Collector.
func (c refusalCollector) Collect(ch chan<- prometheus.Metric) {
	r := &c.m.refusals
	r.mu.RLock()
	defer r.mu.RUnlock()
	for key, n := range r.counts {
		ch <- counter(refusalsDesc, float64(n.Load()),
			string(key.direction), key.reason.String(), key.source, key.destination, key.service)
	}
}

// RefusalCount is how often a reason occurred in a direction.
type RefusalCount struct {
	Direction Direction
	Reason    reason.Reason
	Count     uint64
}

// Refusals returns the refusals so far, summed over workloads, in the order
// of reasons, inbound before outbound.
func (m *Metrics) Refusals() []RefusalCount {
	type total struct{ inbound, outbound uint64 }
	sums := map[reason.Reason]total{}
	m.refusals.mu.RLock()
	for key, n := range m.refusals.counts {
		t := sums[key.reason]
		if key.direction == Inbound {
			t.inbound += n.Load()
		} else {
			t.outbound += n.Load()
		}
		sums[key.reason] = t
	}
	m.refusals.mu.RUnlock()
	var counts []RefusalCount
	for _, r := range reason.All() {
		if n := sums[r].inbound; n > 0 {
			counts = append(counts, RefusalCount{Inbound, r, n})
		}
		if n := sums[r].outbound; n > 0 {
			counts = append(counts, RefusalCount{Outbound, r, n})
		}
	}
	return counts
}
