// SPDX-License-Identifier: Apache-2.0

package h2

import "golang.org/x/net/http2/hpack"

// headerBlock is a header block under way: HEADERS and its CONTINUATIONs. Its
// pieces go straight to the HPACK decoder, so what is kept is bounded by the
// header list's limit and not by the sizes of frames.
type headerBlock struct {
	stream  uint32
	end     bool // END_STREAM
	conts   int
	encoded uint32 // octets of the block
	size    uint32 // of the list, as SETTINGS_MAX_HEADER_LIST_SIZE counts
	limit   uint32

	fault   blockFault
	pseudo  pseudo // which pseudo-fields were there
	regular bool   // a regular field was there
	client  bool   // this end is the client: a response is expected

	method, authority, scheme, path, status string

	fields []hpack.HeaderField
	req    Request
}

type blockFault uint8

const (
	faultNone blockFault = iota
	faultTooLarge
	faultMalformed // RFC 9113 section 8.1.1
)

func (b *headerBlock) reset() {
	clear(b.fields)
	*b = headerBlock{fields: b.fields[:0]}
}

// beginHeaders takes the header of a HEADERS frame. Whatever becomes of its
// stream, the block has to be decoded: the connection's HPACK state depends on it.
func (c *Conn) beginHeaders(f frame) error {
	if f.stream == 0 {
		return connError(ProtocolError, "HEADERS on stream 0")
	}
	if c.idle(f.stream) {
		if c.client || f.stream&1 == 0 {
			return connError(ProtocolError, "HEADERS on an idle stream")
		}
	} else if err := c.headersOnClosed(f.stream); err != nil {
		return err
	}
	b := c.cfg.Batches.block()
	b.stream, b.end, b.client = f.stream, f.flags.has(flagEndStream), c.client
	b.limit = c.cfg.headerList(c.client)
	c.block = b
	return nil
}

// headersOnClosed tells an error of the connection from a frame that was under way
// when this side reset the stream.
func (c *Conn) headersOnClosed(id uint32) error {
	if c.streams.get(id) != nil {
		return nil
	}
	switch c.closed.of(id) {
	case fateReset:
		return nil
	case fateEnded:
		return connError(StreamClosed, "HEADERS on a closed stream")
	}
	return connError(ProtocolError, "stream ids must increase")
}

func (c *Conn) beginContinuation(f frame) error {
	b := c.block // on the right stream, see check
	if b == nil {
		return connError(ProtocolError, "CONTINUATION without HEADERS")
	}
	if b.conts++; b.conts > c.cfg.Limits.Continuations {
		return connError(EnhanceYourCalm, "too many CONTINUATION frames")
	}
	return nil
}

// fragment takes a piece of the block.
func (c *Conn) fragment(p []byte) error {
	b := c.block
	b.encoded += uint32(len(p))
	if b.encoded > b.limit*blockFactor {
		return connError(EnhanceYourCalm, "header block of excessive length")
	}
	if len(p) == 0 {
		return nil
	}
	if _, err := c.hpack().Write(p); err != nil {
		return connError(CompressionError, "invalid header block")
	}
	return nil
}

// hpack returns the decoder, which is made when the first block comes.
func (c *Conn) hpack() *hpack.Decoder {
	if c.decoder == nil {
		// Until the peer has seen our SETTINGS it may use the default table.
		c.decoder = hpack.NewDecoder(defaultHeaderTable, c.field)
		c.decoder.SetMaxStringLength(int(c.cfg.headerList(c.client)) * blockFactor)
	}
	return c.decoder
}

const defaultHeaderTable = 4096 // RFC 9113 section 6.5.2

// field takes a field that the decoder has found.
func (c *Conn) field(f hpack.HeaderField) {
	b := c.block
	b.size += uint32(len(f.Name) + len(f.Value) + fieldOverhead)
	if b.size > b.limit {
		b.fault = max(b.fault, faultTooLarge)
		c.decoder.SetEmitEnabled(false) // decode on for the table's sake, keep nothing
		return
	}
	b.take(f)
}

// endBlock hands the complete block to whoever it is for.
func (c *Conn) endBlock() error {
	if c.decoder != nil {
		c.decoder.SetEmitEnabled(true)
		if err := c.decoder.Close(); err != nil {
			return connError(CompressionError, "truncated header block")
		}
	}
	b := c.block
	c.block = nil
	s := c.streams.get(b.stream)
	var err error
	switch {
	case s != nil && (!c.client || s.has(gotHeaders)):
		err = c.trailers(s, b)
	case s != nil:
		err = c.response(s, b)
	case !c.idle(b.stream): // reset by us, see headersOnClosed
	default:
		err = c.request(b)
	}
	c.cfg.Batches.putBlock(b)
	return err
}

// trailers end a stream. A CONNECT has no use for them (RFC 9113 section 8.5), but
// some peers end with HEADERS what others end with an empty DATA frame.
func (c *Conn) trailers(s *Stream, b *headerBlock) error {
	switch {
	case s.has(gotEnd):
		return c.resetStream(s.id, s, StreamClosed)
	case !b.end || b.fault != faultNone || b.pseudo != 0:
		return c.resetStream(s.id, s, ProtocolError)
	}
	c.endRemote(s)
	return nil
}

// request takes a new stream on a server.
func (c *Conn) request(b *headerBlock) error {
	c.lastPeer = b.stream
	if b.stream > c.accepted { // beyond our last GOAWAY: the client knows
		c.closed.add(b.stream, true)
		return nil
	}
	if status, code := b.verdict(); code != NoError {
		return c.resetStream(b.stream, nil, code)
	} else if status != 0 {
		return c.refuse(b, status)
	}
	if c.streams.count >= int(c.cfg.MaxStreams) {
		return c.overLimit(b.stream)
	}
	s := c.newStream(b.stream)
	b.req = Request{Authority: b.authority, Fields: b.fields}
	sink := c.ev.OnRequest(s, &b.req)
	if s.has(released) {
		return nil
	}
	if sink == nil && s.sink == nil {
		s.Reset(InternalError)
		return nil
	}
	if sink != nil {
		s.sink = sink
	}
	if b.end {
		c.endRemote(s)
	}
	return nil
}

// overLimit refuses a stream. Before the client has seen our SETTINGS that is
// nobody's fault.
func (c *Conn) overLimit(id uint32) error {
	if c.gotAck {
		return c.resetStream(id, nil, RefusedStream)
	}
	c.sendReset(id, RefusedStream)
	c.closed.add(id, true)
	return nil
}

// refuse answers a request that never becomes a stream.
func (c *Conn) refuse(b *headerBlock, status int) error {
	if !c.provoked.take(c.cfg.Limits.Provoked, c.cfg.Now) {
		return connError(EnhanceYourCalm, "too many requests that are no CONNECT")
	}
	c.sendBlock(b.stream, flagEndStream, appendStatus(c.startBlock(), status))
	if !b.end {
		c.sendReset(b.stream, NoError)
	}
	c.closed.add(b.stream, !b.end)
	return nil
}

// response takes the header block that a client's stream waits for.
func (c *Conn) response(s *Stream, b *headerBlock) error {
	status := b.statusCode()
	switch {
	case b.fault != faultNone, status < 100, status == 101, status < 200 && b.end:
		return c.resetStream(s.id, s, ProtocolError)
	case status < 200:
		return c.nuisance("1xx responses")
	}
	s.state |= gotHeaders
	if status > 299 {
		s.state |= refused
	}
	s.sink.Response(s, status, b.fields)
	if b.end && !s.has(released) {
		c.endRemote(s)
	}
	return nil
}
