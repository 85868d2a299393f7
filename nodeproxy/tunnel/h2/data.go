// SPDX-License-Identifier: Apache-2.0

package h2

// beginData charges the windows for a DATA frame (all of it, padding included:
// RFC 9113 section 6.1) and finds whom it is for.
func (c *Conn) beginData(f frame) error {
	if f.stream == 0 {
		return connError(ProtocolError, "DATA on stream 0")
	}
	if f.length > uint32(c.recvWindow) {
		return connError(FlowControlError, "connection window exceeded")
	}
	c.recvWindow -= int32(f.length)
	s := c.streams.get(f.stream)
	if s == nil {
		return c.dataOnClosed(f)
	}
	code := NoError
	switch {
	case s.has(gotEnd):
		code = StreamClosed
	case c.client && !s.has(gotHeaders):
		code = ProtocolError
	case f.length > uint32(s.recvWindow):
		code = FlowControlError
	}
	if code != NoError {
		c.refund(f.length)
		return c.resetStream(f.stream, s, code)
	}
	s.recvWindow -= int32(f.length)
	c.in.cur = s
	return nil
}

// dataOnClosed gives the window of a frame back that nobody will consume.
func (c *Conn) dataOnClosed(f frame) error {
	if c.idle(f.stream) {
		return connError(ProtocolError, "DATA on an idle stream")
	}
	c.refund(f.length)
	if c.closed.of(f.stream) == fateReset {
		return nil // was under way when we reset the stream
	}
	return c.resetStream(f.stream, nil, StreamClosed)
}

func (c *Conn) data(p []byte) {
	if s := c.in.cur; s != nil && len(p) > 0 {
		s.unconsumed += uint32(len(p))
		s.sink.Data(s, p)
	}
}

func (c *Conn) endData() error {
	s, f := c.in.cur, c.in.f
	if f.flags.has(flagEndStream) {
		if s != nil {
			c.endRemote(s)
		}
		return nil
	}
	if f.length == 0 || f.flags.has(flagPadded) && f.length == c.in.skip+1 {
		return c.nuisance("DATA without payload")
	}
	return nil
}

// endRemote takes END_STREAM: the peer has finished sending.
func (c *Conn) endRemote(s *Stream) {
	s.state |= gotEnd
	s.sink.End(s)
	if c.client && s.has(refused) {
		s.Reset(Cancel) // there is no tunnel; nothing can be sent that anyone wants
		return
	}
	c.finish(s)
}

// finish releases a stream that both sides have ended.
func (c *Conn) finish(s *Stream) {
	if s.state&(sentEnd|gotEnd|released) != sentEnd|gotEnd {
		return
	}
	c.closed.add(s.id, false)
	c.detach(s)
	c.announceRelease(s)
}

// release gives up a stream that this side has reset: nobody will consume what it
// was delivered.
func (c *Conn) release(s *Stream) {
	c.detach(s)
	c.reclaim(s)
	c.announceRelease(s)
}

// drop ends a stream that failed.
func (c *Conn) drop(s *Stream, err StreamError) {
	c.detach(s)
	c.reclaim(s)
	if s.sink != nil {
		s.sink.Reset(s, err)
	}
	c.announceRelease(s)
}

// detach takes the stream out of the connection.
func (c *Conn) detach(s *Stream) {
	c.unwait(s)
	s.state |= released
	c.streams.remove(s.id)
	if c.in.cur == s { // in the middle of a DATA frame
		c.in.cur = nil
		c.refund(c.in.rem)
	}
}

// reclaim refunds what the stream's sink holds and will throw away.
func (c *Conn) reclaim(s *Stream) {
	c.refund(s.unconsumed)
	s.unconsumed = 0
}

func (c *Conn) announceRelease(s *Stream) {
	c.ev.OnRelease(s)
	c.checkDrained()
}

// resetStream answers a stream error (RFC 9113 section 5.4.2). s is nil for a
// stream that is closed or was never made.
func (c *Conn) resetStream(id uint32, s *Stream, code ErrCode) error {
	if !c.provoked.take(c.cfg.Limits.Provoked, c.cfg.Now) {
		return connError(EnhanceYourCalm, "too many stream errors")
	}
	c.sendReset(id, code)
	c.closed.add(id, true)
	if s != nil {
		c.drop(s, StreamError{Code: code})
	}
	return nil
}

// idle reports whether no HEADERS were ever sent on the stream. Servers push
// nothing here, so even ids stay idle for ever.
func (c *Conn) idle(id uint32) bool {
	if id&1 == 0 {
		return true
	}
	if c.client {
		return id >= c.nextID
	}
	return id > c.lastPeer
}
