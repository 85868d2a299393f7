// SPDX-License-Identifier: Apache-2.0

package h2

import "encoding/binary"

// nuisance counts a frame that carries nothing for a stream.
func (c *Conn) nuisance(what string) error {
	if c.control.take(c.cfg.Limits.Control, c.cfg.Now) {
		return nil
	}
	return connError(EnhanceYourCalm, "too many "+what)
}

// beginControl checks the header of a frame that is neither DATA nor part of a
// header block. What need not be read is marked to be skipped.
func (c *Conn) beginControl(f frame) error {
	if c.backlog > c.cfg.Limits.Backlog {
		return connError(EnhanceYourCalm, "answers are not being read")
	}
	if err := checkControl(f); err != nil {
		return err
	}
	in := &c.in
	switch f.kind {
	case frameGoAway:
		in.rem = min(in.rem, 8+maxDebugData)
	case frameSettings, framePing, frameReset, frameWindowUpdate:
	case framePushPromise:
		return connError(ProtocolError, "PUSH_PROMISE") // we disable it, and a client must not send it
	default: // PRIORITY is deprecated, unknown types are ignored (RFC 9113 section 5.5)
		in.rem = 0
		if err := c.nuisance("frames of no use"); err != nil {
			return err
		}
	}
	in.skip = f.length - in.rem
	return nil
}

// checkControl applies the rules on length and stream of RFC 9113 section 6.
func checkControl(f frame) error {
	size, onStream, known := uint32(0), false, true
	switch f.kind {
	case framePriority:
		size, onStream = 5, true
	case frameReset:
		size, onStream = 4, true
	case framePing:
		size = 8
	case frameSettings, frameGoAway:
		return checkOpenEnded(f)
	case frameWindowUpdate:
		size, onStream = 4, f.stream != 0
	default:
		known = false
	}
	switch {
	case !known:
		return nil
	case onStream != (f.stream != 0):
		return connError(ProtocolError, "frame on the wrong stream")
	case f.length != size:
		return connError(FrameSizeError, "frame of a wrong length")
	}
	return nil
}

func checkOpenEnded(f frame) error {
	switch {
	case f.stream != 0:
		return connError(ProtocolError, "frame on the wrong stream")
	case f.kind == frameGoAway && f.length < 8,
		f.kind == frameSettings && f.length%settingLen != 0,
		f.kind == frameSettings && f.flags.has(flagAck) && f.length != 0:
		return connError(FrameSizeError, "frame of a wrong length")
	case f.kind == frameSettings && f.length > maxSettings*settingLen:
		return connError(EnhanceYourCalm, "SETTINGS of excessive length")
	}
	return nil
}

// controlPiece collects the body of a control frame. Whole ones, the usual case,
// are read in place.
func (c *Conn) controlPiece(p []byte) error {
	in := &c.in
	if in.rem == 0 && in.kept == nil {
		return c.controlFrame(p)
	}
	if in.kept == nil {
		in.kept = in.small[:0]
	}
	in.kept = append(in.kept, p...) // moves to the heap when it is larger than small
	if in.rem > 0 {
		return nil
	}
	p, in.kept = in.kept, nil
	return c.controlFrame(p)
}

func (c *Conn) controlFrame(p []byte) error {
	f := c.in.f
	switch f.kind {
	case frameReset:
		return c.peerReset(f.stream, ErrCode(binary.BigEndian.Uint32(p)))
	case frameSettings:
		if f.flags.has(flagAck) {
			return c.settingsAck()
		}
		return c.settings(p)
	case framePing:
		return c.ping(f.flags, binary.BigEndian.Uint64(p))
	case frameGoAway:
		return c.goAway(binary.BigEndian.Uint32(p)&maxStreamID, ErrCode(binary.BigEndian.Uint32(p[4:])), p[8:])
	case frameWindowUpdate:
		return c.windowUpdate(f.stream, binary.BigEndian.Uint32(p)&maxWindow)
	}
	return nil
}

// peerReset takes RST_STREAM, RFC 9113 section 6.4.
func (c *Conn) peerReset(id uint32, code ErrCode) error {
	s := c.streams.get(id)
	if s == nil {
		if c.idle(id) {
			return connError(ProtocolError, "RST_STREAM on an idle stream")
		}
		return c.nuisance("RST_STREAM on closed streams")
	}
	if !c.client && !s.has(sentHeaders) && !c.resets.take(c.cfg.Limits.Resets, c.cfg.Now) {
		return connError(EnhanceYourCalm, "too many streams reset before their answer")
	}
	c.closed.add(id, false)
	c.drop(s, StreamError{Code: code, Remote: true, Unprocessed: code == RefusedStream})
	return nil
}

func (c *Conn) ping(fl flags, data uint64) error {
	if !fl.has(flagAck) {
		if err := c.nuisance("PING"); err != nil {
			return err
		}
		c.sendPing(flagAck, data)
		return nil
	}
	if data == drainPing && c.drain == drainAnnounced {
		c.lastGoAway()
		return nil
	}
	c.ev.OnPong(data)
	return nil
}
