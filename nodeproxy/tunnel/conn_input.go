// SPDX-License-Identifier: Apache-2.0

package tunnel

import (
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"

	"github.com/meshproxy/meshproxy/nodeproxy/loop"
	"github.com/meshproxy/meshproxy/nodeproxy/telemetry/reason"
	"github.com/meshproxy/meshproxy/nodeproxy/tunnel/record"
)

// helping is how much one turn reads of a connection: sixteen full records.
const helping = 16 * (recordSize + recordOverhead)

// errTorn: what the peer sent ends in the middle of a record.
var errTorn = reason.Wrap(reason.TunnelReset, errors.New("peer closed the tunnel in the middle of a record"))

// read takes one helping of input, behind what the last one left of a record.
func (c *conn) read() {
	if !c.readable || c.phase == closed {
		return
	}
	buf := c.carrier.loop.Scratch()
	buf = buf[:min(len(buf), helping)]
	kept := copy(buf, c.partial)
	n, e := loop.Read(c.reg.FD(), buf[kept:])
	switch {
	case c.lost != nil && n <= 0:
		c.fail(c.lost)
		return
	case e == unix.EAGAIN:
		c.readable, c.unsure = false, false
		return
	case e != 0:
		c.fail(reason.Wrap(reason.TunnelReset, fmt.Errorf("read tunnel: %w", e)))
		return
	case n == 0:
		c.readable, c.eof = false, true
	case n < len(buf)-kept && !c.unsure:
		c.readable = false // the next arrival raises an edge
	}
	switch {
	case c.phase >= finishing:
		// Nobody takes it any more, and after a violation it is cut in the
		// middle of a record: opening it would only raise an alert.
		if c.eof && c.phase == lingering {
			c.close(nil)
		}
	case n == 0 && kept > 0:
		c.fail(errTorn)
	case n == 0:
		c.hungUp()
	default:
		c.keep(c.decrypt(buf[:kept+n]))
	}
	if c.layer.Owes() {
		c.list()
	}
	if c.readable && c.phase != closed {
		c.resume()
	}
}

// decrypt feeds HTTP/2 with the records in buf, and returns what is left of it.
// Payload that sinks gather stays where it is until settle.
func (c *conn) decrypt(buf []byte) (rest []byte) {
	defer c.carrier.settle()
	for c.phase < finishing {
		p, n, err := c.layer.Open(buf)
		switch {
		case err == io.EOF:
			c.hungUp()
			return nil
		case err != nil:
			c.broken(err)
			return nil
		case n == 0:
			return buf
		case len(p) > 0:
			c.heard = true
			if err := c.h2.Feed(p); err != nil {
				c.violated(err)
				return nil
			}
		}
		buf = buf[n:]
	}
	return nil
}

// keep holds on to the beginning of a record until the rest of it comes.
func (c *conn) keep(p []byte) {
	switch {
	case len(p) > 0 && c.phase < finishing:
		if c.partial == nil {
			c.partial = c.carrier.partials.Get()
		}
		c.partial = c.partial[:copy(c.partial[:record.MaxRecord], p)]
	case c.partial != nil:
		c.carrier.partials.Put(c.partial)
		c.partial = nil
	}
}

// broken: the peer has sent an alert, or what no TLS record is.
func (c *conn) broken(err error) {
	c.sayBye()
	r := reason.Of(err) // the server tells its opinion of the client's leaf only now
	if bad := (*record.Error)(nil); errors.As(err, &bad) {
		r = reason.ProtocolError
	}
	c.fail(reason.Wrap(r, fmt.Errorf("read tunnel: %w", err)))
}
