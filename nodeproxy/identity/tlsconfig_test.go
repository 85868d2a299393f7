// SPDX-License-Identifier: Apache-2.0

package identity_test

import (
	"crypto/tls"
	"errors"
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/meshproxy/meshproxy/nodeproxy/identity"
	"github.com/meshproxy/meshproxy/nodeproxy/identity/internal/identitytest"
)

func TestServerName(t *testing.T) {
	if got, want := identity.ServerName(server), "395494e972cf1ad54b979d8351cc846c.mesh.test"; got != want {
		t.Errorf("ServerName %q, want %q: nodes of other versions know the old one", got, want)
	}
	only := []spiffeid.ID{server}
	both := []spiffeid.ID{server, other}
	for _, tt := range []struct {
		name       string
		serverName string
		names      *identity.Names
		want       spiffeid.ID // zero: refused
		err        error
	}{
		{"chooses", identity.ServerName(other), identity.NewNames(both, spiffeid.ID{}), other, nil},
		{"in capitals", strings.ToUpper(identity.ServerName(other)), identity.NewNames(both, spiffeid.ID{}), other, nil},
		{"unknown", identity.ServerName(far), identity.NewNames(both, server), spiffeid.ID{}, identity.ErrUnknownServerName},
		{"none, one identity", "", identity.NewNames(only, spiffeid.ID{}), server, nil},
		{"none, default", "", identity.NewNames(both, other), other, nil},
		{"none, several", "", identity.NewNames(both, spiffeid.ID{}), spiffeid.ID{}, identity.ErrNoServerName},
		{"none, nobody here", "", identity.NewNames(nil, spiffeid.ID{}), spiffeid.ID{}, identity.ErrNoServerName},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := newPair(t)
			p.names, p.serverName, p.accepted = tt.names, tt.serverName, both
			c, s := p.handshake(t)
			if tt.err != nil {
				if !errors.Is(s.Err, tt.err) {
					t.Errorf("server error %v, want %v", s.Err, tt.err)
				}
				checkAlert(t, c.Err, "unrecognized name")
				return
			}
			if c.Err != nil || s.Err != nil || s.Session.Local != tt.want || c.Session.Peer != tt.want {
				t.Errorf("client %+v, server %+v, want %v", c, s, tt.want)
			}
		})
	}
}

func TestProtocolErrors(t *testing.T) {
	for _, tt := range []struct {
		name   string
		edit   func(client, server *tls.Config)
		alert  string // that the client sees; empty: the server sees it
		check  func(error) bool
		reason string
	}{
		{
			"client without certificate", func(c, _ *tls.Config) {
				c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
					return &tls.Certificate{}, nil
				}
			}, "certificate required", func(err error) bool { return errors.Is(err, identity.ErrNoCertificate) }, "no_certificate",
		},
		{
			"client of TLS 1.2", func(c, _ *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12 },
			"protocol version not supported", nil, "handshake",
		},
		{
			"client without ALPN", func(c, _ *tls.Config) { c.NextProtos, c.VerifyConnection = nil, nil },
			"bad certificate", func(err error) bool { return errors.Is(err, identity.ErrNoProtocol) }, "no_protocol",
		},
		{
			"client with other ALPN", func(c, _ *tls.Config) { c.NextProtos = []string{"h3"} },
			"no application protocol", nil, "handshake",
		},
		{
			// crypto/tls answers it without ALPN, for old HTTP clients.
			"client of HTTP/1.1", func(c, _ *tls.Config) { c.NextProtos, c.VerifyConnection = []string{"http/1.1"}, nil },
			"bad certificate", func(err error) bool { return errors.Is(err, identity.ErrNoProtocol) }, "no_protocol",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := newPair(t)
			cc, sc := p.configs()
			tt.edit(cc, sc)
			c, s := identitytest.Handshake(t, cc, sc)
			checkAlert(t, c.Err, tt.alert)
			if s.Err == nil || tt.check != nil && !tt.check(s.Err) {
				t.Errorf("server error %v", s.Err)
			}
			if got := identity.Reason(s.Err); got != tt.reason {
				t.Errorf("reason %q, want %q", got, tt.reason)
			}
		})
	}
}

func TestServerWithoutALPNIsRefused(t *testing.T) {
	p := newPair(t)
	cc, sc := p.configs()
	sc.NextProtos, sc.VerifyConnection = nil, nil
	c, _ := identitytest.Handshake(t, cc, sc)
	if !errors.Is(c.Err, identity.ErrNoProtocol) {
		t.Errorf("client error %v, want %v", c.Err, identity.ErrNoProtocol)
	}
}

func TestServerOfTLS12IsRefused(t *testing.T) {
	p := newPair(t)
	cc, sc := p.configs()
	sc.MinVersion, sc.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	c, s := identitytest.Handshake(t, cc, sc)
	if c.Err == nil || s.Err == nil {
		t.Errorf("client %v, server %v, want errors", c.Err, s.Err)
	}
}

func TestNoLeaf(t *testing.T) {
	p := newPair(t)
	delete(p.server.Leaves, server)
	_, s := p.handshake(t)
	if !errors.Is(s.Err, identity.ErrNoLeaf) || identity.Reason(s.Err) != "no_leaf" {
		t.Errorf("server error %v", s.Err)
	}

	p = newPair(t)
	delete(p.client.Leaves, client)
	c, _ := p.handshake(t)
	if !errors.Is(c.Err, identity.ErrNoLeaf) {
		t.Errorf("client error %v", c.Err)
	}
}

// TestOptionsForConsul: the port for Consul sidecars accepts TLS 1.2 and
// clients without ALPN.
func TestOptionsForConsul(t *testing.T) {
	p := newPair(t)
	p.opts.MinVersion, p.opts.Protocols = tls.VersionTLS12, []string{}
	cc, sc := p.configs()
	cc.MaxVersion = tls.VersionTLS12
	c, s := identitytest.Handshake(t, cc, sc)
	if c.Err != nil || s.Err != nil || c.State.Version != tls.VersionTLS12 || s.Session.Peer != client {
		t.Errorf("client %+v, server %+v", c, s)
	}
	p.server.Leaves[server] = p.root.Leaf(t, otherID, nil)
	if c, _ := identitytest.Handshake(t, cc, sc); !errors.Is(c.Err, identity.ErrIdentityMismatch) {
		t.Errorf("TLS 1.2: client error %v, want %v", c.Err, identity.ErrIdentityMismatch)
	}
}
