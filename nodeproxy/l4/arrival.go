// SPDX-License-Identifier: Apache-2.0

package l4

import (
	"github.com/meshproxy/meshproxy/nodeproxy/loop"
	"github.com/meshproxy/meshproxy/nodeproxy/telemetry/reason"
	"github.com/meshproxy/meshproxy/nodeproxy/tunnel"
)

// LineGate decides about lines that other nodes and sidecars open. It is called
// on the loop and must not wait.
type LineGate interface {
	// AdmitLine says where the stream of a line goes. An error refuses it: the
	// line is closed before any byte, since TLS has no words for the reason.
	AdmitLine(peer *tunnel.Peer) (Route, error)
}

// GatedLines makes the acceptor that relays the lines that g admits.
func (s *Relays) GatedLines(g LineGate) tunnel.LineAcceptor { return &lineAcceptor{s, g} }

// lineAcceptor asks a LineGate about the lines of a loop.
type lineAcceptor struct {
	set  *Relays
	gate LineGate
}

// AcceptLine implements tunnel.LineAcceptor.
func (a *lineAcceptor) AcceptLine(l *tunnel.Line) {
	route, err := a.gate.AdmitLine(l.Peer())
	if err == nil {
		if err = a.set.enter(route.Limit); err != nil {
			route.Session.Closed(reason.Of(err), err.Error())
		}
	}
	if err != nil {
		l.Finish()
		if f := a.set.options.Refused; f != nil {
			f(nil, &Request{Peer: l.Peer()}, err)
		}
		return
	}
	m := &arrival{approach: approach{set: a.set, route: route}, line: l}
	l.Attach(m)
	enlist(&a.set.setups, m)
	m.begin()
}

// arrival is an admitted line on its way to the application. Nothing is read
// from it before that has taken the connection.
type arrival struct {
	approach
	line *tunnel.Line
}

func (m *arrival) begin() {
	defer m.set.loop.Contain(m)
	m.try(m, nil)
}

// dialled implements dialer.
func (m *arrival) dialled(reg loop.Registration, seen loop.Events, err error) {
	m.dial = nil
	if err != nil {
		m.try(m, err)
		return
	}
	m.leave(m)
	m.route.Session.Connected(m.line.Peer())
	m.set.connect(&wire{
		reg: reg, line: m.line, state: inbound | heard(seen),
		sess: m.route.Session, limit: m.route.Limit, idle: m.set.idle(&m.route), hop: m.set.hopOf(&m.target, reg),
	})
}

// Data, End and Writable implement tunnel.LineUser; a line that is paused calls
// none of them.

func (m *arrival) Data([]byte) bool { return false }
func (m *arrival) End()             {}
func (m *arrival) Writable()        {}

// Lost implements tunnel.LineUser.
func (m *arrival) Lost(err error) { m.end(err) }

// kill resets the line: the application cannot be reached, or must not be any
// more.
func (m *arrival) kill(err error) {
	m.line.Reset()
	m.end(err)
}

func (m *arrival) end(err error) {
	if m.done {
		return
	}
	m.leave(m)
	m.route.Limit.leave()
	m.route.Session.Closed(reason.Of(err), err.Error())
}

// Abort implements loop.Aborter.
func (m *arrival) Abort(err error) { m.kill(ended(err)) }
