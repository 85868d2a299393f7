// SPDX-License-Identifier: Apache-2.0

package tunnel

import (
	"time"

	"github.com/meshproxy/meshproxy/nodeproxy/tunnel/h2"
)

// The connection as package h2 sees it.

// OnOutput implements h2.Events.
func (c *conn) OnOutput() { c.list() }

// OnFull implements h2.Events: the batch is full in the middle of a turn.
func (c *conn) OnFull() { c.push() }

// OnRequest implements h2.Events.
func (c *conn) OnRequest(s *h2.Stream, r *h2.Request) h2.Sink {
	if c.role == nil {
		s.Reset(h2.RefusedStream)
		return nil
	}
	return c.role.request(c, s, r)
}

// OnRelease implements h2.Events.
func (c *conn) OnRelease(*h2.Stream) {
	if c.h2.Streams() == 0 {
		c.idleSince = c.carrier.loop.Now()
	}
	c.changed()
}

// OnSettings implements h2.Events.
func (c *conn) OnSettings() { c.changed() }

// OnGoAway implements h2.Events.
func (c *conn) OnGoAway(_ uint32, code h2.ErrCode, debug []byte) {
	if !c.draining {
		c.draining, c.phaseAt = true, c.carrier.loop.Now()
	}
	if code != h2.NoError {
		c.carrier.options.Logger.Warn("peer ends tunnel", "peer", c.peer.Identity.String(),
			"remote", c.peer.Remote, "code", code.String(), "debug", string(debug))
	}
	c.changed()
}

// OnPong implements h2.Events.
func (c *conn) OnPong(uint64) { c.pingAt = 0 }

// OnDrained implements h2.Events.
func (c *conn) OnDrained() { c.finish(nil) }

func (c *conn) changed() {
	if c.role != nil {
		c.role.changed(c)
	}
}

// lookAround finds out whether the connection is dead, idle or too old.
func (c *conn) lookAround(now time.Duration, day time.Time) {
	o := &c.carrier.options
	switch c.phase {
	case finishing, lingering:
		if now-c.phaseAt > lingerLimit {
			c.close(nil)
		}
		return
	case closed:
		return
	}
	l := &o.Lifetime
	switch {
	case !c.alive(now, o):
		c.fail(errUnresponsive)
	case l.CloseExpired && day.After(c.peer.Expires.Add(l.Grace)):
		c.h2.Fail(h2.NoError, "leaf expired")
		c.finish(errExpired)
	case c.draining:
		if o.DrainTimeout > 0 && now-c.phaseAt > o.DrainTimeout {
			c.fail(errDrainTimeout)
		}
	case day.After(c.peer.Expires), l.MaxAge > 0 && now-c.born > l.MaxAge,
		c.h2.Streams() == 0 && now-c.idleSince > c.idleLimit:
		c.drain()
	}
}

// alive sends PING when the peer has been silent and reports whether it may
// still be there. Any input counts as an answer: behind bulk data a PING's may
// come late.
func (c *conn) alive(now time.Duration, o *Options) bool {
	if c.heard {
		c.heard, c.heardAt, c.pingAt = false, now, 0
	}
	switch {
	case c.pingAt != 0:
		return now-c.pingAt < o.PingTimeout
	case now-c.heardAt >= o.PingInterval:
		c.pingAt = now
		c.h2.Ping(uint64(now))
	}
	return true
}
