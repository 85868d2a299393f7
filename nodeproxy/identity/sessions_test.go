// SPDX-License-Identifier: Apache-2.0

package identity_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/meshproxy/meshproxy/nodeproxy/identity"
	"github.com/meshproxy/meshproxy/nodeproxy/identity/internal/identitytest"
)

// resumption is a pair whose handshakes may resume.
type resumption struct {
	*pair
	version  uint16 // the newest that the client speaks
	sessions *identity.Sessions[string]
	tickets  *identity.Tickets
	// edit changes the client's configuration.
	edit func(*tls.Config)
}

func newResumption(t testing.TB, version uint16) *resumption {
	p := newPair(t)
	p.opts.Protocols, p.opts.MinVersion = []string{}, tls.VersionTLS12
	return &resumption{
		pair: p, version: version,
		sessions: identity.NewSessions[string](p.client, p.opts), tickets: identity.NewTickets(p.server, p.opts),
	}
}

// handshake is one of the client with the server, under the only key.
func (r *resumption) handshake(t *testing.T) (c, s identitytest.Result) {
	t.Helper()
	cc, err := r.sessions.Config(t.Context(), "key", client, r.accepted, r.serverName)
	if err != nil {
		t.Fatal(err)
	}
	cc.MaxVersion = r.version
	if r.edit != nil {
		r.edit(cc)
	}
	return identitytest.Handshake(t, cc, r.serverConfig())
}

func (r *resumption) serverConfig() *tls.Config {
	own := identity.ServerConfig(r.server, r.names, r.opts)
	return &tls.Config{
		MinVersion: tls.VersionTLS12, SessionTicketsDisabled: true,
		GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) { return r.tickets.For(hello, own) },
	}
}

// check makes a handshake that must succeed, resuming or in full.
func (r *resumption) check(t *testing.T, when string, resumed bool) (c, s identitytest.Result) {
	t.Helper()
	c, s = r.handshake(t)
	switch {
	case c.Err != nil || s.Err != nil:
		t.Fatalf("%s: client %v, server %v", when, c.Err, s.Err)
	case c.State.DidResume != resumed || s.State.DidResume != resumed:
		t.Fatalf("%s: client resumed %t, server %t, want %t", when, c.State.DidResume, s.State.DidResume, resumed)
	case s.Session.Peer != client || c.Session.Peer != server || s.Session.Local != server:
		t.Fatalf("%s: client %+v, server %+v", when, c.Session, s.Session)
	}
	return c, s
}

// bothVersions runs a test with TLS 1.3 and with 1.2, which Envoys speak as clients.
func bothVersions(t *testing.T, test func(*testing.T, *resumption)) {
	for _, version := range []uint16{tls.VersionTLS13, tls.VersionTLS12} {
		t.Run(tls.VersionName(version), func(t *testing.T) { test(t, newResumption(t, version)) })
	}
}

// TestResume: what may change between two handshakes, and whether the second
// resumes then.
func TestResume(t *testing.T) {
	expiring := func(c *x509.Certificate) { c.NotAfter = identitytest.Epoch.Add(10 * time.Minute) }
	for _, tt := range []struct {
		name    string
		before  func(*testing.T, *resumption) // the first handshake
		change  func(*testing.T, *resumption)
		resumes bool
		refused error // by the server
	}{
		{name: "nothing", resumes: true},
		{name: "time", change: func(_ *testing.T, r *resumption) { r.clock.Advance(59 * time.Minute) }, resumes: true},
		{name: "an hour", change: func(_ *testing.T, r *resumption) { r.clock.Advance(time.Hour) }},
		{name: "clock set back", change: func(_ *testing.T, r *resumption) { r.clock.Advance(-time.Minute) }},
		{name: "leaf of client", change: func(t *testing.T, r *resumption) {
			r.client.Leaves[client] = r.root.Leaf(t, clientID, nil)
		}},
		{name: "leaf of server", change: func(t *testing.T, r *resumption) {
			r.server.Leaves[server] = r.root.Leaf(t, serverID, nil)
		}},
		{name: "bundle of client", change: func(_ *testing.T, r *resumption) { r.client.Roots = r.more() }},
		{name: "bundle of server", change: func(_ *testing.T, r *resumption) { r.server.Roots = r.more() }},
		{name: "the same roots read again", change: func(_ *testing.T, r *resumption) {
			r.client.Roots, r.server.Roots = r.same(), r.same()
		}, resumes: true},
		{name: "root of client gone", change: func(_ *testing.T, r *resumption) {
			r.server.Roots = identitytest.Bundle(map[string][]*identitytest.Authority{"mesh.test": {r.farRoot}})
		}, refused: identity.ErrUntrusted},
		{name: "client's leaf expired", before: func(t *testing.T, r *resumption) {
			r.client.Leaves[client] = r.root.Leaf(t, clientID, expiring)
		}, change: func(_ *testing.T, r *resumption) { r.clock.Advance(11 * time.Minute) }, refused: identity.ErrExpired},
		{name: "server's leaf expires", before: func(t *testing.T, r *resumption) {
			r.server.Leaves[server] = r.root.Leaf(t, serverID, expiring)
		}, change: func(t *testing.T, r *resumption) {
			r.clock.Advance(11 * time.Minute)
			r.server.Leaves[server] = r.root.Leaf(t, serverID, nil)
		}},
		{name: "identity not here any more", change: func(_ *testing.T, r *resumption) {
			r.names = identity.NewNames([]spiffeid.ID{other}, spiffeid.ID{})
		}, refused: identity.ErrUnknownServerName},
		{name: "server's process", change: func(_ *testing.T, r *resumption) { r.tickets = identity.NewTickets(r.server, r.opts) }},
		{name: "forgotten", change: func(_ *testing.T, r *resumption) { r.sessions.Forget("key") }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bothVersions(t, func(t *testing.T, r *resumption) {
				if tt.before != nil {
					tt.before(t, r)
				}
				r.check(t, "first", false)
				if tt.change != nil {
					tt.change(t, r)
				}
				if tt.refused != nil {
					c, s := r.handshake(t)
					if c.Err == nil || !errors.Is(s.Err, tt.refused) || s.State.DidResume {
						t.Errorf("client %v, server %v, want %v", c.Err, s.Err, tt.refused)
					}
					return
				}
				c, s := r.check(t, "second", tt.resumes)
				if tt.resumes && (!slices.EqualFunc(s.State.PeerCertificates, []*x509.Certificate{r.client.Leaves[client].Leaf}, (*x509.Certificate).Equal) ||
					!c.State.PeerCertificates[0].Equal(r.server.Leaves[server].Leaf)) {
					t.Error("not the chains of the first handshake")
				}
			})
		})
	}
}

// more is a bundle with one root more.
func (r *resumption) more() *identity.Bundle {
	return identitytest.Bundle(map[string][]*identitytest.Authority{"mesh.test": {r.root, r.farRoot}})
}

func (r *resumption) same() *identity.Bundle {
	return identitytest.Bundle(map[string][]*identitytest.Authority{"mesh.test": {r.root}})
}

// TestSessionsEnd: no number of resumptions makes a session live longer than an
// hour, and the full handshake after that has all key exchanges.
func TestSessionsEnd(t *testing.T) {
	r := newResumption(t, tls.VersionTLS13)
	c, _ := r.check(t, "first", false)
	if c.State.CurveID != tls.X25519MLKEM768 {
		t.Errorf("key exchange %v", c.State.CurveID)
	}
	for range 5 {
		r.clock.Advance(11 * time.Minute)
		if c, _ = r.check(t, "within the hour", true); c.State.CurveID != tls.X25519 {
			t.Errorf("resumed with key exchange %v", c.State.CurveID)
		}
	}
	r.clock.Advance(5 * time.Minute)
	if c, _ = r.check(t, "after an hour", false); c.State.CurveID != tls.X25519MLKEM768 {
		t.Errorf("key exchange %v", c.State.CurveID)
	}
	r.check(t, "from then on", true)
}

// TestDeclinedSession: a server that declines gets one handshake without
// X25519MLKEM768, of which no session is kept.
func TestDeclinedSession(t *testing.T) {
	r := newResumption(t, tls.VersionTLS13)
	r.check(t, "first", false)
	r.server.Leaves[server] = r.root.Leaf(t, serverID, nil)
	r.check(t, "declined", false)
	if c, _ := r.check(t, "next", false); c.State.CurveID != tls.X25519MLKEM768 {
		t.Errorf("key exchange %v", c.State.CurveID)
	}
	r.check(t, "from then on", true)
}

// TestTicketOfAnotherIdentity: a session with one workload of a node opens no
// other one there, whatever the client asks for.
func TestTicketOfAnotherIdentity(t *testing.T) {
	bothVersions(t, func(t *testing.T, r *resumption) {
		kept := &oneSession{}
		r.edit = func(c *tls.Config) { c.ClientSessionCache = kept }
		r.check(t, "first", false)
		r.serverName, r.accepted = identity.ServerName(other), []spiffeid.ID{other}
		c, s := r.handshake(t)
		if c.Err != nil || s.Err != nil || c.State.DidResume || s.Session.Local != other || c.Session.Peer != other {
			t.Errorf("client %+v, server %+v", c, s)
		}
	})
}

// TestResumedIsVerified: VerifyConnection runs in resumed handshakes, on either
// side, and what it refuses is refused.
func TestResumedIsVerified(t *testing.T) {
	bothVersions(t, func(t *testing.T, r *resumption) {
		kept := &oneSession{}
		r.edit = func(c *tls.Config) { c.ClientSessionCache = kept }
		r.check(t, "first", false)
		r.accepted = []spiffeid.ID{other}
		if c, _ := r.handshake(t); !errors.Is(c.Err, identity.ErrIdentityMismatch) {
			t.Errorf("client %v, want %v", c.Err, identity.ErrIdentityMismatch)
		}
		r.accepted = []spiffeid.ID{server}
		own := identity.ServerConfig(r.server, r.names, r.opts)
		refuse := errors.New("refused")
		own.VerifyConnection = func(state tls.ConnectionState) error {
			if !state.DidResume || len(state.PeerCertificates) == 0 {
				t.Errorf("resumed %t, chain of %d", state.DidResume, len(state.PeerCertificates))
			}
			return refuse
		}
		cc := identity.ClientConfig(r.client, client, r.accepted, r.serverName, r.opts)
		cc.SessionTicketsDisabled, cc.ClientSessionCache, cc.MaxVersion = false, kept, r.version
		_, s := identitytest.Handshake(t, cc, &tls.Config{
			MinVersion:         tls.VersionTLS12,
			GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) { return r.tickets.For(hello, own) },
		})
		if !errors.Is(s.Err, refuse) {
			t.Errorf("server %v, want %v", s.Err, refuse)
		}
	})
}

// TestSessionsOfStrangers: a server that doesn't promise to authorize resumed
// connections gets none.
func TestSessionsOfStrangers(t *testing.T) {
	bothVersions(t, func(t *testing.T, r *resumption) {
		sc := identity.ServerConfig(r.server, r.names, r.opts)
		sc.SessionTicketsDisabled = false
		for range 3 {
			cc, err := r.sessions.Config(t.Context(), "key", client, r.accepted, r.serverName)
			if err != nil {
				t.Fatal(err)
			}
			cc.MaxVersion = r.version
			if c, s := identitytest.Handshake(t, cc, sc); c.Err != nil || s.Err != nil || c.State.DidResume {
				t.Fatalf("client %v, server %v, resumed %t", c.Err, s.Err, c.State.DidResume)
			}
		}
	})
}

// TestForeignTickets: what is no ticket of this process makes a full handshake.
func TestForeignTickets(t *testing.T) {
	bothVersions(t, func(t *testing.T, r *resumption) {
		for _, damage := range []func([]byte) []byte{
			func(b []byte) []byte { return b[:len(b)-1] },
			func(b []byte) []byte { b[len(b)/2] ^= 1; return b },
			func(b []byte) []byte { return b[:20] },
			func(b []byte) []byte { return append([]byte("x"), b...) },
		} {
			r.sessions.Forget("key")
			kept := &oneSession{}
			r.edit = func(c *tls.Config) { c.ClientSessionCache = kept }
			r.check(t, "first", false)
			ticket, state, err := kept.session.ResumptionState()
			if err != nil {
				t.Fatal(err)
			}
			if kept.session, err = tls.NewResumptionState(damage(slices.Clone(ticket)), state); err != nil {
				t.Fatal(err)
			}
			r.check(t, "damaged", false)
		}
	})
}

// TestSessionsInParallel: connections to one server share what they have, while
// leaves change.
func TestSessionsInParallel(t *testing.T) {
	p := newPair(t)
	p.opts.Protocols = []string{}
	var mu sync.Mutex
	leaf := p.root.Leaf(t, clientID, nil)
	changing := &identitytest.Provider{Roots: p.client.Roots}
	clientLeaves := providerFunc{changing, func() *tls.Certificate {
		mu.Lock()
		defer mu.Unlock()
		return leaf
	}}
	r := &resumption{
		pair: p, sessions: identity.NewSessions[string](clientLeaves, p.opts),
		tickets: identity.NewTickets(p.server, p.opts), version: tls.VersionTLS13,
	}
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			for range 20 {
				if i == 0 {
					renewed := p.root.Leaf(t, clientID, nil)
					mu.Lock()
					leaf = renewed
					mu.Unlock()
				}
				cc, err := r.sessions.Config(t.Context(), "key", client, r.accepted, r.serverName)
				if err != nil {
					t.Error(err)
					return
				}
				shown := cc.Certificates[0].Leaf
				c, s := identitytest.Handshake(t, cc, r.serverConfig())
				if c.Err != nil || s.Err != nil {
					t.Errorf("client %v, server %v", c.Err, s.Err)
					return
				}
				if !s.State.PeerCertificates[0].Equal(shown) {
					t.Error("the session of another leaf was resumed")
				}
			}
		})
	}
	all.Wait()
}

// providerFunc has one leaf, which changes.
type providerFunc struct {
	*identitytest.Provider
	leaf func() *tls.Certificate
}

func (p providerFunc) Leaf(context.Context, spiffeid.ID) (*tls.Certificate, error) {
	return p.leaf(), nil
}

// oneSession is a cache that keeps whatever comes.
type oneSession struct{ session *tls.ClientSessionState }

func (o *oneSession) Get(string) (*tls.ClientSessionState, bool) { return o.session, o.session != nil }

func (o *oneSession) Put(_ string, s *tls.ClientSessionState) {
	if s != nil {
		o.session = s
	}
}

// TestProofs: a chain that was verified before is as good as it was, not better.
func TestProofs(t *testing.T) {
	p := newPair(t)
	sub := p.root.Intermediate(t, "mesh.test")
	leaf := sub.Leaf(t, clientID, func(c *x509.Certificate) { c.NotAfter = identitytest.Epoch.Add(time.Hour) }, sub.Cert)
	chain := []*x509.Certificate{leaf.Leaf, sub.Cert}
	bundle, without := p.client.Roots, identitytest.Bundle(map[string][]*identitytest.Authority{"mesh.test": {p.farRoot}})
	now := identitytest.Epoch
	for range 2 {
		for _, tt := range []struct {
			name   string
			chain  []*x509.Certificate
			bundle *identity.Bundle
			at     time.Time
			want   error
		}{
			{"good", chain, bundle, now, nil},
			{"expired", chain, bundle, now.Add(2 * time.Hour), identity.ErrExpired},
			{"not yet valid", chain, bundle, now.Add(-365 * 24 * time.Hour), identity.ErrNotYetValid},
			{"good again", chain, bundle, now.Add(time.Minute), nil},
			{"without the intermediate", chain[:1], bundle, now, identity.ErrUntrusted},
			{"in another order", []*x509.Certificate{sub.Cert, leaf.Leaf}, bundle, now, identity.ErrUntrusted},
			{"other roots", chain, without, now, identity.ErrUntrusted},
		} {
			id, err := identity.Verify(tt.chain, tt.bundle, tt.at)
			if !errors.Is(err, tt.want) || err == nil && id != client {
				t.Errorf("%s: %v, %v, want %v", tt.name, id, err, tt.want)
			}
		}
	}
}
