// SPDX-License-Identifier: Apache-2.0

package h2

// input is where Feed stands in the stream of frames.
type input struct {
	f     frame
	cur   *Stream // that the DATA frame under way belongs to; nil: its payload is skipped
	kept  []byte  // start of a control frame that straddles calls of Feed
	rem   uint32  // bytes of the body still to come
	skip  uint32  // bytes to skip after the body: padding
	small [24]byte
	n     uint8 // bytes in small
	want  uint8 // bytes of the prefix (pad length, priority) of a frame
	phase phase
}

type phase uint8

const (
	inHeader phase = iota
	inPrefix
	inBody
	inSkip
)

// Feed takes plaintext from the peer, split anywhere. An error is ErrClosed after
// Close, otherwise a *ConnError: the GOAWAY is queued and all streams are reset; the
// owner writes once more, calls Close, and closes the socket.
func (c *Conn) Feed(p []byte) error {
	in := &c.in
	for len(p) > 0 && c.err == nil {
		var err error
		switch {
		case !c.gotPreface:
			p, err = c.preface(p)
		case in.phase == inHeader:
			var h []byte
			if h, p = in.gather(p, frameHeaderLen); h != nil {
				err = c.begin(parseFrame(h))
			}
		case in.phase == inPrefix:
			var h []byte
			if h, p = in.gather(p, in.want); h != nil {
				err = c.prefix(h)
			}
		case in.phase == inBody:
			k := min(uint32(len(p)), in.rem)
			in.rem -= k
			err = c.body(p[:k])
			p = p[k:]
		default:
			k := min(uint32(len(p)), in.skip)
			in.skip -= k
			p = p[k:]
			if in.skip == 0 {
				in.phase = inHeader
			}
		}
		if err != nil {
			c.fail(err.(*ConnError))
		}
	}
	return c.err
}

// gather returns the first n bytes of what comes: in place, or put together in
// small. nil: there are not enough yet.
func (in *input) gather(p []byte, n uint8) (got, rest []byte) {
	if in.n == 0 && len(p) >= int(n) {
		return p[:n], p[n:]
	}
	k := copy(in.small[in.n:n], p)
	if in.n += uint8(k); in.n < n {
		return nil, p[k:]
	}
	in.n = 0
	return in.small[:n], p[k:]
}

func (c *Conn) preface(p []byte) ([]byte, error) {
	in := &c.in
	k := min(len(p), len(Preface)-int(in.n))
	if string(p[:k]) != Preface[in.n:int(in.n)+k] {
		return nil, connError(ProtocolError, "bad preface")
	}
	if in.n += uint8(k); int(in.n) == len(Preface) {
		c.gotPreface, in.n = true, 0
	}
	return p[k:], nil
}

// begin takes the header of a frame, and its end if there is nothing else to it.
func (c *Conn) begin(f frame) error {
	in := &c.in
	in.f, in.rem, in.skip, in.cur = f, f.length, 0, nil
	if err := c.check(f); err != nil {
		return err
	}
	var err error
	var prefix uint8
	switch f.kind {
	case frameData:
		err = c.beginData(f)
		prefix = prefixOf(f.flags & flagPadded)
	case frameHeaders:
		err = c.beginHeaders(f)
		prefix = prefixOf(f.flags)
	case frameContinuation:
		err = c.beginContinuation(f)
	default:
		err = c.beginControl(f)
	}
	if err != nil {
		return err
	}
	if uint32(prefix) > in.rem {
		return connError(FrameSizeError, "frame shorter than its padding or priority")
	}
	if prefix > 0 {
		in.want, in.phase = prefix, inPrefix
		return nil
	}
	return c.enterBody()
}

// prefixOf is the number of bytes before the body of DATA and HEADERS: the pad
// length and the priority, RFC 9113 sections 6.1 and 6.2.
func prefixOf(fl flags) (n uint8) {
	if fl.has(flagPadded) {
		n++
	}
	if fl.has(flagPriority) {
		n += 5
	}
	return n
}

// check applies the rules that hold for every frame.
func (c *Conn) check(f frame) error {
	switch {
	case f.length > c.cfg.MaxFrameSize:
		return connError(FrameSizeError, "frame exceeds SETTINGS_MAX_FRAME_SIZE")
	case !c.gotSettings && (f.kind != frameSettings || f.flags.has(flagAck)):
		return connError(ProtocolError, "first frame is not SETTINGS")
	case c.block != nil && (f.kind != frameContinuation || f.stream != c.block.stream):
		return connError(ProtocolError, "header block interrupted")
	}
	return nil
}

// prefix takes the pad length. The priority is ignored (RFC 9113 section 5.3.2).
func (c *Conn) prefix(h []byte) error {
	in := &c.in
	in.rem -= uint32(len(h))
	if in.f.flags.has(flagPadded) {
		if in.skip = uint32(h[0]); in.skip > in.rem {
			return connError(ProtocolError, "padding exceeds the frame")
		}
		in.rem -= in.skip
	}
	if in.f.kind == frameData && in.cur != nil {
		c.refund(in.skip + 1) // nobody will consume it
		in.cur.refund(in.skip + 1)
	}
	return c.enterBody()
}

func (c *Conn) enterBody() error {
	c.in.phase = inBody
	if c.in.rem == 0 {
		return c.body(nil)
	}
	return nil
}

// body takes a piece of a frame's body; in.rem is what follows it.
func (c *Conn) body(p []byte) error {
	in := &c.in
	var err error
	switch in.f.kind {
	case frameData:
		c.data(p)
		if in.rem == 0 {
			err = c.endData()
		}
	case frameHeaders, frameContinuation:
		err = c.fragment(p)
		if err == nil && in.rem == 0 && in.f.flags.has(flagEndHeaders) {
			err = c.endBlock()
		}
	default:
		err = c.controlPiece(p)
	}
	if in.rem == 0 {
		in.cur, in.phase = nil, inSkip
		if in.skip == 0 {
			in.phase = inHeader
		}
	}
	return err
}
