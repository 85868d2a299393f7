// SPDX-License-Identifier: Apache-2.0

package tunnel_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/meshproxy/meshproxy/nodeproxy/telemetry/reason"
	"github.com/meshproxy/meshproxy/nodeproxy/tunnel"
	"github.com/meshproxy/meshproxy/nodeproxy/tunnel/h2"
	"github.com/meshproxy/meshproxy/nodeproxy/tunnel/tunneltest"
)

// A draining server lets what is open finish and refuses what is new.
func TestServerDrain(t *testing.T) {
	ca := tunneltest.NewCA(t)
	s := newServer(t, ca, tunnel.Options{}, echo, nil)
	c := newClient(t, tunnel.Options{}, tunnel.PoolOptions{Identity: ca})
	key := keyTo(s.addr, "a", "server")
	w := c.open(key, patience).must()
	drained := make(chan error, 1)
	go func() { drained <- s.Drain(t.Context()) }()
	c.until("GOAWAY", func() bool { return c.pool.Stats().Connections == 0 })
	if err := wait(t, c.open(key, patience).failed, "refusal"); reason.Of(err) != reason.ConnectRefused {
		t.Error(err) // the listener is closed
	}
	w.ping("still open")
	select {
	case err := <-drained:
		t.Fatal("drained with a stream open:", err)
	default:
	}
	w.hangUp()
	if err := wait(t, drained, "the drain"); err != nil {
		t.Error(err)
	}
}

func TestServerDrainTimeout(t *testing.T) {
	ca := tunneltest.NewCA(t)
	s := newServer(t, ca, tunnel.Options{}, echo, nil)
	c := newClient(t, tunnel.Options{}, tunnel.PoolOptions{Identity: ca})
	w := c.open(keyTo(s.addr, "a", "server"), patience).must()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := s.Drain(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	s.Close()
	wait(t, w.reset, "the reset")
}

// The server shows the identity that SNI names, and says which it was.
func TestServerName(t *testing.T) {
	ca := tunneltest.NewCA(t)
	peers := make(chan tunnel.Peer, 1)
	s := newServer(t, ca, tunnel.Options{}, func(via tunnel.Tunnel, st *h2.Stream, r *h2.Request) h2.Sink {
		peers <- *via.Peer()
		return echo(via, st, r)
	}, nil)
	c := newClient(t, tunnel.Options{}, tunnel.PoolOptions{Identity: ca})
	for _, name := range []string{"", "web", "db"} {
		key := keyTo(s.addr, "a", "server", "web", "db")
		key.ServerName = name
		w := c.open(key, patience).must()
		want := tunneltest.ID("server")
		if name != "" {
			want = tunneltest.ID(name)
		}
		p := wait(t, peers, "the request")
		if w.via.Peer().Identity != want || p.LocalIdentity != want || p.ServerName != name || p.Identity != tunneltest.ID("a") {
			t.Errorf("%q: client sees %v, server %+v", name, w.via.Peer().Identity, p)
		}
		if p.Expires.IsZero() || time.Until(p.Expires) > time.Hour {
			t.Error("expires", p.Expires)
		}
	}
}

func TestRefusedStream(t *testing.T) {
	ca := tunneltest.NewCA(t)
	s := newServer(t, ca, tunnel.Options{}, func(_ tunnel.Tunnel, st *h2.Stream, _ *h2.Request) h2.Sink {
		st.Refuse(401)
		return nil
	}, nil)
	c := newClient(t, tunnel.Options{}, tunnel.PoolOptions{Identity: ca})
	if st := wait(t, c.open(keyTo(s.addr, "a", "server"), patience).status, "the answer"); st != 401 {
		t.Error(st)
	}
}

// The server closes clients that do not belong here, and says why.
func TestServerRefusesClients(t *testing.T) {
	ca := tunneltest.NewCA(t)
	client := func(change func(*tls.Config)) func(net.Conn) error {
		return func(nc net.Conn) error {
			key := keyTo(remoteOf(nc), "a", "server")
			config, err := ca.ClientConfig(context.Background(), &key)
			if err != nil {
				return err
			}
			change(config)
			tc := tls.Client(nc, config)
			if err := tc.Handshake(); err != nil {
				return err
			}
			_, err = io.Copy(io.Discard, tc)
			return err
		}
	}
	for name, tc := range map[string]struct {
		talk func(net.Conn) error
		want reason.Reason
	}{
		"no certificate": {client(func(c *tls.Config) { c.Certificates = nil }), reason.PeerMissing},
		"no ALPN":        {client(func(c *tls.Config) { c.NextProtos = nil }), reason.TLSHandshake},
		"other ALPN":     {client(func(c *tls.Config) { c.NextProtos = []string{"http/1.1"} }), reason.TLSHandshake},
		"TLS 1.2":        {client(func(c *tls.Config) { c.MinVersion, c.MaxVersion = 0, tls.VersionTLS12 }), reason.TLSHandshake},
		"plaintext": {func(nc net.Conn) error {
			nc.Write([]byte("GET / HTTP/1.1\r\n\r\n"))
			_, err := io.Copy(io.Discard, nc)
			return err
		}, reason.TLSHandshake},
		"silence": {func(nc net.Conn) error { _, err := io.Copy(io.Discard, nc); return err }, reason.HandshakeTimeout},
	} {
		t.Run(name, func(t *testing.T) {
			observed := make(chan tunnel.Handshake, 1)
			s := newServer(t, ca, tunnel.Options{}, echo, func(o *tunnel.ServerOptions) {
				if tc.want == reason.HandshakeTimeout {
					o.HandshakeTimeout = 500 * time.Millisecond
				}
				o.Observe = func(h tunnel.Handshake) { observed <- h }
			})
			nc := dialTCP(t, s.addr.String())
			_ = tc.talk(nc)
			if h := wait(t, observed, "the handshake"); reason.Of(h.Err) != tc.want || h.Peer.Remote != localOf(nc) {
				t.Errorf("%v: %v from %v", h.Err, reason.Of(h.Err), h.Peer.Remote)
			}
			if s.Connections() != 0 {
				t.Error("connections:", s.Connections())
			}
		})
	}
}

// One address cannot have all handshakes under way.
func TestHandshakesPerPeer(t *testing.T) {
	ca := tunneltest.NewCA(t)
	observed := make(chan tunnel.Handshake, 10)
	s := newServer(t, ca, tunnel.Options{}, echo, func(o *tunnel.ServerOptions) {
		o.MaxHandshakesPerPeer = 2
		o.Observe = func(h tunnel.Handshake) { observed <- h }
	})
	// Any of the three may be the one too many: goroutines take them on.
	ended := make(chan net.Conn, 3)
	open := make(map[net.Conn]bool)
	for range 3 {
		nc := dialTCP(t, s.addr.String())
		open[nc] = true
		go func() {
			_, _ = nc.Read(make([]byte, 1))
			ended <- nc
		}()
	}
	refused := wait(t, ended, "the end of one")
	if h := wait(t, observed, "the refusal"); reason.Of(h.Err) != reason.LimitHandshakes {
		t.Error(h.Err)
	}
	delete(open, refused)
	for nc := range open { // or their handshakes last until they are timed out
		nc.Close()
	}
}

// close_notify and a bare FIN end a tunnel in an orderly way; with streams open
// they are a loss.
func TestPeerCloses(t *testing.T) {
	ca := tunneltest.NewCA(t)
	for name, end := range map[string]func(*tls.Conn, *net.TCPConn){
		"close_notify": func(tc *tls.Conn, _ *net.TCPConn) { tc.CloseWrite() },
		"FIN":          func(_ *tls.Conn, nc *net.TCPConn) { nc.CloseWrite() },
		"RST":          func(_ *tls.Conn, nc *net.TCPConn) { nc.SetLinger(0); nc.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			addr := rawListener(t, func(nc net.Conn) {
				tc, fr := serveRaw(t, ca, nc)
				awaitHeaders(t, fr)
				writeHeaders(fr, 1, false, ":status", "200")
				end(tc, nc.(*net.TCPConn))
				io.Copy(io.Discard, tc)
			})
			c := newClient(t, tunnel.Options{}, tunnel.PoolOptions{Identity: ca})
			w := c.open(keyTo(addr, "a", "server"), patience)
			if name != "RST" { // which may overtake the response: a write finds it first
				w.must()
			}
			wait(t, w.reset, "the reset")
			c.do(func() {
				if r := reason.Of(w.via.Err()); r != reason.TunnelReset && r != reason.Reset {
					t.Error(w.via.Err())
				}
			})
			c.until("the end", func() bool { return c.pool.Stats().Keys == 0 })
		})
	}
}

// A peer that breaks the protocol is told so, and its streams end.
func TestProtocolViolation(t *testing.T) {
	ca := tunneltest.NewCA(t)
	told := make(chan *http2.GoAwayFrame, 1)
	addr := rawListener(t, func(nc net.Conn) {
		_, fr := serveRaw(t, ca, nc)
		awaitHeaders(t, fr)
		fr.WriteRawFrame(http2.FrameData, 0, 0, []byte("DATA on stream 0"))
		for {
			f, err := fr.ReadFrame()
			if err != nil {
				close(told)
				return
			}
			if g, ok := f.(*http2.GoAwayFrame); ok {
				told <- g
			}
		}
	})
	c := newClient(t, tunnel.Options{}, tunnel.PoolOptions{Identity: ca})
	w := c.open(keyTo(addr, "a", "server"), patience)
	wait(t, w.reset, "the reset")
	if g := wait(t, told, "GOAWAY"); g == nil || g.ErrCode != http2.ErrCodeProtocol {
		t.Errorf("%v", g)
	}
	c.do(func() {
		if r := reason.Of(w.via.Err()); r != reason.ProtocolError {
			t.Error(w.via.Err())
		}
	})
}

// A GOAWAY that leaves a stream out lets it be opened elsewhere.
func TestGoAwayUnprocessed(t *testing.T) {
	ca := tunneltest.NewCA(t)
	n := 0
	addr := rawListener(t, func(nc net.Conn) {
		_, fr := serveRaw(t, ca, nc)
		awaitHeaders(t, fr)
		if n++; n == 1 {
			fr.WriteGoAway(0, http2.ErrCodeNo, nil)
		} else {
			writeHeaders(fr, 1, false, ":status", "200")
		}
		io.Copy(io.Discard, nc)
	})
	c := newClient(t, tunnel.Options{}, tunnel.PoolOptions{Identity: ca})
	key := keyTo(addr, "a", "server")
	if e := wait(t, c.open(key, patience).reset, "the reset"); !e.Unprocessed {
		t.Error(e)
	}
	w := c.open(key, patience).must()
	c.do(func() { w.stream.Reset(h2.Cancel) })
}

// Who connects and says nothing has failed no handshake: health checks do it all
// the time.
func TestProbe(t *testing.T) {
	ca := tunneltest.NewCA(t)
	heard := make(chan tunnel.Handshake, 8)
	s := newServer(t, ca, tunnel.Options{}, echo, func(o *tunnel.ServerOptions) {
		o.Observe = func(h tunnel.Handshake) { heard <- h }
	})
	probe := dialTCP(t, s.addr.String()).(*net.TCPConn)
	if err := probe.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(probe); err != nil { // the server has closed it, too
		t.Fatal(err)
	}
	junk := dialTCP(t, s.addr.String())
	if _, err := junk.Write([]byte("GET / HTTP/1.1\r\n\r\n")); err != nil {
		t.Fatal(err)
	}
	if h := wait(t, heard, "a failed handshake"); h.Err == nil || h.Peer.Remote != localOf(junk) {
		t.Errorf("first heard of %v: %v", h.Peer.Remote, h.Err)
	}
}
