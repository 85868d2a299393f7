// SPDX-License-Identifier: Apache-2.0

package h2

// sendable is how much of want may be sent on the stream now. If it is nothing,
// the stream has been noted as waiting for whatever is missing.
func (c *Conn) sendable(s *Stream, want int) int {
	if want <= 0 || s.WriteClosed() || !c.client && !s.has(sentHeaders) {
		return 0
	}
	if s.sendWindow <= 0 {
		s.state |= wantsWindow
		return 0
	}
	if c.sendWindow <= 0 {
		c.wait(s)
		return 0
	}
	c.lend()
	want = min(want, int(s.sendWindow), int(c.sendWindow))
	if !c.out.fits(want) {
		c.ev.OnFull() // the owner may write, whereupon other streams may take windows
		if s.WriteClosed() {
			return 0
		}
		c.lend()
		want = min(want, int(s.sendWindow), int(c.sendWindow))
		if want <= 0 || !c.out.fits(want) {
			c.wait(s)
			return 0
		}
	}
	return want
}

// sent charges the windows for n bytes in so many frames.
func (c *Conn) sent(s *Stream, n, frames int) {
	s.sendWindow -= int32(n)
	c.sendWindow -= int32(n)
	c.credit(frames)
}

// credit allows the peer to send window updates.
func (c *Conn) credit(frames int) {
	c.updates = uint16(min(int(c.updates)+frames*updateCredit, maxCredit))
}

// wait puts the stream at the end of the queue of those that wait for the
// connection's window or for room in the batch. The queue is first come, first
// served, which is what keeps bulk streams fair to each other.
func (c *Conn) wait(s *Stream) {
	if s.has(waiting) {
		return
	}
	s.state |= waiting
	s.prev, s.next = c.waitTail, nil
	if c.waitTail != nil {
		c.waitTail.next = s
	} else {
		c.waitHead = s
	}
	c.waitTail = s
	c.waitCount++
}

func (c *Conn) unwait(s *Stream) {
	s.state &^= wantsWindow
	if !s.has(waiting) {
		return
	}
	s.state &^= waiting
	if s.prev != nil {
		s.prev.next = s.next
	} else {
		c.waitHead = s.next
	}
	if s.next != nil {
		s.next.prev = s.prev
	} else {
		c.waitTail = s.prev
	}
	s.prev, s.next = nil, nil
	c.waitCount--
}

// wake lets waiting streams try again, those once that wait now, while there is
// something to be had.
func (c *Conn) wake() {
	for n := c.waitCount; n > 0 && c.waitHead != nil; n-- {
		if c.err != nil || c.sendWindow <= 0 || c.out != nil && !c.out.fits(minSlot) {
			return
		}
		s := c.waitHead
		c.unwait(s)
		s.sink.Writable(s)
	}
}

// refund gives k bytes of the connection's window back to the peer.
func (c *Conn) refund(k uint32) {
	c.owed += k
	if c.owed < c.cfg.ConnWindow/4 || c.err != nil {
		return
	}
	c.recvWindow += int32(c.owed)
	c.sendWindowUpdate(0, c.owed)
	c.owed = 0
}

// refund gives k bytes of the stream's window back, unless the peer has ended it.
func (s *Stream) refund(k uint32) {
	if s.state&(gotEnd|released) != 0 {
		return
	}
	s.owed += k
	if s.owed < s.conn.cfg.StreamWindow/4 {
		return
	}
	s.recvWindow += int32(s.owed)
	s.conn.sendWindowUpdate(s.id, s.owed)
	s.owed = 0
}

// windowUpdate takes WINDOW_UPDATE, RFC 9113 section 6.9.
func (c *Conn) windowUpdate(id, inc uint32) error {
	if c.updates > 0 {
		c.updates--
	} else if err := c.nuisance("window updates"); err != nil {
		return err
	}
	if id == 0 {
		return c.connWindowUpdate(inc)
	}
	s := c.streams.get(id)
	if s == nil {
		if c.idle(id) {
			return connError(ProtocolError, "WINDOW_UPDATE on an idle stream")
		}
		return nil // may have been under way when the stream closed
	}
	if inc == 0 {
		return c.resetStream(id, s, ProtocolError)
	}
	if int64(s.sendWindow)+int64(inc) > maxWindow {
		return c.resetStream(id, s, FlowControlError)
	}
	s.sendWindow += int32(inc)
	c.wakeStream(s)
	return nil
}

func (c *Conn) connWindowUpdate(inc uint32) error {
	if inc == 0 {
		return connError(ProtocolError, "WINDOW_UPDATE of 0")
	}
	if int64(c.sendWindow)+int64(inc) > maxWindow {
		return connError(FlowControlError, "connection window overflows")
	}
	c.sendWindow += int32(inc)
	c.wake()
	return nil
}

// wakeStream lets a stream go on that waited for its own window.
func (c *Conn) wakeStream(s *Stream) {
	if s.has(wantsWindow) && s.sendWindow > 0 && !s.has(released) {
		s.state &^= wantsWindow
		s.sink.Writable(s)
	}
}
