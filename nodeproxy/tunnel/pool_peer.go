// SPDX-License-Identifier: Apache-2.0

package tunnel

import (
	"errors"
	"slices"
	"time"

	"github.com/meshproxy/meshproxy/nodeproxy/telemetry/reason"
	"github.com/meshproxy/meshproxy/nodeproxy/tunnel/h2"
)

// peer is one key of a pool: its connections, and who waits for one.
type peer struct {
	pool    *Pool
	key     Key
	conns   []*conn // none that drains
	drains  []*conn
	dialing int
	pending []*Pending
	backoff backoff
}

// open tries to open a stream now. It reports whether w has been answered.
func (t *peer) open(block *h2.Block, w Waiter) bool {
	for {
		c := t.pick()
		if c == nil {
			return false
		}
		s, err := c.h2.Open(w, block, nil)
		switch {
		case err == nil:
			w.Opened(s, Tunnel{c})
			return true
		case errors.Is(err, h2.ErrDraining), errors.Is(err, h2.ErrClosed):
			t.setAside(c)
		case errors.Is(err, h2.ErrStreamLimit), errors.Is(err, h2.ErrBacklog):
			return false
		default:
			w.Failed(reason.Wrap(reason.Internal, err))
			return true
		}
	}
}

// pick returns the connection with the fewest streams that has room for one.
func (t *peer) pick() *conn {
	var best *conn
	for _, c := range t.conns {
		if c.h2.Room() > 0 && (best == nil || c.h2.Streams() < best.h2.Streams()) {
			best = c
		}
	}
	return best
}

// grow dials when somebody waits, or before the last connection is full: the
// next stream should not have to wait for a handshake.
func (t *peer) grow() {
	if t.dialing > 0 || len(t.conns) >= t.pool.options.MaxConns {
		return
	}
	room := 0
	for _, c := range t.conns {
		room = max(room, c.h2.Room()-c.h2.Streams()/spareShare)
	}
	if room <= 0 && (len(t.pending) > 0 || len(t.conns) > 0) {
		t.pool.dial(t)
	}
}

// spareShare: a connection is nearly full when its room is below the tenth
// part of its streams.
const spareShare = 10

// serve opens streams for those who wait, in order.
func (t *peer) serve() {
	n := 0
	for ; n < len(t.pending); n++ {
		q := t.pending[n]
		if q.waiter == nil {
			continue
		}
		if t.pick() == nil {
			break
		}
		w, block := q.waiter, q.block
		q.Cancel()
		if !t.open(block, w) {
			q.waiter, q.block = w, block
			break
		}
	}
	t.pending = slices.Delete(t.pending, 0, min(n, len(t.pending)))
	if len(t.pending) > 0 {
		t.grow()
	}
}

func (t *peer) adopt(s *secured) error {
	c, err := t.pool.carrier.adopt(s, t, true)
	if err != nil {
		return err
	}
	t.conns = append(t.conns, c)
	if t.pool.drained {
		c.drain()
	}
	return nil
}

// dialled is called when a dial is over.
func (t *peer) dialled(err error) {
	switch {
	case err == nil:
		t.backoff = backoff{}
		t.serve()
	case len(t.conns) == 0:
		t.backoff.failed(err, t.pool.carrier.loop.Now())
		t.fail(err)
	}
	t.vanish()
}

// fail answers everybody who waits. A waiter may open anew meanwhile.
func (t *peer) fail(err error) {
	waiting := t.pending
	t.pending = nil
	for _, q := range waiting {
		if w := q.waiter; w != nil {
			q.Cancel()
			w.Failed(err)
		}
	}
}

func (t *peer) expire(now time.Duration) {
	late := 0
	for _, q := range t.pending {
		if w := q.waiter; w != nil && now >= q.deadline {
			q.Cancel()
			late++
			w.Failed(ErrOpenTimeout)
		}
	}
	t.pending = slices.DeleteFunc(t.pending, func(q *Pending) bool { return q.waiter == nil })
	t.vanish()
}

// members lists all connections; the caller may change the sets meanwhile.
func (t *peer) members() []*conn { return slices.Concat(t.conns, t.drains) }

// setAside takes a connection that drains out of the choice.
func (t *peer) setAside(c *conn) {
	if i := slices.Index(t.conns, c); i >= 0 {
		t.conns = slices.Delete(t.conns, i, i+1)
		t.drains = append(t.drains, c)
	}
}

// vanish forgets a key that holds nothing any more.
func (t *peer) vanish() {
	if t.idle() && !t.backoff.remembers(t.pool.carrier.loop.Now()) && t.pool.peers[t.key] == t {
		delete(t.pool.peers, t.key)
	}
}

// idle: there is no connection, and nobody waits for one.
func (t *peer) idle() bool { return len(t.conns)+len(t.drains)+len(t.pending)+t.dialing == 0 }

// A peer is the role of its connections.

func (t *peer) request(_ *conn, s *h2.Stream, _ *h2.Request) h2.Sink {
	s.Reset(h2.RefusedStream) // package h2 takes no request from a server
	return nil
}

func (t *peer) changed(c *conn) {
	if c.draining {
		t.setAside(c)
	}
	if len(t.pending) > 0 {
		t.serve()
	}
}

func (t *peer) gone(c *conn, _ error) {
	gone := func(m *conn) bool { return m == c }
	t.conns = slices.DeleteFunc(t.conns, gone)
	t.drains = slices.DeleteFunc(t.drains, gone)
	if len(t.pending) > 0 {
		t.grow()
	}
	t.vanish()
}
