// SPDX-License-Identifier: Apache-2.0

package telemetry

import (
	"sync"
	"sync/atomic"
	"time"
)

// Key is a label set that connections count under.
type Key struct {
	Direction                    Direction
	Path                         Path
	Source, Destination, Service string
}

// other is where a connection counts when there are too many label sets.
func (k Key) other() Key {
	return Key{Direction: k.Direction, Path: k.Path, Source: Other, Destination: Other, Service: Other}
}

// Pair counts the connections of one label set on one loop. Its methods may be
// called from any goroutine; they are uncontended when only the loop does.
type Pair struct {
	opened, closed, sent, received atomic.Uint64
	connect                        histogram
	// Two loops' pairs never share a cache line: allocations of a multiple
	// of 64 bytes are aligned to 64.
	_ [64 - (4*8+(len(connectBuckets)+2)*8)%64]byte
}

// Sent counts bytes from source to destination.
func (p *Pair) Sent(n int) { p.sent.Add(uint64(n)) }

// Received counts bytes from destination to source.
func (p *Pair) Received(n int) { p.received.Add(uint64(n)) }

// Connected records how long it took to reach the endpoint.
func (p *Pair) Connected(d time.Duration) { p.connect.observe(d) }

// Close counts the end of one connection that Shard.Pair opened.
func (p *Pair) Close() { p.closed.Add(1) }

// active reports whether anyone may still hold the pair.
func (p *Pair) active() bool { return p.closed.Load() != p.opened.Load() }

// Shard holds the pairs and the open connections of one loop.
type Shard struct {
	metrics *Metrics

	mu    sync.Mutex
	pairs map[Key]*Pair
	live  list
}

// Shard returns a new shard; a loop asks for one once and keeps it.
func (m *Metrics) Shard() *Shard {
	s := &Shard{metrics: m, pairs: make(map[Key]*Pair)}
	s.live.init()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.shards = append(m.shards, s)
	return s
}

// Pair counts a connection as opened and returns where the rest of its life
// counts. The caller keeps it until it calls Close, once.
func (s *Shard) Pair(key Key) *Pair {
	s.mu.Lock()
	p := s.pairs[key]
	if p != nil {
		p.opened.Add(1) // under the lock: an open pair is never evicted
	}
	s.mu.Unlock()
	if p == nil {
		p = s.metrics.addPair(s, key)
	}
	return p
}

// series is one label set over all shards.
type series struct {
	pairs []*Pair
	// opened and since: how many connections there were when a scrape last
	// saw the number change, and when that was.
	opened uint64
	since  time.Time
}

// addPair creates the shard's pair for key, or for the overflow.
//
// Locks are taken in the order Metrics.mu, Shard.mu.
func (m *Metrics) addPair(s *Shard, key Key) *Pair {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.series[key] == nil && len(m.series) >= m.maxSeries {
		m.overflows++
		key = key.other()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.pairs[key]
	if p == nil {
		p = new(Pair)
		s.pairs[key] = p
		if m.series[key] == nil {
			m.series[key] = &series{since: m.now()}
		}
		m.series[key].pairs = append(m.series[key].pairs, p)
	}
	p.opened.Add(1)
	return p
}

// totals are a series' figures.
type totals struct {
	opened, closed, sent, received uint64
	connect                        cumulative
}

func (s *series) totals() totals {
	var t totals
	for _, p := range s.pairs {
		// closed first: it must never be seen above opened.
		t.closed += p.closed.Load()
		t.opened += p.opened.Load()
		t.sent += p.sent.Load()
		t.received += p.received.Load()
		p.connect.addTo(&t.connect)
	}
	return t
}

// evictIdle drops the label sets that had no connection for idleSeries, in all
// shards together: dropping one shard's part would make the sum go backwards.
// The caller holds m.mu.
func (m *Metrics) evictIdle() {
	now := m.now()
	var idle []Key
	for key, s := range m.series {
		t := s.totals()
		if t.opened != s.opened || t.opened != t.closed {
			s.opened, s.since = t.opened, now
		} else if now.Sub(s.since) >= idleSeries {
			idle = append(idle, key)
		}
	}
	if len(idle) == 0 {
		return
	}
	for _, shard := range m.shards {
		shard.mu.Lock()
		defer shard.mu.Unlock()
	}
	for _, key := range idle {
		m.evict(key)
	}
}

// evict drops one label set unless a connection opened meanwhile. The caller
// holds all locks.
func (m *Metrics) evict(key Key) {
	for _, p := range m.series[key].pairs {
		if p.active() {
			return
		}
	}
	delete(m.series, key)
	for _, shard := range m.shards {
		delete(shard.pairs, key)
	}
}
