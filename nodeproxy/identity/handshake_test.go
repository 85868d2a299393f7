// SPDX-License-Identifier: Apache-2.0

package identity_test

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/meshproxy/meshproxy/nodeproxy/identity"
	"github.com/meshproxy/meshproxy/nodeproxy/identity/internal/identitytest"
)

const (
	clientID = "spiffe://mesh.test/ns/default/sa/curl"
	serverID = "spiffe://mesh.test/ns/default/sa/web"
	otherID  = "spiffe://mesh.test/ns/default/sa/db"
	farID    = "spiffe://far.test/ns/default/sa/web"
)

var (
	client = spiffeid.RequireFromString(clientID)
	server = spiffeid.RequireFromString(serverID)
	other  = spiffeid.RequireFromString(otherID)
	far    = spiffeid.RequireFromString(farID)
)

// pair is two providers that a test spoils before the handshake.
type pair struct {
	clock          *identitytest.Clock
	root, farRoot  *identitytest.Authority
	client, server *identitytest.Provider
	names          *identity.Names
	accepted       []spiffeid.ID
	serverName     string
	opts           identity.Options
}

func newPair(t testing.TB) *pair {
	t.Helper()
	p := &pair{
		clock:      identitytest.NewClock(),
		root:       identitytest.NewRoot(t, "mesh.test"),
		farRoot:    identitytest.NewRoot(t, "far.test"),
		names:      identity.NewNames([]spiffeid.ID{server, other}, spiffeid.ID{}),
		accepted:   []spiffeid.ID{server},
		serverName: identity.ServerName(server),
	}
	bundle := identitytest.Bundle(map[string][]*identitytest.Authority{"mesh.test": {p.root}})
	p.client = &identitytest.Provider{Roots: bundle, Leaves: map[spiffeid.ID]*tls.Certificate{
		client: p.root.Leaf(t, clientID, nil),
	}}
	p.server = &identitytest.Provider{Roots: bundle, Leaves: map[spiffeid.ID]*tls.Certificate{
		server: p.root.Leaf(t, serverID, nil),
		other:  p.root.Leaf(t, otherID, nil),
	}}
	p.opts.Now = p.clock.Now
	return p
}

func (p *pair) configs() (clientConfig, serverConfig *tls.Config) {
	return identity.ClientConfig(p.client, client, p.accepted, p.serverName, p.opts),
		identity.ServerConfig(p.server, p.names, p.opts)
}

func (p *pair) handshake(t *testing.T) (c, s identitytest.Result) {
	t.Helper()
	cc, sc := p.configs()
	return identitytest.Handshake(t, cc, sc)
}

func TestHandshake(t *testing.T) {
	p := newPair(t)
	c, s := p.handshake(t)
	if c.Err != nil || s.Err != nil {
		t.Fatalf("client %v, server %v", c.Err, s.Err)
	}
	expires := identitytest.Epoch.Add(12 * time.Hour)
	if want := (identity.Session{Local: client, Peer: server, PeerExpires: expires}); c.Session != want {
		t.Errorf("client session %+v, want %+v", c.Session, want)
	}
	if want := (identity.Session{Local: server, Peer: client, PeerExpires: expires}); s.Session != want {
		t.Errorf("server session %+v, want %+v", s.Session, want)
	}
	if c.State.Version != tls.VersionTLS13 || c.State.CurveID != tls.X25519MLKEM768 || c.State.NegotiatedProtocol != "h2" {
		t.Errorf("TLS %#x, %v, ALPN %q", c.State.Version, c.State.CurveID, c.State.NegotiatedProtocol)
	}
}

func TestNoResumption(t *testing.T) {
	p := newPair(t)
	cc, sc := p.configs()
	cc.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	for range 2 {
		c, s := identitytest.Handshake(t, cc, sc)
		if c.Err != nil || s.Err != nil || c.State.DidResume {
			t.Fatalf("client %v, server %v, resumed %v", c.Err, s.Err, c.State.DidResume)
		}
	}
}

// badCertificates are certificates that neither side accepts. The identity is
// that of the side that shows them.
var badCertificates = []struct {
	name   string
	leaf   func(t *testing.T, p *pair, id string) *tls.Certificate
	kind   error
	reason string
}{
	{"expired", edited(func(c *x509.Certificate) { c.NotAfter = identitytest.Epoch.Add(-time.Second) }), identity.ErrExpired, "expired"},
	{"not yet valid", edited(func(c *x509.Certificate) { c.NotBefore = identitytest.Epoch.Add(time.Minute) }), identity.ErrNotYetValid, "not_yet_valid"},
	{"two URI SANs", edited(func(c *x509.Certificate) { c.URIs = append(c.URIs, c.URIs[0]) }), identity.ErrUntrusted, "untrusted"},
	{"no SAN", edited(func(c *x509.Certificate) { c.URIs = nil }), identity.ErrUntrusted, "untrusted"},
	{"DNS SAN only", edited(func(c *x509.Certificate) {
		c.URIs, c.DNSNames = nil, []string{"web.mesh.test"}
	}), identity.ErrUntrusted, "untrusted"},
	{"URI that is no SPIFFE ID", edited(func(c *x509.Certificate) {
		c.URIs = []*url.URL{{Scheme: "https", Host: "mesh.test", Path: "/ns/default/sa/web"}}
	}), identity.ErrUntrusted, "untrusted"},
	{"identity without path", edited(func(c *x509.Certificate) {
		c.URIs = []*url.URL{{Scheme: "spiffe", Host: "mesh.test"}}
	}), identity.ErrUntrusted, "untrusted"},
	{"CA as leaf", edited(func(c *x509.Certificate) { c.IsCA = true }), identity.ErrUntrusted, "untrusted"},
	{"leaf that may sign certificates", edited(func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCertSign }), identity.ErrUntrusted, "untrusted"},
	{"too large", edited(func(c *x509.Certificate) {
		c.DNSNames = []string{strings.Repeat(strings.Repeat("a", 60)+".", 300) + "test"}
	}), identity.ErrUntrusted, "untrusted"},
	{"self-signed", func(t *testing.T, _ *pair, id string) *tls.Certificate {
		return identitytest.SelfSigned(t, id)
	}, identity.ErrUntrusted, "untrusted"},
	{"root unknown", func(t *testing.T, _ *pair, id string) *tls.Certificate {
		return identitytest.NewRoot(t, "mesh.test").Leaf(t, id, nil)
	}, identity.ErrUntrusted, "untrusted"},
	{"trust domain unknown", func(t *testing.T, p *pair, _ string) *tls.Certificate {
		return p.farRoot.Leaf(t, farID, nil)
	}, identity.ErrUntrusted, "untrusted"},
	{"foreign identity from our root", func(t *testing.T, p *pair, _ string) *tls.Certificate {
		p.trust("far.test", p.farRoot)
		return p.root.Leaf(t, farID, nil)
	}, identity.ErrUntrusted, "untrusted"},
	{"our identity from a foreign root", func(t *testing.T, p *pair, id string) *tls.Certificate {
		p.trust("far.test", p.farRoot)
		return p.farRoot.Leaf(t, id, nil)
	}, identity.ErrUntrusted, "untrusted"},
	{"intermediate missing", func(t *testing.T, p *pair, id string) *tls.Certificate {
		return p.root.Intermediate(t, "mesh.test").Leaf(t, id, nil)
	}, identity.ErrUntrusted, "untrusted"},
	{"leaf of a leaf", func(t *testing.T, p *pair, id string) *tls.Certificate {
		key := p.root.Leaf(t, otherID, nil)
		// A leaf posing as intermediate: its key signs, but it is no CA.
		fake := identitytest.NewRoot(t, "mesh.test")
		return fake.Leaf(t, id, nil, key.Leaf)
	}, identity.ErrUntrusted, "untrusted"},
	{"chain too long", func(t *testing.T, p *pair, id string) *tls.Certificate {
		var above []*x509.Certificate
		at := p.root
		for range 4 {
			at = at.Intermediate(t, "mesh.test")
			above = append([]*x509.Certificate{at.Cert}, above...)
		}
		return at.Leaf(t, id, nil, above...)
	}, identity.ErrUntrusted, "untrusted"},
}

func edited(edit func(*x509.Certificate)) func(*testing.T, *pair, string) *tls.Certificate {
	return func(t *testing.T, p *pair, id string) *tls.Certificate { return p.root.Leaf(t, id, edit) }
}

// trust adds a root on both sides.
func (p *pair) trust(trustDomain string, root *identitytest.Authority) {
	b := identitytest.Bundle(map[string][]*identitytest.Authority{"mesh.test": {p.root}, trustDomain: {root}})
	p.client.Roots, p.server.Roots = b, b
}

func checkPeerError(t *testing.T, err, kind error, reason string) {
	t.Helper()
	var pe *identity.PeerError
	if !errors.As(err, &pe) || pe.Kind != kind || !errors.Is(err, kind) {
		t.Errorf("error %v (%T), want kind %v", err, err, kind)
	}
	if got := identity.Reason(err); got != reason {
		t.Errorf("reason %q, want %q", got, reason)
	}
	if err != nil && len(err.Error()) > 600 {
		t.Errorf("error of %d bytes: the peer fills the log", len(err.Error()))
	}
}

func checkAlert(t *testing.T, err error, text string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), text) || identity.Reason(err) != "refused_by_peer" {
		t.Errorf("other side saw %v (%s), want alert %q", err, identity.Reason(err), text)
	}
}

func TestBadServerCertificate(t *testing.T) {
	for _, tt := range badCertificates {
		t.Run(tt.name, func(t *testing.T) {
			p := newPair(t)
			p.server.Leaves[server] = tt.leaf(t, p, serverID)
			c, s := p.handshake(t)
			checkPeerError(t, c.Err, tt.kind, tt.reason)
			checkAlert(t, s.Err, "bad certificate")
		})
	}
}

func TestBadClientCertificate(t *testing.T) {
	for _, tt := range badCertificates {
		t.Run(tt.name, func(t *testing.T) {
			p := newPair(t)
			p.client.Leaves[client] = tt.leaf(t, p, clientID)
			c, s := p.handshake(t)
			checkPeerError(t, s.Err, tt.kind, tt.reason)
			checkAlert(t, c.Err, "bad certificate")
		})
	}
}

func TestGoodCertificates(t *testing.T) {
	for _, tt := range []struct {
		name string
		leaf func(t *testing.T, p *pair) *tls.Certificate
	}{
		{"through an intermediate", func(t *testing.T, p *pair) *tls.Certificate {
			i := p.root.Intermediate(t, "mesh.test")
			return i.Leaf(t, serverID, nil, i.Cert)
		}},
		{"DNS SAN beside the identity", func(t *testing.T, p *pair) *tls.Certificate {
			return p.root.Leaf(t, serverID, func(c *x509.Certificate) { c.DNSNames = []string{"web.mesh.test"} })
		}},
		{"old root beside the new", func(t *testing.T, p *pair) *tls.Certificate {
			old := p.root
			p.root = identitytest.NewRoot(t, "mesh.test")
			b := identitytest.Bundle(map[string][]*identitytest.Authority{"mesh.test": {old, p.root}})
			p.client.Roots, p.server.Roots = b, b
			p.client.Leaves[client] = p.root.Leaf(t, clientID, nil)
			return old.Leaf(t, serverID, nil)
		}},
		{"federated trust domain", func(t *testing.T, p *pair) *tls.Certificate {
			p.trust("far.test", p.farRoot)
			p.accepted = []spiffeid.ID{other, far}
			return p.farRoot.Leaf(t, farID, nil)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := newPair(t)
			p.server.Leaves[server] = tt.leaf(t, p)
			c, s := p.handshake(t)
			if c.Err != nil || s.Err != nil {
				t.Fatalf("client %v, server %v", c.Err, s.Err)
			}
		})
	}
}

func TestIdentityMismatch(t *testing.T) {
	p := newPair(t)
	p.accepted = []spiffeid.ID{other}
	c, s := p.handshake(t)
	checkPeerError(t, c.Err, identity.ErrIdentityMismatch, "identity_mismatch")
	checkAlert(t, s.Err, "bad certificate")
	var pe *identity.PeerError
	if errors.As(c.Err, &pe) && (pe.Got != server || !slices.Equal(pe.Want, p.accepted)) {
		t.Errorf("got %v, want %v", pe.Got, pe.Want)
	}
	if want := "unexpected identity " + serverID + ", want " + otherID; !strings.Contains(c.Err.Error(), want) {
		t.Errorf("error %q, want %q in it", c.Err, want)
	}
}

func TestClockSkewIsNamed(t *testing.T) {
	p := newPair(t)
	p.server.Leaves[server] = p.root.Leaf(t, serverID, func(c *x509.Certificate) {
		c.NotBefore = identitytest.Epoch.Add(90 * time.Second)
	})
	c, _ := p.handshake(t)
	want := serverID + ": certificate not yet valid before 2026-03-01T12:01:30Z, 1m30s from now: clock skew between this node and the CA?"
	if c.Err == nil || !strings.Contains(c.Err.Error(), want) {
		t.Errorf("error %q, want %q in it", c.Err, want)
	}
}
