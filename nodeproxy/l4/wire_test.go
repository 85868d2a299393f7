// SPDX-License-Identifier: Apache-2.0

package l4_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/meshproxy/meshproxy/nodeproxy/l4"
	"github.com/meshproxy/meshproxy/nodeproxy/loop"
	"github.com/meshproxy/meshproxy/nodeproxy/telemetry/reason"
	"github.com/meshproxy/meshproxy/nodeproxy/tunnel"
	"github.com/meshproxy/meshproxy/nodeproxy/tunnel/tunneltest"
)

// Lines whose other end is crypto/tls on an ordinary socket, as in Consul's
// builtin proxy and its Go SDK.

var versions = map[string]uint16{"TLS 1.2": tls.VersionTLS12, "TLS 1.3": tls.VersionTLS13}

func only(c *tls.Config, version uint16) *tls.Config {
	c.MinVersion, c.MaxVersion, c.NextProtos = version, version, nil
	return c
}

// half is a connection of which one direction can be ended.
type half interface {
	net.Conn
	CloseWrite() error
}

// foreign is a stream between an application and a foreign end of a line.
type foreign struct {
	node *node
	app  half
	peer *tls.Conn
	raw  *net.TCPConn // beneath peer
}

// foreignClient dials a node's line to an application.
func foreignClient(t *testing.T, version uint16, o nodeOptions) *foreign {
	t.Helper()
	f := new(foreign)
	accepted := make(chan *net.TCPConn, 1)
	to := listenOnce(t, accepted)
	o.ca = tunneltest.NewCA(t)
	o.lines = lineGateFunc(func(p *tunnel.Peer) (l4.Route, error) { return f.node.admitLine(p) })
	f.node = newNode(t, o)
	config, err := o.ca.ClientConfig(context.Background(), &tunnel.Key{
		Source: tunneltest.ID("client"), Destinations: identities("server"), ServerName: lineName(to),
	})
	if err != nil {
		t.Fatal(err)
	}
	config = only(config, version)
	config.NextProtos = []string{"h2"} // as the SDK does
	f.raw = dial(t, f.node.addr)
	f.peer = tls.Client(f.raw, config)
	if err := f.peer.Handshake(); err != nil {
		t.Fatal(err)
	}
	if got := f.peer.ConnectionState(); got.Version != version || got.NegotiatedProtocol != "" {
		t.Fatalf("negotiated %x %q", got.Version, got.NegotiatedProtocol)
	}
	f.app = <-accepted
	return f
}

// foreignServer is dialled by an application through a node.
func foreignServer(t *testing.T, version uint16, o nodeOptions) *foreign {
	t.Helper()
	f := new(foreign)
	accepted := make(chan *net.TCPConn, 1)
	at := listenOnce(t, accepted)
	o.ca = tunneltest.NewCA(t)
	f.node = newNode(t, o)
	target := through(t, at, at)
	target.Connect = nil
	app := dial(t, f.node.listenFor(routerFunc(func(*l4.Client) (l4.Route, error) {
		return l4.Route{Session: f.node.book.open(target), Limit: o.limit}, nil
	})))
	f.app, f.raw = app, <-accepted
	f.peer = tls.Server(f.raw, only(o.ca.ServerConfig(func(string) spiffeID { return tunneltest.ID("server") }), version))
	if err := f.peer.Handshake(); err != nil {
		t.Fatal(err)
	}
	return f
}

// listenOnce takes one connection.
func listenOnce(t *testing.T, accepted chan<- *net.TCPConn) netip.AddrPort {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		defer ln.Close()
		c, err := ln.Accept()
		if err != nil {
			return
		}
		_ = c.SetDeadline(time.Now().Add(patience))
		t.Cleanup(func() { c.Close() })
		accepted <- c.(*net.TCPConn)
	})
	t.Cleanup(func() {
		ln.Close()
		wg.Wait()
	})
	return ln.Addr().(*net.TCPAddr).AddrPort()
}

func eachForeign(t *testing.T, f func(t *testing.T, start func(*testing.T, uint16, nodeOptions) *foreign, version uint16)) {
	for side, start := range map[string]func(*testing.T, uint16, nodeOptions) *foreign{"client": foreignClient, "server": foreignServer} {
		for name, version := range versions {
			t.Run(side+" "+name, func(t *testing.T) { f(t, start, version) })
		}
	}
}

func TestForeignHalfClose(t *testing.T) {
	eachForeign(t, func(t *testing.T, start func(*testing.T, uint16, nodeOptions) *foreign, version uint16) {
		for _, appFirst := range []bool{false, true} {
			f := start(t, version, nodeOptions{})
			first, second := half(f.peer), f.app
			if appFirst {
				first, second = second, first
			}
			say(t, first, second, "last words")
			if err := first.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			if rest, err := io.ReadAll(second); len(rest) > 0 || err != nil {
				t.Fatalf("after the end: %q, %v", rest, err)
			}
			say(t, second, first, "answer")
			say(t, second, first, "answer again")
			if err := second.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			if rest, err := io.ReadAll(first); len(rest) > 0 || err != nil {
				t.Fatalf("after the end: %q, %v", rest, err)
			}
			if s := f.node.book.last(t); s.why != reason.None {
				t.Error(s.why, s.detail)
			}
		}
	})
}

func TestForeignBulk(t *testing.T) {
	const size = 16 << 20
	eachForeign(t, func(t *testing.T, start func(*testing.T, uint16, nodeOptions) *foreign, version uint16) {
		f := start(t, version, nodeOptions{})
		up, down := random(size), random(size+777)
		var wg sync.WaitGroup
		for _, way := range []struct {
			from, to half
			data     []byte
		}{{f.peer, f.app, up}, {f.app, f.peer, down}} {
			wg.Go(func() {
				_, err := way.from.Write(way.data)
				if err := errors.Join(err, way.from.CloseWrite()); err != nil {
					t.Error(err)
				}
			})
			wg.Go(func() {
				got, err := io.ReadAll(way.to)
				if err != nil || string(got) != string(way.data) {
					t.Errorf("%d bytes of %d, or others: %v", len(got), len(way.data), err)
				}
			})
		}
		wg.Wait()
		if s := f.node.book.last(t); s.why != reason.None || s.sent+s.received != len(up)+len(down) {
			t.Error(s.why, s.detail, s.sent, s.received)
		}
	})
}

// A peer that vanishes without close_notify has not said all: the application
// must see a reset.
func TestForeignTruncation(t *testing.T) {
	eachForeign(t, func(t *testing.T, start func(*testing.T, uint16, nodeOptions) *foreign, version uint16) {
		for name, cut := range map[string]func(*foreign){
			"FIN": func(f *foreign) { f.raw.CloseWrite() },
			"RST": func(f *foreign) { f.raw.SetLinger(0); f.raw.Close() },
			"no TLS": func(f *foreign) {
				f.raw.Write([]byte("what is this?"))
				f.raw.CloseWrite()
			},
		} {
			t.Run(name, func(t *testing.T) {
				f := start(t, version, nodeOptions{})
				say(t, f.peer, f.app, "half a ")
				cut(f)
				if rest, err := io.ReadAll(f.app); len(rest) > 0 || !errors.Is(err, unix.ECONNRESET) {
					t.Errorf("%q, %v", rest, err)
				}
				if s := f.node.book.last(t); s.why == reason.None || s.why == reason.Internal {
					t.Error(s.why, s.detail)
				}
			})
		}
	})
}

func TestForeignSeesReset(t *testing.T) {
	eachForeign(t, func(t *testing.T, start func(*testing.T, uint16, nodeOptions) *foreign, version uint16) {
		f := start(t, version, nodeOptions{})
		say(t, f.app, f.peer, "hello")
		f.app.(*net.TCPConn).SetLinger(0)
		f.app.Close()
		if rest, err := io.ReadAll(f.peer); len(rest) > 0 || !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("%q, %v", rest, err)
		}
	})
}

// Neither a peer nor an application that does not read costs more than two
// helpings, and both get all of it later.
func TestForeignSlowReader(t *testing.T) {
	const size = 24 << 20
	eachForeign(t, func(t *testing.T, start func(*testing.T, uint16, nodeOptions) *foreign, version uint16) {
		for _, toApp := range []bool{true, false} {
			f := start(t, version, nodeOptions{})
			from, to := half(f.peer), f.app
			if !toApp {
				from, to = to, from
			}
			say(t, from, to, "now")
			var wg sync.WaitGroup
			wg.Go(func() {
				if _, err := from.Write(make([]byte, size)); err != nil {
					t.Error(err)
				}
				from.CloseWrite()
			})
			used, same, held := 0, 0, 0
			waitFor(t, f.node, func() bool {
				held = f.node.loop.Chunks().Used() * loop.ChunkSize
				now := held + f.node.book.all()[0].moved()
				if now == used {
					same++
				} else {
					used, same = now, 0
				}
				return used > 0 && same > 100
			})
			if held > 2*tunnel.LineWrite {
				t.Errorf("%d bytes are held", held)
			}
			if n, err := io.Copy(io.Discard, to); n != size || err != nil {
				t.Error(n, err)
			}
			wg.Wait()
			waitFor(t, f.node, func() bool { return f.node.loop.Chunks().Used() == 0 })
		}
	})
}

// moved is what has been counted; for the loop.
func (s *session) moved() int { return s.sent + s.received }

// A server of TLS 1.3 says only after the client's handshake that it denies the
// client, as Consul's builtin proxy does.
func TestLateDenial(t *testing.T) {
	ca := tunneltest.NewCA(t)
	n := newNode(t, nodeOptions{ca: ca})
	at := app(t, func(c *net.TCPConn) {
		config := only(ca.ServerConfig(func(string) spiffeID { return tunneltest.ID("server") }), tls.VersionTLS13)
		config.VerifyConnection = func(tls.ConnectionState) error { return errors.New("not you") }
		if err := tls.Server(c, config).Handshake(); err == nil {
			t.Error("nobody was denied")
		}
		io.Copy(io.Discard, c)
	})
	target := through(t, at, at)
	target.Connect = nil
	c := dial(t, n.listenFor(routerFunc(func(*l4.Client) (l4.Route, error) {
		return l4.Route{Session: n.book.open(target)}, nil
	})))
	if rest, err := io.ReadAll(c); len(rest) > 0 || !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("%q, %v", rest, err)
	}
	if s := n.book.last(t); s.why != reason.PeerDenied || !strings.Contains(s.detail, "bad certificate") {
		t.Error(s.why, s.detail)
	}
}

// What a gate refuses is closed before any byte, in good order.
func TestLineRefused(t *testing.T) {
	for name, version := range versions {
		t.Run(name, func(t *testing.T) {
			ca := tunneltest.NewCA(t)
			n := newNode(t, nodeOptions{ca: ca, lines: lineGateFunc(func(*tunnel.Peer) (l4.Route, error) {
				return l4.Route{}, reason.Wrap(reason.PolicyDenied, errors.New("not you"))
			})})
			config, err := ca.ClientConfig(context.Background(), &tunnel.Key{Source: tunneltest.ID("client"), Destinations: identities("server")})
			if err != nil {
				t.Fatal(err)
			}
			c := tls.Client(dial(t, n.addr), only(config, version))
			if _, err := c.Write([]byte("let me in")); err != nil {
				t.Fatal(err)
			}
			if rest, err := io.ReadAll(c); len(rest) > 0 || err != nil {
				t.Errorf("%q, %v", rest, err)
			}
		})
	}
}

// The application refuses: the peer sees a reset, and nothing is left.
func TestLineToNobody(t *testing.T) {
	m := newLineMesh(t, nobodyAt(t), nodeOptions{})
	expectReset(t, m.front)
	if s := m.in.book.last(t); s.why != reason.ConnectRefused {
		t.Error(s.why, s.detail)
	}
	if s := m.out.book.last(t); s.why == reason.None {
		t.Error(s.why, s.detail)
	}
}

// nobodyAt is an address where nobody listens.
func nobodyAt(t *testing.T) netip.AddrPort {
	fd, at := listen(t)
	_ = unix.Shutdown(fd, unix.SHUT_RDWR)
	return at
}

// A peer that takes connections and says nothing costs its own streams only, and
// no longer than the timeout.
func TestSilentLine(t *testing.T) {
	to := app(t, func(c *net.TCPConn) { io.Copy(c, c) })
	m := newLineMesh(t, to, nodeOptions{})
	silent := app(t, func(c *net.TCPConn) { io.Copy(io.Discard, c) })
	target := m.through(t, silent)
	target.Tunnel.Addr, target.Timeout = silent, 3*time.Second
	front := m.out.listenFor(routerFunc(func(*l4.Client) (l4.Route, error) {
		return l4.Route{Session: m.out.book.open(target)}, nil
	}))
	var stuck []*net.TCPConn
	for range 300 {
		stuck = append(stuck, dial(t, front))
	}
	c := dial(t, m.front)
	say(t, c, c, "echo")
	for _, c := range stuck {
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
			t.Fatal(err)
		}
	}
	waitFor(t, m.out, func() bool { return m.out.lines.Dialing() == 0 })
}

// say sends a text and expects it at the other end.
func say(t *testing.T, from, to net.Conn, text string) {
	t.Helper()
	if _, err := from.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(text))
	if _, err := io.ReadFull(to, got); err != nil || string(got) != text {
		t.Fatalf("%q, %v, want %q", got, err, text)
	}
}
