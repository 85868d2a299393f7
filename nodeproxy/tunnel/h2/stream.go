// SPDX-License-Identifier: Apache-2.0

package h2

// Stream is one CONNECT. A loop has tens of thousands of them, idle: a field here
// is paid for that often.
type Stream struct {
	conn *Conn
	sink Sink

	// Neighbours in the queue of streams that wait to send, nil outside of it.
	prev, next *Stream

	id         uint32
	sendWindow int32  // bytes the peer accepts; negative after it shrank its initial window
	recvWindow int32  // bytes the peer may still send
	unconsumed uint32 // bytes delivered to the sink and not given back
	owed       uint32 // bytes given back and not announced by WINDOW_UPDATE yet
	state      state
}

type state uint16

const (
	sentHeaders state = 1 << iota // server: answered
	sentEnd                       // END_STREAM sent
	gotHeaders                    // client: final response received
	gotEnd                        // END_STREAM received
	refused                       // the answer was not 2xx: no tunnel
	waiting                       // in the connection's queue of waiting streams
	wantsWindow                   // waits for its own send window
	released                      // out of the table
)

func (s *Stream) has(x state) bool { return s.state&x != 0 }

// ID is the stream's identifier.
func (s *Stream) ID() uint32 { return s.id }

// Conn is the connection that the stream belongs to.
func (s *Stream) Conn() *Conn { return s.conn }

// Sink is where the stream delivers to.
func (s *Stream) Sink() Sink { return s.sink }

// SetSink changes where the stream delivers to from now on.
func (s *Stream) SetSink(sink Sink) { s.sink = sink }

// Released reports whether the stream is over: both sides have ended it, or one
// has reset it. All methods remain safe to call and do nothing, except Consumed,
// which still has to be called for data that was delivered before a clean end.
func (s *Stream) Released() bool { return s.has(released) }

// Ended reports whether the peer has finished sending.
func (s *Stream) Ended() bool { return s.has(gotEnd) }

// WriteClosed reports whether this side has finished sending.
func (s *Stream) WriteClosed() bool { return s.state&(sentEnd|released) != 0 }

// Unconsumed is the number of bytes delivered to the sink and not given back.
func (s *Stream) Unconsumed() int { return int(s.unconsumed) }

// Reserve appends to iov the places where up to max bytes of payload may be put,
// by readv(2) or otherwise, in order. It gives fewer, or none, when the windows,
// the batch or Config.Slots do not allow more; if none, the sink's Writable tells
// when to try again. Commit follows on this stream; any other call in between, a
// Reset after a read error perhaps, gives the reservation up.
func (s *Stream) Reserve(max int, iov [][]byte) [][]byte {
	c := s.conn
	c.reserved = 0
	if max = c.sendable(s, max); max == 0 {
		return iov
	}
	iov, total := c.out.slots(max, c.cfg.Slots, iov)
	c.reserved, c.reservedWant = total, max
	return iov
}

// Commit sends the first n bytes of what Reserve gave; 0 gives the reservation up.
func (s *Stream) Commit(n int) {
	c := s.conn
	if n < 0 || n > c.reserved {
		panic("h2: Commit of more than was reserved")
	}
	want := c.reservedWant
	c.reserved, c.reservedWant = 0, 0
	if n > 0 {
		c.sent(s, n, c.out.commit(s.id, want, n))
	}
	c.touch()
}

// Write copies p into the batch, as much of it as Reserve would give, and returns
// how much that was. If it was less than all, Writable will be called.
func (s *Stream) Write(p []byte) (n int) {
	c := s.conn
	for n < len(p) {
		want := c.sendable(s, len(p)-n)
		if want == 0 {
			return n
		}
		var first [1][]byte
		slot, _ := c.out.slots(want, 1, first[:0])
		k := copy(slot[0], p[n:])
		c.sent(s, k, c.out.commit(s.id, want, k))
		c.touch()
		n += k
	}
	return n
}

// CloseWrite sends END_STREAM: a half-close. A server's stream that was not
// accepted is reset instead, because nothing may be sent before the answer.
func (s *Stream) CloseWrite() {
	c := s.conn
	if s.WriteClosed() {
		return
	}
	if !c.client && !s.has(sentHeaders) {
		s.Reset(Cancel)
		return
	}
	if c.out == nil || !c.out.endLast(s.id) {
		c.queue(frameData, flagEndStream, s.id, 0)
	}
	s.state |= sentEnd
	c.unwait(s)
	c.finish(s)
}

// Reset ends the stream in both directions at once. The sink hears no more.
// A connection of the application that was reset is ConnectError (RFC 9113 section
// 8.5), one that is given up for other reasons Cancel.
func (s *Stream) Reset(code ErrCode) {
	if s.has(released) {
		return
	}
	s.conn.sendReset(s.id, code)
	s.conn.closed.add(s.id, true)
	s.conn.release(s)
}

// Consumed gives n bytes of delivered data back: they have left this process. The
// peer hears of it when a quarter of the window has come together.
func (s *Stream) Consumed(n int) {
	k := min(uint32(max(n, 0)), s.unconsumed) // a reset has given the rest back already
	if k == 0 {
		return
	}
	s.unconsumed -= k
	s.conn.refund(k)
	s.refund(k)
}

// Accept (server) answers the CONNECT with 200: the tunnel is open. extra may be
// nil.
func (s *Stream) Accept(extra *Block) {
	c := s.conn
	if c.client || s.state&(sentHeaders|released) != 0 {
		return
	}
	enc := appendStatus(c.startBlock(), 200)
	if extra != nil {
		enc = append(enc, extra.enc...)
	}
	s.state |= sentHeaders
	c.sendBlock(s.id, 0, enc)
}

// Refuse (server) answers the CONNECT with a status that is not 2xx, and ends the
// stream. The sink hears no more.
func (s *Stream) Refuse(status int) {
	c := s.conn
	if c.client || s.state&(sentHeaders|released) != 0 {
		return
	}
	enc := appendStatus(c.startBlock(), status)
	s.state |= sentHeaders | sentEnd | refused
	c.sendBlock(s.id, flagEndStream, enc)
	if s.has(gotEnd) {
		c.finish(s)
		return
	}
	s.Reset(NoError) // the answer is complete; ask the client to stop, RFC 9113 section 8.1
}
