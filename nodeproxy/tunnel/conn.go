// SPDX-License-Identifier: Apache-2.0

package tunnel

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/meshproxy/meshproxy/nodeproxy/loop"
	"github.com/meshproxy/meshproxy/nodeproxy/telemetry/reason"
	"github.com/meshproxy/meshproxy/nodeproxy/tunnel/h2"
	"github.com/meshproxy/meshproxy/nodeproxy/tunnel/record"
)

// Errors of connections.
var (
	errPeerClosed   = reason.Wrap(reason.TunnelReset, errors.New("peer closed the tunnel"))
	errUnresponsive = reason.Wrap(reason.TunnelUnresponsive, errors.New("peer does not answer PING"))
	errDrainTimeout = reason.Wrap(reason.Draining, errors.New("tunnel did not drain in time"))
	errExpired      = reason.Wrap(reason.TLSExpired, errors.New("a leaf of the tunnel has expired"))
)

// role is what differs between the connections of a Pool and of a Server.
type role interface {
	// request answers a CONNECT; nil when the stream was refused or reset.
	request(c *conn, s *h2.Stream, r *h2.Request) h2.Sink
	// changed says that there may be more or less room for streams.
	changed(c *conn)
	// gone says, once, that c takes no part in anything any more; nil when it
	// ended well.
	gone(c *conn, err error)
}

// phase is where a connection is in its life.
type phase uint8

const (
	active phase = iota
	// finishing: streams are over; the last output is on its way.
	finishing
	// lingering: FIN is sent. Closing with input unread would send RST, which
	// may overtake the GOAWAY at the peer, so the input is read to its end.
	lingering
	closed
)

// lingerLimit is how long the peer has to take the last output, and then to
// close its side.
const lingerLimit = 3 * time.Second

// conn is one TLS connection on its loop.
type conn struct {
	carrier *Carrier
	role    role
	reg     loop.Registration
	layer   *record.Layer
	out     outbox
	partial []byte // the beginning of a record; nil without one
	h2      *h2.Conn
	peer    Peer
	err     error // why it ended, nil while it stands or when it ended well
	lost    error // why nothing can be sent; it ends when its input does

	phase    phase
	readable bool // the socket may have more input
	unsure   bool // a FIN may be behind it: a short read doesn't prove that nothing is left
	eof      bool // the socket's end has come
	resuming bool // on the loop's ready list
	listed   bool // on the list of those to flush
	blocked  bool // the socket takes no more output
	heard    bool // input came since the last look around
	draining bool

	idleLimit time.Duration
	born      time.Duration
	idleSince time.Duration
	heardAt   time.Duration
	pingAt    time.Duration // when the unanswered PING was sent, 0 without one
	phaseAt   time.Duration // since when it drains or lingers
}

// adopt moves a connection to the loop. On an error it is closed.
func (c *Carrier) adopt(s *secured, r role, client bool) (*conn, error) {
	k := &conn{carrier: c, role: r, layer: s.layer, out: outbox{pool: c.out}, peer: s.peer}
	var err error
	if k.reg, err = c.loop.Register(s.fd, k); err != nil {
		_ = unix.Close(s.fd)
		return nil, fmt.Errorf("adopt tunnel: %w", err)
	}
	now := c.loop.Now()
	k.born, k.idleSince, k.heardAt = now, now, now
	c.conns[k] = struct{}{}
	if client {
		k.h2, k.idleLimit = h2.NewClient(&c.http2, k), c.options.ClientIdle
	} else {
		k.h2, k.idleLimit = h2.NewServer(&c.http2, k), c.options.ServerIdle
	}
	k.h2.Start()
	return k, nil
}

// Ready implements loop.Handler.
func (c *conn) Ready(ev loop.Events) {
	if ev.Has(loop.Writable) && c.blocked && c.lost == nil {
		c.blocked = false
		c.push()
	}
	if ev.Has(loop.Input) {
		c.readable = true
		c.unsure = c.unsure || ev.Has(loop.PeerClosed|loop.Hangup|loop.Failed)
		c.read()
		if c.h2.Streams() == 0 {
			c.pushNow()
		}
	}
}

// Resume implements loop.Resumer: there was more to read than one turn allows.
func (c *conn) Resume() {
	c.resuming = false
	c.read()
}

func (c *conn) resume() {
	if !c.resuming {
		c.resuming = true
		c.carrier.loop.Again(c)
	}
}

// Flush implements loop.Flusher.
func (c *conn) Flush() {
	c.listed = false
	c.push()
}

// pushNow is push before the turn ends, where nothing is to go along. A thousand
// idle connections that answer a PING, or send one, would each hold memory for
// output until then.
func (c *conn) pushNow() {
	if c.listed {
		c.push()
	}
}

func (c *conn) list() {
	if !c.listed && !c.blocked && c.phase < lingering {
		c.listed = true
		c.carrier.loop.EndOfTurn(c)
	}
}

// sealer is a conn as the io.Writer of its HTTP/2.
type sealer conn

// Write seals a record, see h2.Conn.WriteTo.
func (s *sealer) Write(p []byte) (int, error) {
	sealed, err := s.layer.Seal(s.out.open(), p[:len(p)+1])
	s.out.sealed = sealed
	return len(p), err
}

// push encrypts what waits and writes it.
func (c *conn) push() {
	for !c.blocked && c.phase < lingering {
		// What a blocked socket left goes first: sealing more behind it would
		// outgrow the buffer.
		switch e := c.out.send(c.reg.FD()); {
		case e == unix.EAGAIN:
			c.blocked = true
			return
		case e != 0:
			c.cannotSend(fmt.Errorf("write tunnel: %w", e))
			return
		}
		if c.h2.Pending() == 0 && !c.layer.Owes() {
			break
		}
		if err := c.seal(); err != nil {
			c.fail(reason.Wrap(reason.TunnelReset, fmt.Errorf("write tunnel: %w", err)))
			return
		}
		if c.phase == closed {
			return
		}
	}
	if c.phase == finishing && !c.blocked {
		c.linger()
	}
}

func (c *conn) seal() (err error) {
	if c.layer.Owes() {
		if c.out.sealed, err = c.layer.Answer(c.out.open()); err != nil {
			return err
		}
	}
	_, err = c.h2.WriteTo((*sealer)(c))
	return err
}

// cannotSend: the peer takes no more, because it has gone. What it sent before
// is still to be read and tells more: an alert about this end's leaf (in TLS
// 1.3 the client has finished its handshake by then), or a GOAWAY that lets
// streams be opened elsewhere. Not now: this may be called while input is
// decrypted.
func (c *conn) cannotSend(err error) {
	c.blocked = true
	c.lost = reason.Wrap(reason.TunnelReset, err)
	c.readable, c.unsure = true, true
	c.resume()
}

// hungUp: the peer sent close_notify or FIN. HTTP/2 knows no half-open
// connections, so what is still open is lost.
func (c *conn) hungUp() {
	if c.h2.Streams() > 0 {
		c.sayBye()
		c.fail(errPeerClosed)
		return
	}
	c.finish(nil)
}

// violated: the peer broke the protocol. The streams are reset, the GOAWAY that
// says so is pending.
func (c *conn) violated(err error) {
	r := reason.ProtocolError
	if ce := (*h2.ConnError)(nil); errors.As(err, &ce) && ce.Code == h2.EnhanceYourCalm {
		r = reason.LimitFlood
	}
	err = reason.Wrap(r, err)
	c.carrier.options.Logger.Warn("close tunnel", "peer", c.peer.Identity.String(), "remote", c.peer.Remote, "error", err)
	c.finish(err)
}

// finish ends the connection in an orderly way: pending output, close_notify,
// FIN, then the peer's. To its role it is gone at once.
func (c *conn) finish(err error) {
	if c.phase != active {
		return
	}
	c.phase, c.phaseAt, c.err = finishing, c.carrier.loop.Now(), err
	c.leave(err)
	if c.blocked {
		return // push goes on when the socket takes more
	}
	c.list()
}

func (c *conn) linger() {
	c.phase, c.phaseAt = lingering, c.carrier.loop.Now()
	c.sayBye()
	loop.ShutdownWrite(c.reg.FD())
	if c.eof {
		c.close(nil)
		return
	}
	c.readable = true
	c.resume()
}

// sayBye sends close_notify, or the alert that says what the peer did wrong, if
// the socket takes it.
func (c *conn) sayBye() {
	if c.out.unsent() == 0 && !c.blocked {
		c.out.sealed = c.layer.Close(c.out.open())
		_ = c.out.send(c.reg.FD())
	}
}

// fail ends the connection at once, with its streams.
func (c *conn) fail(err error) {
	if c.err == nil {
		c.err = err
	}
	c.close(err)
}

// leave tells the role, once.
func (c *conn) leave(err error) {
	if r := c.role; r != nil {
		c.role = nil
		r.gone(c, err)
	}
}

func (c *conn) close(err error) {
	if c.phase == closed {
		return
	}
	c.phase = closed // the sinks' last calls must not write
	c.leave(err)
	c.reg.Close()
	c.out.release()
	c.keep(nil)
	delete(c.carrier.conns, c)
	c.h2.Close() // last: after a panic it may do so again
}

// Abort implements loop.Aborter.
func (c *conn) Abort(err error) {
	c.err = reason.Wrap(reason.Internal, err)
	c.close(err)
}

// drain lets what is open finish and accepts nothing new.
func (c *conn) drain() {
	if c.draining || c.phase != active {
		return
	}
	c.draining, c.phaseAt = true, c.carrier.loop.Now()
	c.h2.Drain()
	if c.role != nil {
		c.role.changed(c)
	}
}
