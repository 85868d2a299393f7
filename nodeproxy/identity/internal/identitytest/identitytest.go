// SPDX-License-Identifier: Apache-2.0

// Package identitytest makes the certificates that tests of identities need,
// the bad ones above all, and a clock that tests move.
package identitytest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"net"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/meshproxy/meshproxy/nodeproxy/identity"
)

// Epoch is when the clocks start and what templates are valid around.
var Epoch = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// Clock is a clock that stands still but for Advance.
type Clock struct {
	mu     sync.Mutex
	now    time.Time
	timers []timer
}

type timer struct {
	at time.Time
	ch chan time.Time
}

// NewClock makes a clock that shows Epoch.
func NewClock() *Clock { return &Clock{now: Epoch} }

// Now returns the time of the clock.
func (c *Clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

// After fires when Advance has gone far enough.
func (c *Clock) After(d time.Duration) <-chan time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	ch := make(chan time.Time, 1)
	if d <= 0 {
		ch <- c.now
		return ch
	}
	c.timers = append(c.timers, timer{c.now.Add(d), ch})
	return ch
}

// Advance moves the clock.
func (c *Clock) Advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
	var left []timer
	for _, t := range c.timers {
		if t.at.After(c.now) {
			left = append(left, t)
		} else {
			t.ch <- c.now
		}
	}
	c.timers = left
}

// Authority signs whatever a test wants.
type Authority struct {
	Cert *x509.Certificate
	Key  *ecdsa.PrivateKey
}

// NewRoot makes a self-signed CA of the trust domain.
func NewRoot(t testing.TB, trustDomain string) *Authority {
	t.Helper()
	key := newKey(t)
	template := caTemplate(trustDomain)
	return &Authority{Cert: create(t, template, template, key, key), Key: key}
}

// Intermediate makes a CA below a.
func (a *Authority) Intermediate(t testing.TB, trustDomain string) *Authority {
	t.Helper()
	key := newKey(t)
	return &Authority{Cert: create(t, caTemplate(trustDomain), a.Cert, key, a.Key), Key: key}
}

// Leaf makes a leaf of the identity, valid for a day around Epoch; edit may
// spoil the template. The chain goes on with above, for intermediates.
func (a *Authority) Leaf(t testing.TB, id string, edit func(*x509.Certificate), above ...*x509.Certificate) *tls.Certificate {
	t.Helper()
	template := &x509.Certificate{
		NotBefore:             Epoch.Add(-12 * time.Hour),
		NotAfter:              Epoch.Add(12 * time.Hour),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
		URIs:                  []*url.URL{URL(t, id)},
	}
	if edit != nil {
		edit(template)
	}
	key := newKey(t)
	chain := append([]*x509.Certificate{create(t, template, a.Cert, key, a.Key)}, above...)
	leaf, err := identity.NewLeaf(chain, identity.NewKey(key))
	if err != nil {
		t.Fatal(err)
	}
	return leaf
}

// SelfSigned makes a leaf that vouches for itself.
func SelfSigned(t testing.TB, id string) *tls.Certificate {
	t.Helper()
	key := newKey(t)
	template := &x509.Certificate{
		NotBefore: Epoch.Add(-time.Hour),
		NotAfter:  Epoch.Add(time.Hour),
		KeyUsage:  x509.KeyUsageDigitalSignature,
		URIs:      []*url.URL{URL(t, id)},
	}
	leaf, err := identity.NewLeaf([]*x509.Certificate{create(t, template, template, key, key)}, identity.NewKey(key))
	if err != nil {
		t.Fatal(err)
	}
	return leaf
}

// URL parses a URI.
func URL(t testing.TB, s string) *url.URL {
	t.Helper()
	u, err := url.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func caTemplate(trustDomain string) *x509.Certificate {
	return &x509.Certificate{
		Subject:               pkix.Name{CommonName: "CA " + trustDomain},
		NotBefore:             Epoch.Add(-1000 * time.Hour),
		NotAfter:              Epoch.Add(1000 * time.Hour),
		KeyUsage:              x509.KeyUsageCertSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		URIs:                  []*url.URL{{Scheme: "spiffe", Host: trustDomain}},
	}
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func create(t testing.TB, template, parent *x509.Certificate, key, signer *ecdsa.PrivateKey) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// PEM encodes a chain.
func PEM(certs ...*x509.Certificate) []byte {
	var out []byte
	for _, c := range certs {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return out
}

// Provider serves fixed leaves and roots.
type Provider struct {
	identity.Notifier
	Leaves map[spiffeid.ID]*tls.Certificate
	Roots  *identity.Bundle
}

// Leaf returns the fixed leaf.
func (p *Provider) Leaf(_ context.Context, id spiffeid.ID) (*tls.Certificate, error) {
	if leaf, ok := p.Leaves[id]; ok {
		return leaf, nil
	}
	return nil, identity.ErrNoLeaf
}

// Bundle returns the fixed roots.
func (p *Provider) Bundle() *identity.Bundle { return p.Roots }

// Bundle makes a bundle of authorities.
func Bundle(roots map[string][]*Authority) *identity.Bundle {
	certs := make(map[spiffeid.TrustDomain][]*x509.Certificate)
	for td, as := range roots {
		for _, a := range as {
			name := spiffeid.RequireTrustDomainFromString(td)
			certs[name] = append(certs[name], a.Cert)
		}
	}
	return identity.NewBundle(certs)
}

// Result is how a handshake ended on one side.
type Result struct {
	Session identity.Session
	State   tls.ConnectionState
	Err     error
}

// Handshake joins a client and a server over loopback TCP, so that either side
// may send an alert that nobody waits for, and reads once on the client: TLS
// 1.3 reports a server's refusal of the client's certificate only there.
func Handshake(t testing.TB, client, server *tls.Config) (c, s Result) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	done := make(chan Result, 1)
	go func() { done <- accept(ctx, listener, server) }()

	raw, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	conn := tls.Client(raw, client)
	c.Session, c.Err = identity.Handshake(ctx, conn)
	c.State = conn.ConnectionState()
	if c.Err == nil {
		_ = conn.SetReadDeadline(time.Now().Add(time.Minute))
		_, c.Err = conn.Read(make([]byte, 1))
	}
	raw.Close()
	return c, <-done
}

func accept(ctx context.Context, l net.Listener, config *tls.Config) (r Result) {
	raw, err := l.Accept()
	if err != nil {
		return Result{Err: err}
	}
	defer raw.Close()
	conn := tls.Server(raw, config)
	r.Session, r.Err = identity.Handshake(ctx, conn)
	r.State = conn.ConnectionState()
	if r.Err == nil {
		_, r.Err = conn.Write([]byte{1})
	}
	return r
}
