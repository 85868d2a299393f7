// SPDX-License-Identifier: Apache-2.0

package tunnel_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/meshproxy/meshproxy/nodeproxy/telemetry/reason"
	"github.com/meshproxy/meshproxy/nodeproxy/tunnel"
	"github.com/meshproxy/meshproxy/nodeproxy/tunnel/h2"
	"github.com/meshproxy/meshproxy/nodeproxy/tunnel/tunneltest"
)

// Fifty first streams at once take one handshake; other keys take others.
func TestSharedHandshake(t *testing.T) {
	ca := tunneltest.NewCA(t)
	s := newServer(t, ca, tunnel.Options{}, echo, nil)
	c := newClient(t, tunnel.Options{}, tunnel.PoolOptions{Identity: ca})
	key := keyTo(s.addr, "a", "server")
	var callers []*caller
	for range 50 {
		callers = append(callers, c.open(key, patience))
	}
	for _, w := range callers {
		w.must().ping("hello")
		if p := w.via.Peer(); p.Identity != tunneltest.ID("server") || p.LocalIdentity != tunneltest.ID("a") || p.Remote != s.addr {
			t.Fatalf("peer %+v", p)
		}
	}
	if st := c.stats(); st.Dials != 1 || st.Connections != 1 || st.Streams != 50 {
		t.Errorf("%+v", st)
	}
	c.open(keyTo(s.addr, "b", "server"), patience).must()
	c.open(keyTo(s.addr, "a", "server", "other"), patience).must()
	if st := c.stats(); st.Dials != 3 || st.Keys != 3 {
		t.Errorf("%+v", st)
	}
}

// The peer takes four streams per connection: the pool grows to its bound, then
// streams wait their turn.
func TestGrowth(t *testing.T) {
	ca := tunneltest.NewCA(t)
	s := newServer(t, ca, tunnel.Options{HTTP2: h2.Config{MaxStreams: 4}}, echo, nil)
	c := newClient(t, tunnel.Options{}, tunnel.PoolOptions{Identity: ca, MaxConns: 3, MaxPending: 5})
	key := keyTo(s.addr, "a", "server")
	var open []*caller
	for i := range 12 {
		open = append(open, c.open(key, patience).must())
		if st := c.stats(); st.Connections > 1+(i+1)/3 {
			t.Fatalf("%d streams on %d connections", i+1, st.Connections)
		}
	}
	if st := c.stats(); st.Connections != 3 || st.Streams != 12 {
		t.Fatalf("%+v", st)
	}
	var waiting []*caller
	for range 5 {
		waiting = append(waiting, c.open(key, patience))
	}
	if err := wait(t, c.open(key, patience).failed, "refusal"); !errors.Is(err, tunnel.ErrPoolFull) {
		t.Error(err)
	}
	for i, w := range waiting {
		open[i].hangUp()
		w.must().ping("at last")
	}
}

func TestOpenTimeoutAndCancel(t *testing.T) {
	ca := tunneltest.NewCA(t)
	s := newServer(t, ca, tunnel.Options{HTTP2: h2.Config{MaxStreams: 1}}, echo, nil)
	c := newClient(t, tunnel.Options{}, tunnel.PoolOptions{Identity: ca, MaxConns: 1})
	key := keyTo(s.addr, "a", "server")
	first := c.open(key, patience).must()
	if err := wait(t, c.open(key, 10*time.Millisecond).failed, "timeout"); !errors.Is(err, tunnel.ErrOpenTimeout) || reason.Of(err) != reason.ConnectTimeout {
		t.Error(err)
	}
	cancelled, b := newCaller(c), block(t)
	c.do(func() { c.pool.Open(key, b, patience, cancelled).Cancel() })
	next := c.open(key, patience)
	first.hangUp()
	next.must()
	select {
	case <-cancelled.opened:
		t.Error("a cancelled stream was opened")
	default:
	}
}

// What a dial fails with names its reason.
func TestDialErrors(t *testing.T) {
	ca, stranger, old := tunneltest.NewCA(t), tunneltest.NewCA(t), tunneltest.NewCA(t)
	old.TTL = -time.Minute
	good := newServer(t, ca, tunnel.Options{}, echo, nil)
	foreign := newServer(t, stranger, tunnel.Options{}, echo, nil)
	expired := newServer(t, old, tunnel.Options{}, echo, nil)
	silent := rawListener(t, func(c net.Conn) { io.Copy(io.Discard, c) })
	garbage := rawListener(t, func(c net.Conn) { c.Write([]byte("SSH-2.0-OpenSSH\r\n")) })
	for name, tc := range map[string]struct {
		ca   *tunneltest.CA
		addr netip.AddrPort
		want reason.Reason
	}{
		"refused":           {ca, netip.MustParseAddrPort("127.0.0.1:1"), reason.ConnectRefused},
		"unreachable":       {ca, netip.MustParseAddrPort("[2001:db8::1]:1"), reason.ConnectUnreachable},
		"untrusted":         {ca, foreign.addr, reason.PeerUntrusted},
		"expired":           {old, expired.addr, reason.TLSExpired},
		"handshake timeout": {ca, silent, reason.HandshakeTimeout},
		"no TLS":            {ca, garbage, reason.TLSHandshake},
		"another identity":  {ca, good.addr, reason.IdentityMismatch},
	} {
		t.Run(name, func(t *testing.T) {
			observed := make(chan tunnel.Handshake, 1)
			o := tunnel.PoolOptions{Identity: tc.ca, Observe: func(h tunnel.Handshake) { observed <- h }}
			if tc.want == reason.HandshakeTimeout {
				o.HandshakeTimeout = 500 * time.Millisecond
			}
			c := newClient(t, tunnel.Options{}, o)
			dest := "server"
			if tc.want == reason.IdentityMismatch {
				dest = "nobody"
			}
			err := wait(t, c.open(keyTo(tc.addr, "a", dest), patience).failed, "failure")
			if reason.Of(err) != tc.want {
				t.Errorf("%v: %v, want %v", err, reason.Of(err), tc.want)
			}
			if h := wait(t, observed, "handshake"); !h.Client || reason.Of(h.Err) != tc.want {
				t.Errorf("%+v", h)
			}
			if st := c.stats(); st.Keys != 0 || st.DialErrors != 1 {
				t.Errorf("%+v", st)
			}
		})
	}
}

// TLS 1.3: the server's opinion of the client's leaf arrives after the client's
// handshake is over.
func TestServerRejectsLeaf(t *testing.T) {
	ca, stranger := tunneltest.NewCA(t), tunneltest.NewCA(t)
	observed := make(chan tunnel.Handshake, 1)
	s := newServer(t, ca, tunnel.Options{}, echo, func(o *tunnel.ServerOptions) {
		o.Observe = func(h tunnel.Handshake) { observed <- h }
	})
	c := newClient(t, tunnel.Options{}, tunnel.PoolOptions{Identity: mixed{ca, stranger}})
	w := c.open(keyTo(s.addr, "a", "server"), patience)
	var err error
	select {
	case <-w.reset:
		c.do(func() { err = w.via.Err() })
	case err = <-w.failed:
	}
	if r := reason.Of(err); r != reason.PeerUntrusted {
		t.Errorf("%v: %v", err, r)
	}
	if h := wait(t, observed, "handshake"); h.Client || reason.Of(h.Err) != reason.PeerUntrusted {
		t.Errorf("%+v", h)
	}
}

// mixed trusts one authority and shows a leaf of another.
type mixed struct{ trusts, shows *tunneltest.CA }

func (m mixed) ClientConfig(ctx context.Context, key *tunnel.Key) (*tls.Config, error) {
	config, err := m.trusts.ClientConfig(ctx, key)
	if err != nil {
		return nil, err
	}
	leaf, err := m.shows.Leaf(key.Source)
	config.Certificates = []tls.Certificate{*leaf}
	return config, err
}

func TestNoLeaf(t *testing.T) {
	c := newClient(t, tunnel.Options{}, tunnel.PoolOptions{Identity: leafless{}})
	err := wait(t, c.open(keyTo(netip.MustParseAddrPort("127.0.0.1:1"), "a", "server"), patience).failed, "failure")
	if reason.Of(err) != reason.NoLeaf {
		t.Error(err)
	}
}

type leafless struct{}

func (leafless) ClientConfig(context.Context, *tunnel.Key) (*tls.Config, error) {
	return nil, reason.Wrap(reason.NoLeaf, errors.New("no leaf yet"))
}

func TestIdleRelease(t *testing.T) {
	ca := tunneltest.NewCA(t)
	s := newServer(t, ca, tunnel.Options{}, echo, nil)
	c := newClient(t, tunnel.Options{ClientIdle: 100 * time.Millisecond}, tunnel.PoolOptions{Identity: ca})
	w := c.open(keyTo(s.addr, "a", "server"), patience).must()
	w.ping("hello")
	if s.Connections() != 1 {
		t.Error(s.Connections())
	}
	w.hangUp()
	c.until("the release", func() bool { return c.pool.Stats().Keys == 0 })
	s.until("the end at the server", func() bool { return s.Connections() == 0 })
}

// A peer that answers nothing is found by PING; one that is busy is not.
func TestUnresponsivePeer(t *testing.T) {
	ca := tunneltest.NewCA(t)
	mute := rawListener(t, func(nc net.Conn) {
		config := ca.ServerConfig(func(string) spiffeID { return tunneltest.ID("server") })
		tc := tls.Server(nc, config)
		if err := tc.Handshake(); err != nil {
			t.Error(err)
			return
		}
		fr := http2.NewFramer(tc, tc)
		fr.WriteSettings()
		io.Copy(io.Discard, tc)
	})
	o := tunnel.Options{PingInterval: 100 * time.Millisecond, PingTimeout: 200 * time.Millisecond}
	c := newClient(t, o, tunnel.PoolOptions{Identity: ca})
	w := c.open(keyTo(mute, "a", "server"), patience)
	wait(t, w.reset, "the reset")
	c.do(func() {
		if r := reason.Of(w.via.Err()); r != reason.TunnelUnresponsive {
			t.Error(w.via.Err())
		}
	})
	o.PingTimeout = 5 * time.Second // of answers on a busy machine
	s := newServer(t, ca, o, echo, nil)
	c = newClient(t, o, tunnel.PoolOptions{Identity: ca})
	w = c.open(keyTo(s.addr, "a", "server"), patience).must()
	var begin time.Duration
	c.do(func() { begin = c.loop.Now() })
	c.until("the timeout to pass", func() bool { return c.loop.Now()-begin > o.PingTimeout+5*o.PingInterval })
	w.ping("still there")
}

// What drains goes on; what is new goes elsewhere.
func TestRetire(t *testing.T) {
	ca := tunneltest.NewCA(t)
	s := newServer(t, ca, tunnel.Options{}, echo, nil)
	c := newClient(t, tunnel.Options{}, tunnel.PoolOptions{Identity: ca})
	key := keyTo(s.addr, "a", "server")
	old := c.open(key, patience).must()
	c.do(func() {
		c.pool.Retire(func(k *tunnel.Key, p *tunnel.Peer) bool { return p.LocalIdentity == tunneltest.ID("a") })
	})
	fresh := c.open(key, patience).must()
	old.ping("old")
	fresh.ping("fresh")
	if old.via == fresh.via || c.stats().Dials != 2 {
		t.Error("both in the same tunnel")
	}
	old.hangUp()
	s.until("the end of the old tunnel", func() bool { return s.Connections() == 1 })
	fresh.ping("fresh")
}

func TestMaxAge(t *testing.T) {
	ca := tunneltest.NewCA(t)
	for name, ages := range map[string][2]time.Duration{"client": {300 * time.Millisecond, 0}, "server": {0, 300 * time.Millisecond}} {
		t.Run(name, func(t *testing.T) {
			fast := tunnel.Options{PingInterval: 200 * time.Millisecond}
			so, co := fast, fast
			co.Lifetime.MaxAge, so.Lifetime.MaxAge = ages[0], ages[1]
			s := newServer(t, ca, so, echo, nil)
			c := newClient(t, co, tunnel.PoolOptions{Identity: ca})
			key := keyTo(s.addr, "a", "server")
			old := c.open(key, patience).must()
			c.until("the drain", func() bool { return c.pool.Stats().Connections == 0 })
			old.ping("still open")
			c.open(key, patience).must().ping("elsewhere")
			old.ping("still open")
		})
	}
}

// An expired leaf ends its tunnel only where the policy says so.
func TestExpiry(t *testing.T) {
	ca := tunneltest.NewCA(t)
	for _, closes := range []bool{false, true} {
		var ahead atomic.Int64 // not before the stream is open, however long that takes
		s := newServer(t, ca, tunnel.Options{}, echo, nil)
		c := newClient(t, tunnel.Options{
			PingInterval: 200 * time.Millisecond,
			Clock:        func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) },
			Lifetime:     tunnel.Lifetime{CloseExpired: closes, Grace: time.Minute},
		}, tunnel.PoolOptions{Identity: ca})
		w := c.open(keyTo(s.addr, "a", "server"), patience).must()
		ahead.Store(int64(2 * time.Hour)) // leaves live for one
		c.until("the drain", func() bool { return c.pool.Stats().Connections == 0 })
		if !closes {
			w.ping("still open")
			continue
		}
		wait(t, w.reset, "the reset")
		c.do(func() {
			if reason.Of(w.via.Err()) != reason.TLSExpired {
				t.Error(w.via.Err())
			}
		})
	}
}

func TestPoolDrain(t *testing.T) {
	ca := tunneltest.NewCA(t)
	s := newServer(t, ca, tunnel.Options{}, echo, nil)
	c := newClient(t, tunnel.Options{}, tunnel.PoolOptions{Identity: ca})
	key := keyTo(s.addr, "a", "server")
	w := c.open(key, patience).must()
	c.do(c.pool.Drain)
	if err := wait(t, c.open(key, patience).failed, "refusal"); reason.Of(err) != reason.Draining {
		t.Error(err)
	}
	w.ping("still open")
	w.hangUp()
	c.until("the end", func() bool { return c.pool.Stats().Keys == 0 })
}

func TestIdentities(t *testing.T) {
	a, b := tunneltest.ID("a"), tunneltest.ID("b")
	if tunnel.IdentitiesOf(a, b, a) != tunnel.IdentitiesOf(b, a) {
		t.Error("the order matters")
	}
	if got := tunnel.IdentitiesOf(b, a).All(); !slices.Equal(got, []spiffeID{a, b}) {
		t.Error(got)
	}
	if tunnel.IdentitiesOf(a) != tunnel.IdentitiesOf(a, a) || len(tunnel.IdentitiesOf().All()) != 0 {
		t.Error("sets of one or none")
	}
}
