// SPDX-License-Identifier: Apache-2.0

package tunnel_test

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/net/http2/hpack"

	"github.com/meshproxy/meshproxy/nodeproxy/loop"
	"github.com/meshproxy/meshproxy/nodeproxy/tunnel"
	"github.com/meshproxy/meshproxy/nodeproxy/tunnel/h2"
	"github.com/meshproxy/meshproxy/nodeproxy/tunnel/tunneltest"
)

type spiffeID = spiffeid.ID

// patience is how long anything may take: the machine may be busy with other tests.
const patience = 2 * time.Minute

var quiet = slog.New(slog.DiscardHandler)

// end is one loop with a carrier.
type end struct {
	t       testing.TB
	loop    *loop.Loop
	carrier *tunnel.Carrier
}

func newEnd(t testing.TB, o tunnel.Options) *end {
	t.Helper()
	l, err := loop.New(loop.Options{Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	o.Logger = quiet
	e := &end{t: t, loop: l, carrier: tunnel.NewCarrier(l, o)}
	go l.Run()
	t.Cleanup(func() {
		l.Close()
		<-l.Done()
	})
	return e
}

func (e *end) do(f func()) {
	e.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := e.loop.Do(ctx, f); err != nil {
		e.t.Error(err)
	}
}

// until polls a condition on the loop.
func (e *end) until(what string, cond func() bool) {
	e.t.Helper()
	done := make(chan struct{})
	e.do(func() {
		var timer *loop.Timer
		timer = e.loop.Every(time.Millisecond, func() {
			if cond() {
				timer.Stop()
				close(done)
			}
		})
	})
	select {
	case <-done:
	case <-time.After(patience):
		e.t.Fatal("waited in vain for ", what)
	}
}

// client is an end with a pool.
type client struct {
	*end
	pool *tunnel.Pool
}

func newClient(t testing.TB, o tunnel.Options, p tunnel.PoolOptions) *client {
	c := &client{end: newEnd(t, o)}
	if p.DialTimeout == 0 {
		p.DialTimeout = patience
	}
	if p.HandshakeTimeout == 0 {
		p.HandshakeTimeout = patience
	}
	c.do(func() { c.pool = tunnel.NewPool(c.carrier, p) })
	t.Cleanup(c.pool.Close)
	return c
}

// server is an end with a server whose acceptor is a function.
type server struct {
	*end
	*tunnel.Server
	addr netip.AddrPort
}

type acceptFunc func(tunnel.Tunnel, *h2.Stream, *h2.Request) h2.Sink

func (f acceptFunc) Accept(v tunnel.Tunnel, s *h2.Stream, r *h2.Request) h2.Sink { return f(v, s, r) }

func newServer(t testing.TB, ca *tunneltest.CA, o tunnel.Options, accept acceptFunc, change func(*tunnel.ServerOptions)) *server {
	t.Helper()
	e := newEnd(t, o)
	so := tunnel.ServerOptions{
		Config: func() *tls.Config {
			return ca.ServerConfig(func(name string) spiffeid.ID {
				if name == "" {
					name = "server"
				}
				return tunneltest.ID(name)
			})
		},
		Seats:            []tunnel.Seat{{Carrier: e.carrier, Acceptor: accept}},
		HandshakeTimeout: patience,
		Logger:           quiet,
	}
	if change != nil {
		change(&so)
	}
	s := &server{end: e, Server: tunnel.NewServer(so)}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	s.addr = ln.Addr().(*net.TCPAddr).AddrPort()
	raw, err := ln.(*net.TCPListener).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) { err = s.Listen(int(fd)) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// echo accepts every stream and sends back what it gets, end included.
func echo(_ tunnel.Tunnel, s *h2.Stream, _ *h2.Request) h2.Sink {
	s.Accept(nil)
	return new(echoer)
}

type echoer struct {
	waiting []byte
	end     bool
}

func (e *echoer) Response(*h2.Stream, int, []hpack.HeaderField) {}
func (e *echoer) Data(s *h2.Stream, p []byte) {
	e.waiting = append(e.waiting, p...)
	s.Consumed(len(p))
	e.Writable(s)
}

func (e *echoer) End(s *h2.Stream) {
	e.end = true
	e.Writable(s)
}
func (e *echoer) Reset(*h2.Stream, h2.StreamError) {}
func (e *echoer) Writable(s *h2.Stream) {
	e.waiting = e.waiting[s.Write(e.waiting):]
	if e.end && len(e.waiting) == 0 {
		s.CloseWrite()
	}
}

// caller opens a stream and notes what comes of it.
type caller struct {
	client *client
	stream *h2.Stream
	via    tunnel.Tunnel

	opened, ended chan struct{}
	status        chan int
	failed        chan error
	reset         chan h2.StreamError
	data          chan []byte
}

func newCaller(c *client) *caller {
	return &caller{
		client: c, opened: make(chan struct{}), ended: make(chan struct{}), status: make(chan int, 1),
		failed: make(chan error, 1), reset: make(chan h2.StreamError, 1), data: make(chan []byte, 4096),
	}
}

func (c *caller) Opened(s *h2.Stream, via tunnel.Tunnel) {
	c.stream, c.via = s, via
	close(c.opened)
}
func (c *caller) Failed(err error)                                     { c.failed <- err }
func (c *caller) Response(_ *h2.Stream, st int, _ []hpack.HeaderField) { c.status <- st }
func (c *caller) Data(s *h2.Stream, p []byte) {
	c.data <- append([]byte(nil), p...)
	s.Consumed(len(p))
}
func (c *caller) End(*h2.Stream)                       { close(c.ended) }
func (c *caller) Reset(_ *h2.Stream, e h2.StreamError) { c.reset <- e }
func (c *caller) Writable(*h2.Stream)                  {}

// wait is a receive that doesn't take for ever.
func wait[T any](t testing.TB, c <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(patience):
		t.Fatal("waited in vain for ", what)
		panic("unreachable")
	}
}

func keyTo(addr netip.AddrPort, source string, destinations ...string) tunnel.Key {
	var ids []spiffeid.ID
	for _, d := range destinations {
		ids = append(ids, tunneltest.ID(d))
	}
	return tunnel.Key{Source: tunneltest.ID(source), Destinations: tunnel.IdentitiesOf(ids...), Addr: addr}
}

func block(t testing.TB) *h2.Block {
	t.Helper()
	b, err := h2.ConnectBlock("10.0.0.1:80")
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// open begins a stream.
func (c *client) open(key tunnel.Key, timeout time.Duration) *caller {
	c.t.Helper()
	w, b := newCaller(c), block(c.t)
	c.do(func() { c.pool.Open(key, b, timeout, w) })
	return w
}

// must waits for the stream's 200.
func (c *caller) must() *caller {
	t := c.client.t
	t.Helper()
	select {
	case st := <-c.status:
		if st != 200 {
			t.Fatal("status", st)
		}
	case err := <-c.failed:
		t.Fatal("open:", err)
	case e := <-c.reset:
		if len(c.status) == 0 || <-c.status != 200 {
			t.Fatal("reset:", e, c.via.Err())
		}
		c.reset <- e // it came after the answer, and is for who asks next
	case <-time.After(patience):
		t.Fatal("no answer")
	}
	return c
}

// ping sends a message and waits for its echo.
func (c *caller) ping(msg string) {
	t := c.client.t
	t.Helper()
	c.client.do(func() {
		if n := c.stream.Write([]byte(msg)); n != len(msg) {
			t.Errorf("wrote %d bytes", n)
		}
	})
	for got := ""; got != msg; {
		select {
		case p := <-c.data:
			got += string(p)
		case e := <-c.reset:
			t.Fatal("reset:", e, c.via.Err())
		case <-time.After(patience):
			t.Fatalf("got %q of %q", got, msg)
		}
	}
}

// hangUp ends the stream in both directions.
func (c *caller) hangUp() {
	c.client.do(func() { c.stream.CloseWrite() })
	wait(c.client.t, c.ended, "the stream's end")
}

func (c *client) stats() (s tunnel.PoolStats) {
	c.t.Helper()
	c.do(func() { s = c.pool.Stats() })
	return s
}

// rawListener accepts on an address and gives each connection to f.
func rawListener(t testing.TB, f func(net.Conn)) netip.AddrPort {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			c.SetDeadline(time.Now().Add(patience))
			f(c)
			c.Close()
		}
	}()
	t.Cleanup(func() {
		ln.Close()
		<-done
	})
	return ln.Addr().(*net.TCPAddr).AddrPort()
}
