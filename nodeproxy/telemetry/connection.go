// SPDX-License-Identifier: Apache-2.0

package telemetry

import (
	"cmp"
	"slices"
	"sync/atomic"
	"time"

	"github.com/meshproxy/meshproxy/nodeproxy/telemetry/reason"
)

// Connection accounts for one connection from Shard.Open to Close. Its owner
// embeds it in whatever struct carries the connection; it must not be copied
// or moved while it is open.
type Connection struct {
	record         Record
	id             uint64
	opened         time.Time
	connected      atomic.Bool
	sent, received atomic.Uint64
	pair           *Pair
	shard          *Shard
	prev, next     *Connection
}

// Open begins to account for a connection: when its endpoint is known, before
// it is connected.
func (s *Shard) Open(c *Connection, r Record) {
	m := s.metrics
	c.record, c.shard, c.opened = r, s, m.now()
	c.id = m.lastID.Add(1)
	c.connected.Store(false)
	c.sent.Store(0)
	c.received.Store(0)
	c.pair = s.Pair(r.Key())
	s.mu.Lock()
	s.live.push(c)
	s.mu.Unlock()
	if m.watchers.any() {
		m.watchers.send(Event{Kind: EventOpened, Time: c.opened, Connection: c.View()})
	}
}

// Sent counts bytes from source to destination.
func (c *Connection) Sent(n int) {
	c.sent.Add(uint64(n))
	c.pair.Sent(n)
}

// Received counts bytes from destination to source.
func (c *Connection) Received(n int) {
	c.received.Add(uint64(n))
	c.pair.Received(n)
}

// Connected says that the endpoint was reached.
func (c *Connection) Connected() {
	if !c.connected.Swap(true) {
		c.pair.Connected(c.shard.metrics.now().Sub(c.opened))
	}
}

// Close ends the account and writes the access log; r is reason.None when the
// connection ended as its peers wanted, and detail is what is known beyond it.
// Only the first call counts.
func (c *Connection) Close(r reason.Reason, detail string) {
	m := c.leave(r, detail)
	if m == nil {
		return
	}
	if r != reason.None {
		m.ended(c.record.Direction, r)
	}
	if m.accessLog != nil && m.accessLog.wants(r) {
		now := m.now()
		m.accessLog.closed(&Entry{
			Record: c.record, Time: now, Reason: r, Detail: detail,
			Sent: c.sent.Load(), Received: c.received.Load(), Duration: now.Sub(c.opened),
		})
	}
}

// Refuse ends the account of a connection that reached no endpoint: its client
// was refused, and it counts as such. Like Close, it counts once.
func (c *Connection) Refuse(r reason.Reason, detail string) {
	if m := c.leave(r, detail); m != nil {
		m.refused(c.record, r, detail)
	}
}

// Reached reports whether an endpoint was reached.
func (c *Connection) Reached() bool { return c.connected.Load() }

// leave takes the connection out of what is open; it returns nil when it was
// not in there.
func (c *Connection) leave(r reason.Reason, detail string) *Metrics {
	s := c.shard
	if s == nil {
		return nil
	}
	m := s.metrics
	s.mu.Lock()
	s.live.remove(c)
	s.mu.Unlock()
	c.pair.Close()
	if m.watchers.any() {
		m.watchers.send(Event{Kind: EventClosed, Time: m.now(), Connection: c.View(), Reason: r, Detail: detail})
	}
	c.shard, c.pair = nil, nil
	return m
}

// View is a connection as it stood at one moment.
type View struct {
	Record
	ID        uint64 // unique as long as the process lives
	Opened    time.Time
	Connected bool // the endpoint was reached
	Sent      uint64
	Received  uint64
}

// View returns the connection as it stands.
func (c *Connection) View() View {
	return View{
		Record: c.record, ID: c.id, Opened: c.opened, Connected: c.connected.Load(),
		Sent: c.sent.Load(), Received: c.received.Load(),
	}
}

// Connections returns what is open, oldest first, and then what the kernel
// carries, as long as keep (nil: all)
// wants it.
func (m *Metrics) Connections(keep func(*View) bool) []View {
	m.mu.Lock()
	shards := slices.Clone(m.shards)
	m.mu.Unlock()
	var views []View
	for _, s := range shards {
		s.mu.Lock()
		for c := s.live.first(); c != nil; c = s.live.after(c) {
			if v := c.View(); keep == nil || keep(&v) {
				views = append(views, v)
			}
		}
		s.mu.Unlock()
	}
	slices.SortFunc(views, func(a, b View) int { return cmp.Compare(a.ID, b.ID) })
	return append(views, m.kernelConnections(keep)...)
}

// list is a list of connections through their own pointers: being on it costs
// a connection no allocation.
type list struct{ root Connection }

func (l *list) init() { l.root.prev, l.root.next = &l.root, &l.root }

func (l *list) push(c *Connection) {
	c.prev, c.next = l.root.prev, &l.root
	c.prev.next, l.root.prev = c, c
}

func (l *list) remove(c *Connection) {
	c.prev.next, c.next.prev = c.next, c.prev
	c.prev, c.next = nil, nil
}

func (l *list) first() *Connection { return l.after(&l.root) }

func (l *list) after(c *Connection) *Connection {
	if c.next == &l.root {
		return nil
	}
	return c.next
}
