// SPDX-License-Identifier: Apache-2.0

package h2

import "encoding/binary"

// lend makes sure that the connection has a batch.
func (c *Conn) lend() {
	if c.out == nil {
		c.out = c.cfg.Batches.get()
	}
}

// touch tells the owner, once, that there is output; an empty batch is given back.
func (c *Conn) touch() {
	switch {
	case c.out == nil || c.dirty:
	case len(c.out.fill) == 0:
		c.cfg.Batches.put(c.out)
		c.out = nil
	default:
		c.dirty = true
		c.ev.OnOutput()
	}
}

// queue appends a frame and returns the place of its n bytes of payload, which the
// caller fills before anything else happens. It must not be called once c.err is set.
func (c *Conn) queue(kind frameType, fl flags, stream uint32, n int) []byte {
	c.reserved = 0 // the frame takes its place
	c.lend()
	if kind != frameData {
		c.backlog += frameHeaderLen + n
	}
	p := c.out.frame(kind, fl, stream, n)
	c.touch()
	return p
}

func (c *Conn) sendReset(stream uint32, code ErrCode) {
	binary.BigEndian.PutUint32(c.queue(frameReset, 0, stream, 4), uint32(code))
}

func (c *Conn) sendWindowUpdate(stream, inc uint32) {
	binary.BigEndian.PutUint32(c.queue(frameWindowUpdate, 0, stream, 4), inc)
}

func (c *Conn) sendPing(fl flags, data uint64) {
	binary.BigEndian.PutUint64(c.queue(framePing, fl, 0, 8), data)
}

func (c *Conn) sendGoAway(last uint32, code ErrCode, debug string) {
	p := c.queue(frameGoAway, 0, 0, 8+len(debug))
	binary.BigEndian.PutUint32(p, last)
	binary.BigEndian.PutUint32(p[4:], uint32(code))
	copy(p[8:], debug)
}

// startBlock returns where a header block is put together. The first block of a
// connection sets the encoder's dynamic table to nothing: strict decoders insist
// on it when their SETTINGS made the table smaller (RFC 7541 section 4.2).
func (c *Conn) startBlock() []byte {
	b := c.cfg.Batches.scratch[:0]
	if !c.sentBlock {
		c.sentBlock = true
		b = append(b, 0x20)
	}
	return b
}

// sendBlock sends a header block that startBlock began, in as many frames as the
// record size makes of it; no peer may ask for smaller frames.
func (c *Conn) sendBlock(stream uint32, fl flags, enc []byte) {
	c.cfg.Batches.scratch = enc
	kind := frameHeaders
	for {
		part := enc[:min(len(enc), RecordSize-frameHeaderLen)]
		enc = enc[len(part):]
		if len(enc) == 0 {
			fl |= flagEndHeaders
		}
		copy(c.queue(kind, fl, stream, len(part)), part)
		if len(enc) == 0 {
			return
		}
		kind, fl = frameContinuation, 0
	}
}
