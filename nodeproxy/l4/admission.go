// SPDX-License-Identifier: Apache-2.0

package l4

import (
	"errors"

	"golang.org/x/net/http2/hpack"

	"github.com/meshproxy/meshproxy/nodeproxy/loop"
	"github.com/meshproxy/meshproxy/nodeproxy/telemetry/reason"
	"github.com/meshproxy/meshproxy/nodeproxy/tunnel"
	"github.com/meshproxy/meshproxy/nodeproxy/tunnel/h2"
)

// acceptor asks a Gate about the streams of a loop's tunnels.
type acceptor struct {
	set  *Relays
	gate Gate
}

// Accept implements tunnel.Acceptor.
func (a *acceptor) Accept(via tunnel.Tunnel, s *h2.Stream, r *h2.Request) h2.Sink {
	defer a.set.loop.Contain(refusal{s})
	req := Request{Request: r, Peer: via.Peer()}
	route, err := a.gate.Admit(&req)
	if err == nil {
		if err = a.set.enter(route.Limit); err != nil {
			route.Session.Closed(reason.Of(err), err.Error())
		}
	}
	if err != nil {
		s.Refuse(Status(err))
		if f := a.set.options.Refused; f != nil {
			f(nil, &req, err)
		}
		return nil
	}
	m := &admission{approach: approach{set: a.set, route: route}, stream: s, via: via}
	s.SetSink(m)
	enlist(&a.set.setups, m)
	m.begin()
	return nil // whoever has it now was made the stream's sink
}

// refusal answers a stream whose Gate has panicked.
type refusal struct{ stream *h2.Stream }

func (r refusal) Abort(err error) { r.stream.Refuse(Status(ended(err))) }

// admission is an admitted stream on its way to the application. The 200 is
// sent when the application has taken the connection.
type admission struct {
	approach
	stream *h2.Stream
	via    tunnel.Tunnel
	early  *queue // sent before the 200, at the client's own risk
	end    bool
}

func (m *admission) begin() {
	defer m.set.loop.Contain(m)
	m.try(m, nil)
}

// Abort implements loop.Aborter.
func (m *admission) Abort(err error) { m.kill(ended(err)) }

// dialled implements dialer.
func (m *admission) dialled(reg loop.Registration, seen loop.Events, err error) {
	m.dial = nil
	if err != nil {
		m.try(m, err)
		return
	}
	m.leave(m)
	m.stream.Accept(nil)
	m.route.Session.Connected(m.via.Peer())
	r := &relay{
		reg: reg, stream: m.stream, via: m.via, state: inbound | heard(seen), queue: m.early,
		sess: m.route.Session, limit: m.route.Limit, idle: m.set.idle(&m.route),
		hop: m.set.hopOf(&m.target, reg),
	}
	if m.end {
		r.state |= gotEnd
	}
	m.set.establish(r)
}

// Data implements h2.Sink.
func (m *admission) Data(_ *h2.Stream, p []byte) {
	if m.early == nil {
		m.early = newQueue(m.set.loop.Chunks(), m.route.Limit)
	}
	if !m.early.add(p) {
		m.kill(ErrMemory)
	}
}

// End implements h2.Sink.
func (m *admission) End(*h2.Stream) { m.end = true }

// Reset implements h2.Sink.
func (m *admission) Reset(_ *h2.Stream, err h2.StreamError) {
	defer m.set.loop.Contain(m)
	why, detail := streamReason(m.via, err)
	m.kill(reason.Wrap(why, errors.New(detail)))
}

// Writable implements h2.Sink.
func (m *admission) Writable(*h2.Stream) {}

// Response implements h2.Sink; servers get none.
func (m *admission) Response(*h2.Stream, int, []hpack.HeaderField) {}

func (m *admission) kill(err error) {
	if m.done {
		return
	}
	m.leave(m)
	m.early.release()
	m.stream.Refuse(Status(err)) // does nothing when the stream is gone already
	m.route.Limit.leave()
	m.route.Session.Closed(reason.Of(err), err.Error())
}

// ended gives the loop's own reasons their names.
func ended(err error) error {
	if errors.Is(err, loop.ErrClosed) {
		return reason.Wrap(reason.Draining, err)
	}
	return reason.Wrap(reason.Internal, err)
}
