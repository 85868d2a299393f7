// SPDX-License-Identifier: Apache-2.0

package l4

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/net/http2/hpack"
	"golang.org/x/sys/unix"

	"github.com/meshproxy/meshproxy/nodeproxy/loop"
	"github.com/meshproxy/meshproxy/nodeproxy/telemetry/reason"
	"github.com/meshproxy/meshproxy/nodeproxy/tunnel"
	"github.com/meshproxy/meshproxy/nodeproxy/tunnel/h2"
)

var (
	errClientGone = reason.Wrap(reason.Reset, errors.New("client reset its connection before it was relayed"))
	errNoPool     = reason.Wrap(reason.Internal, errors.New("target needs a tunnel, and there is no pool"))
	errRouteSlow  = reason.Wrap(reason.ConnectTimeout, errors.New("no route in time"))
)

// routing bounds the time that a Router may take when it answers later.
const routing = 10 * time.Second

// opening is an accepted connection on its way to a target: what Route said is
// tried until something answers.
type opening struct {
	set    *Relays
	client Client
	reg    loop.Registration
	seen   loop.Events // of the client's socket
	route  Route       // Session is nil before the router has answered

	target  Target
	due     uint32          // of the route, or of this attempt
	pending *tunnel.Pending // while it waits for a tunnel
	line    *tunnel.PendingLine
	stream  *h2.Stream // once the CONNECT is sent, through via
	via     tunnel.Tunnel
	again   bool  // the same target a second time, because a GOAWAY crossed the first
	dial    *dial // to a socket

	index int32
	done  bool
}

func (s *Relays) accept(fd int, c Client, r Router) {
	c.Local = loop.LocalAddr(fd)
	o := &opening{set: s, client: c, due: s.after(routing)}
	o.client.opening = o
	var err error
	if o.reg, err = s.loop.Register(fd, o); err != nil {
		s.options.Logger.Warn("relay connection", "client", c.Remote, "error", err)
		_ = unix.Close(fd)
		return
	}
	enlist(&s.setups, o)
	route, err := r.Route(&o.client)
	if errors.Is(err, ErrLater) {
		return
	}
	o.routed(route, err)
}

// routed takes the router's answer.
func (o *opening) routed(r Route, err error) {
	switch {
	case err != nil && !o.done:
		o.refuse(err)
	case err == nil && o.done: // the client did not wait for a slow answer
		r.Session.Closed(reason.Reset, errClientGone.Error())
	case err == nil:
		if err = o.set.room.allow(o.reg.FD()); err == nil {
			err = o.set.enter(r.Limit)
		}
		if err != nil {
			r.Session.Closed(reason.Of(err), err.Error())
			o.refuse(err)
			return
		}
		o.route = r
		o.try(nil)
	}
}

// refuse ends a connection that never had a session.
func (o *opening) refuse(err error) {
	o.leave()
	if errors.Is(err, ErrTaken) {
		return
	}
	loop.ResetOnClose(o.reg.FD())
	o.reg.Close()
	if f := o.set.options.Refused; f != nil {
		f(&o.client, nil, err)
	}
}

// try goes to the next target.
func (o *opening) try(failed error) {
	t, err := o.route.Session.Next(failed)
	if err != nil {
		o.kill(err)
		return
	}
	o.target, o.again = t, false
	o.attempt()
}

func (o *opening) attempt() {
	s, t := o.set, &o.target
	o.due = s.after(s.timeout(t))
	if t.Tunnel == nil {
		if d := s.dial(t, o); !d.done {
			o.dial = d
		}
		return
	}
	if t.Connect == nil {
		o.openLine()
		return
	}
	if s.pool == nil {
		o.kill(errNoPool)
		return
	}
	// Opened or Failed may have been called, and another attempt begun, by the
	// time that Open returns; then there is nothing pending here.
	if p := s.pool.Open(*t.Tunnel, t.Connect, s.timeout(t), o); p != nil {
		o.pending = p
	}
}

func (o *opening) openLine() {
	s, t := o.set, &o.target
	if s.options.Lines == nil {
		o.kill(errNoPool)
		return
	}
	if p := s.options.Lines.Open(*t.Tunnel, s.timeout(t), o); p != nil {
		o.line = p
	}
}

// Secured implements tunnel.LineWaiter.
func (o *opening) Secured(l *tunnel.Line) {
	defer o.set.loop.Contain(o)
	o.line = nil
	o.leave()
	o.route.Session.Connected(l.Peer())
	o.set.connect(&wire{
		reg: o.reg, line: l, state: heard(o.seen),
		sess: o.route.Session, limit: o.route.Limit, idle: o.set.idle(&o.route), hop: o.set.hopTo(o.route.Hop),
	})
}

// Opened implements tunnel.Waiter.
func (o *opening) Opened(s *h2.Stream, via tunnel.Tunnel) { o.pending, o.stream, o.via = nil, s, via }

// Failed implements tunnel.Waiter and tunnel.LineWaiter.
func (o *opening) Failed(err error) {
	defer o.set.loop.Contain(o)
	o.pending, o.line = nil, nil
	o.try(err)
}

// Response implements h2.Sink.
func (o *opening) Response(s *h2.Stream, status int, _ []hpack.HeaderField) {
	defer o.set.loop.Contain(o)
	if status < 200 || status > 299 {
		o.stream = nil
		s.Reset(h2.Cancel)
		o.try(reason.Wrap(refusedBy(status), fmt.Errorf("other node answered %d", status)))
		return
	}
	o.leave()
	o.route.Session.Connected(o.via.Peer())
	o.set.establish(&relay{
		reg: o.reg, stream: s, via: o.via,
		sess: o.route.Session, limit: o.route.Limit, idle: o.set.idle(&o.route),
		state: heard(o.seen), hop: o.set.hopTo(o.route.Hop),
	})
}

// Reset implements h2.Sink.
func (o *opening) Reset(_ *h2.Stream, err h2.StreamError) {
	defer o.set.loop.Contain(o)
	o.stream = nil
	if err.Unprocessed && !o.again {
		o.again = true
		o.attempt()
		return
	}
	why, detail := streamReason(o.via, err)
	o.try(reason.Wrap(why, errors.New(detail)))
}

// Data, End and Writable implement h2.Sink; they don't come before Response.

func (o *opening) Data(s *h2.Stream, p []byte) { s.Consumed(len(p)) }
func (o *opening) End(*h2.Stream)              {}
func (o *opening) Writable(*h2.Stream)         {}

// dialled implements dialer.
func (o *opening) dialled(reg loop.Registration, seen loop.Events, err error) {
	o.dial = nil
	if err != nil {
		o.try(err)
		return
	}
	o.leave()
	o.route.Session.Connected(nil)
	p := o.set.join(&o.route, o.reg, heard(o.seen), reg, heard(seen))
	p.ends[source].hop, p.ends[destination].hop = o.set.hopTo(o.route.Hop), o.set.hopOf(&o.target, reg)
	p.start()
}

// Ready implements loop.Handler. A client that has finished sending may still
// want an answer; one that is gone altogether doesn't.
func (o *opening) Ready(ev loop.Events) {
	o.seen |= ev
	if ev.Has(loop.Failed | loop.Hangup) {
		o.kill(errClientGone)
	}
}

// leave ends the opening's part: the connection is somebody else's, or over.
func (o *opening) leave() {
	o.done = true
	o.dial.cancel()
	o.pending.Cancel()
	o.line.Cancel()
	strike(&o.set.setups, o)
}

func (o *opening) session() Session { return o.route.Session }
func (o *opening) place() *int32    { return &o.index }

func (o *opening) look(now uint32) {
	if o.due == 0 || now < o.due {
		return
	}
	if o.route.Session == nil {
		o.refuse(errRouteSlow)
		return
	}
	o.pending.Cancel()
	o.line.Cancel()
	o.dial.cancel()
	o.pending, o.line, o.dial = nil, nil, nil
	if s := o.stream; s != nil {
		o.stream = nil
		s.Reset(h2.Cancel)
	}
	o.try(errConnectTimeout)
}

func (o *opening) kill(err error) {
	if o.done {
		return
	}
	if o.route.Session == nil {
		o.refuse(err)
		return
	}
	o.leave()
	if o.stream != nil {
		o.stream.Reset(h2.Cancel)
	}
	loop.ResetOnClose(o.reg.FD())
	o.reg.Close()
	o.route.Limit.leave()
	o.route.Session.Closed(reason.Of(err), err.Error())
}

// Abort implements loop.Aborter.
func (o *opening) Abort(err error) { o.kill(ended(err)) }
