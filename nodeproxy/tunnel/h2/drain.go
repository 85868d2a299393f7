// SPDX-License-Identifier: Apache-2.0

package h2

type drainState uint8

const (
	drainNone      drainState = iota
	drainAnnounced            // server: GOAWAY without a last stream is sent, its PING not answered
	drainFinal                // nothing new can come
)

// drainPing marks the PING that follows the first GOAWAY: its answer shows that
// the client has read it. Owners' own PINGs should not use this value.
const drainPing = 0x6472_6169_6e00_0001

// Draining reports whether either side has announced that the connection ends.
func (c *Conn) Draining() bool { return c.drain != drainNone }

// Drain finishes what is open and accepts nothing new. A server announces it, waits
// for one round trip in which the client may still have opened streams, and then
// names the last stream it accepts (RFC 9113 section 6.8). OnDrained follows when
// all streams are over; it may be called before Drain returns.
func (c *Conn) Drain() {
	if c.err != nil || c.drain != drainNone {
		return
	}
	if c.client {
		c.drain = drainFinal
		c.sendGoAway(0, NoError, "")
		c.checkDrained()
		return
	}
	c.drain = drainAnnounced
	c.sendGoAway(maxStreamID, NoError, "")
	c.sendPing(0, drainPing)
}

func (c *Conn) lastGoAway() {
	c.drain = drainFinal
	c.accepted = c.lastPeer
	c.sendGoAway(c.accepted, NoError, "")
	c.checkDrained()
}

// goAway takes the peer's GOAWAY. What a client opened beyond the last stream the
// server will look at may be opened elsewhere.
func (c *Conn) goAway(last uint32, code ErrCode, debug []byte) error {
	if err := c.nuisance("GOAWAY"); err != nil {
		return err
	}
	if !c.client {
		c.Drain() // it opens nothing more
		c.ev.OnGoAway(last, code, debug)
		return nil
	}
	c.drain = max(c.drain, drainAnnounced) // sinks that are reset must not open here again
	for _, s := range c.streams.all() {
		if s.id > last && !s.has(released) {
			c.closed.add(s.id, true)
			c.drop(s, StreamError{Code: RefusedStream, Remote: true, Unprocessed: true})
		}
	}
	c.ev.OnGoAway(last, code, debug)
	c.drain = drainFinal
	c.checkDrained()
	return nil
}

func (c *Conn) checkDrained() {
	if c.drain == drainFinal && c.streams.count == 0 && !c.drained && c.err == nil {
		c.drained = true
		c.ev.OnDrained()
	}
}
