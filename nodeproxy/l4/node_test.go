// SPDX-License-Identifier: Apache-2.0

package l4_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/sys/unix"

	"github.com/meshproxy/meshproxy/nodeproxy/l4"
	"github.com/meshproxy/meshproxy/nodeproxy/loop"
	"github.com/meshproxy/meshproxy/nodeproxy/telemetry/reason"
	"github.com/meshproxy/meshproxy/nodeproxy/tunnel"
	"github.com/meshproxy/meshproxy/nodeproxy/tunnel/h2"
	"github.com/meshproxy/meshproxy/nodeproxy/tunnel/tunneltest"
)

// patience is how long anything may take: the machine may be busy with other tests.
const patience = 2 * time.Minute

// node is one node's data path: a loop with everything on it.
type node struct {
	t       testing.TB
	loop    *loop.Loop
	carrier *tunnel.Carrier
	pool    *tunnel.Pool
	relays  *l4.Relays
	server  *tunnel.Server
	lines   *tunnel.Lines
	addr    netip.AddrPort // of the server
	book    book
	light   bool // sessions are not booked; belongs to the loop
}

// nodeOptions changes what newNode makes.
type nodeOptions struct {
	ca     *tunneltest.CA
	tunnel tunnel.Options
	pool   tunnel.PoolOptions
	relays l4.Options
	gate   l4.Gate     // of the server; nil for none
	lines  l4.LineGate // of a server of lines
	limit  *l4.Limit   // of what a foreign server is dialled for
}

func newNode(t testing.TB, o nodeOptions) *node {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	l, err := loop.New(loop.Options{Logger: log, TickInterval: 10 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	n := &node{t: t, loop: l}
	o.tunnel.Logger, o.relays.Logger = log, log
	if o.relays.ConnectTimeout == 0 {
		o.relays.ConnectTimeout = patience
	}
	o.pool.DialTimeout, o.pool.HandshakeTimeout = patience, patience
	n.carrier = tunnel.NewCarrier(l, o.tunnel)
	o.pool.Identity = o.ca
	n.pool = tunnel.NewPool(n.carrier, o.pool)
	n.lines = tunnel.NewLines(n.carrier, o.pool)
	o.relays.Lines = n.lines
	n.relays = l4.New(n.carrier, n.pool, o.relays)
	go l.Run()
	if o.gate != nil || o.lines != nil {
		seat := tunnel.Seat{Carrier: n.carrier, Acceptor: n.relays.Gated(o.gate)}
		if o.lines != nil {
			seat.Lines = n.relays.GatedLines(o.lines)
		}
		n.server = tunnel.NewServer(tunnel.ServerOptions{
			Config: func() *tls.Config {
				return o.ca.ServerConfig(func(string) spiffeid.ID { return tunneltest.ID("server") })
			},
			Seats:            []tunnel.Seat{seat},
			HandshakeTimeout: patience,
			Logger:           log,
		})
		fd, at := listen(t)
		n.addr = at
		if err := n.server.Listen(fd); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(n.close)
	return n
}

func (n *node) close() {
	if n.server != nil {
		n.server.Close()
	}
	n.loop.Close()
	<-n.loop.Done()
	n.pool.Close()
	n.lines.Close()
}

func (n *node) do(f func()) {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := n.loop.Do(ctx, f); err != nil {
		n.t.Error(err)
	}
}

// listenFor makes a listener whose connections r routes.
func (n *node) listenFor(r l4.Router) netip.AddrPort {
	n.t.Helper()
	fd, at := listen(n.t)
	n.do(func() {
		if _, err := n.relays.Listen(fd, 42, r); err != nil {
			n.t.Error(err)
		}
	})
	return at
}

// listen opens a listening socket on a loopback address.
func listen(t testing.TB) (fd int, at netip.AddrPort) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	raw, err := ln.(*net.TCPListener).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(old uintptr) { fd, err = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd, ln.Addr().(*net.TCPAddr).AddrPort()
}

// book remembers the sessions of a node.
type book struct {
	mu       sync.Mutex
	sessions []*session
}

func (b *book) all() []*session {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]*session(nil), b.sessions...)
}

// last waits for the end of the session that was opened last.
func (b *book) last(t testing.TB) *session {
	t.Helper()
	all := b.all()
	if len(all) == 0 {
		t.Fatal("no session")
	}
	s := all[len(all)-1]
	select {
	case <-s.over:
	case <-time.After(patience):
		t.Fatal("session does not end")
	}
	return s
}

// session tries targets in order.
type session struct {
	targets  []l4.Target
	failures []error
	peer     *tunnel.Peer
	ready    chan struct{} // closed by Connected

	sent, received int
	why            reason.Reason
	detail         string
	over           chan struct{} // closed by Closed; what is above may be read then
}

var errNoTarget = errors.New("no target left")

func (b *book) open(targets ...l4.Target) *session {
	s := &session{targets: targets, over: make(chan struct{}), ready: make(chan struct{})}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.sessions = append(b.sessions, s)
	return s
}

func (s *session) Next(failed error) (l4.Target, error) {
	if failed != nil {
		s.failures = append(s.failures, failed)
	}
	if len(s.targets) == 0 {
		return l4.Target{}, errors.Join(failed, errNoTarget)
	}
	t := s.targets[0]
	s.targets = s.targets[1:]
	return t, nil
}

func (s *session) Connected(p *tunnel.Peer) { s.peer = p; close(s.ready) }
func (s *session) Sent(n int)               { s.sent += n }
func (s *session) Received(n int)           { s.received += n }
func (s *session) Closed(why reason.Reason, detail string) {
	s.why, s.detail = why, detail
	close(s.over)
}

// routerFunc and gateFunc make functions of the package's interfaces.
type routerFunc func(*l4.Client) (l4.Route, error)

func (f routerFunc) Route(c *l4.Client) (l4.Route, error) { return f(c) }

type gateFunc func(*l4.Request) (l4.Route, error)

func (f gateFunc) Admit(r *l4.Request) (l4.Route, error) { return f(r) }

// admit lets everybody through to the address that the CONNECT names.
func (n *node) admit(r *l4.Request) (l4.Route, error) {
	to, err := netip.ParseAddrPort(r.Authority)
	if err != nil {
		return l4.Route{}, reason.Wrap(reason.ProtocolError, err)
	}
	if n.light {
		return l4.Route{Session: &tally{target: l4.Target{Addr: to}}}, nil
	}
	return l4.Route{Session: n.book.open(l4.Target{Addr: to})}, nil
}

// through is the target app behind the tunnel server at via.
func through(t testing.TB, via, app netip.AddrPort) l4.Target {
	t.Helper()
	block, err := h2.ConnectBlock(app.String())
	if err != nil {
		t.Fatal(err)
	}
	return l4.Target{
		Tunnel: &tunnel.Key{
			Source:       tunneltest.ID("client"),
			Destinations: tunnel.IdentitiesOf(tunneltest.ID("server")),
			Addr:         via,
			ServerName:   "server.test",
		},
		Connect: block,
	}
}

func identities(names ...string) tunnel.Identities {
	var ids []spiffeid.ID
	for _, n := range names {
		ids = append(ids, tunneltest.ID(n))
	}
	return tunnel.IdentitiesOf(ids...)
}

// mesh is two nodes: what arrives at front goes to app.
type mesh struct {
	out, in *node
	front   netip.AddrPort
	lines   bool // between the two, instead of a tunnel
}

// through is the target app behind the mesh's other node.
func (m *mesh) through(t testing.TB, app netip.AddrPort) l4.Target {
	target := through(t, m.in.addr, app)
	if m.lines {
		target.Connect = nil
		target.Tunnel.ServerName = lineName(app)
	}
	return target
}

// newMesh makes a client's node and a server's, and an outbound listener whose
// connections lead to app.
func newMesh(t testing.TB, app netip.AddrPort, o nodeOptions) *mesh {
	t.Helper()
	o.ca = tunneltest.NewCA(t)
	m := new(mesh)
	m.out = newNode(t, o)
	o.gate = gateFunc(func(r *l4.Request) (l4.Route, error) { return m.in.admit(r) })
	m.in = newNode(t, o)
	m.front = m.out.listenFor(routerFunc(func(*l4.Client) (l4.Route, error) {
		return l4.Route{Session: m.out.book.open(through(t, m.in.addr, app))}, nil
	}))
	return m
}

// newLineMesh is newMesh with lines instead of a tunnel. The server name says
// where a stream goes.
func newLineMesh(t testing.TB, app netip.AddrPort, o nodeOptions) *mesh {
	t.Helper()
	o.ca = tunneltest.NewCA(t)
	m := &mesh{lines: true}
	m.out = newNode(t, o)
	o.lines = lineGateFunc(func(p *tunnel.Peer) (l4.Route, error) { return m.in.admitLine(p) })
	m.in = newNode(t, o)
	m.front = m.out.listenFor(routerFunc(func(*l4.Client) (l4.Route, error) {
		return l4.Route{Session: m.out.book.open(m.through(t, app))}, nil
	}))
	return m
}

type lineGateFunc func(*tunnel.Peer) (l4.Route, error)

func (f lineGateFunc) AdmitLine(p *tunnel.Peer) (l4.Route, error) { return f(p) }

// admitLine lets everybody through to the port that the server name has.
func (n *node) admitLine(p *tunnel.Peer) (l4.Route, error) {
	var port uint16
	if _, err := fmt.Sscanf(p.ServerName, "port-%d.test", &port); err != nil {
		return l4.Route{}, reason.Wrap(reason.NoWorkload, err)
	}
	to := l4.Target{Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), port)}
	if n.light {
		return l4.Route{Session: &tally{target: to}}, nil
	}
	return l4.Route{Session: n.book.open(to)}, nil
}

func lineName(app netip.AddrPort) string { return fmt.Sprintf("port-%d.test", app.Port()) }

// direct makes one node whose front leads to app without a tunnel.
func direct(t testing.TB, app netip.AddrPort, o nodeOptions) *mesh {
	t.Helper()
	o.ca = tunneltest.NewCA(t)
	m := &mesh{out: newNode(t, o)}
	m.front = m.out.listenFor(routerFunc(func(c *l4.Client) (l4.Route, error) {
		if c.NetNS != 42 || !c.Local.IsValid() || !c.Remote.IsValid() {
			return l4.Route{}, fmt.Errorf("client %+v", c)
		}
		return l4.Route{Session: m.out.book.open(l4.Target{Addr: app})}, nil
	}))
	return m
}
