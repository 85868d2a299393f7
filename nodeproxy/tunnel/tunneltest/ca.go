// SPDX-License-Identifier: Apache-2.0

// Package tunneltest has what tests of tunnels and of what runs in them need:
// a throw-away certificate authority and TLS configurations. It must not be
// imported by anything but tests.
package tunneltest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"net/url"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/meshproxy/meshproxy/nodeproxy/telemetry/reason"
	"github.com/meshproxy/meshproxy/nodeproxy/tunnel"
)

// CA issues leaves for any identity. It is a tunnel.ClientIdentity.
type CA struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	pool *x509.CertPool
	// TTL is the lifetime of new leaves.
	TTL time.Duration

	mu     sync.Mutex
	leaves map[spiffeid.ID]*tls.Certificate
}

// NewCA makes an authority.
func NewCA(t testing.TB) *CA {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: "tunneltest"},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(24 * time.Hour),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	ca := &CA{key: key, cert: cert, pool: x509.NewCertPool(), TTL: time.Hour, leaves: map[spiffeid.ID]*tls.Certificate{}}
	ca.pool.AddCert(cert)
	return ca
}

// ID makes an identity in the namespace "default" of the trust domain "test".
func ID(name string) spiffeid.ID {
	return spiffeid.RequireFromString("spiffe://test/ns/default/sa/" + name)
}

// Leaf returns the leaf of an identity, the same each time.
func (ca *CA) Leaf(id spiffeid.ID) (*tls.Certificate, error) {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	if c := ca.leaves[id]; c != nil {
		return c, nil
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()),
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(ca.TTL),
		URIs:         []*url.URL{id.URL()},
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, &key.PublicKey, ca.key)
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	c := &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
	ca.leaves[id] = c
	return c, nil
}

// ClientConfig implements tunnel.ClientIdentity.
func (ca *CA) ClientConfig(_ context.Context, key *tunnel.Key) (*tls.Config, error) {
	leaf, err := ca.Leaf(key.Source)
	if err != nil {
		return nil, err
	}
	want := key.Destinations.All()
	return &tls.Config{
		MinVersion:         tls.VersionTLS13,
		NextProtos:         []string{"h2"},
		ServerName:         key.ServerName,
		Certificates:       []tls.Certificate{*leaf},
		InsecureSkipVerify: true, // VerifyConnection does it: there are no host names
		VerifyConnection: func(s tls.ConnectionState) error {
			got, err := ca.verify(s.PeerCertificates[0], x509.ExtKeyUsageServerAuth)
			if err != nil {
				return err
			}
			if !slices.Contains(want, got) {
				return reason.Wrap(reason.IdentityMismatch, fmt.Errorf("peer is %s", got))
			}
			return nil
		},
	}, nil
}

// ServerConfig shows the identity that the function names for an SNI.
func (ca *CA) ServerConfig(choose func(serverName string) spiffeid.ID) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{"h2"},
		ClientAuth: tls.RequireAnyClientCert,
		GetCertificate: func(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
			return ca.Leaf(choose(h.ServerName))
		},
		VerifyConnection: func(s tls.ConnectionState) error {
			_, err := ca.verify(s.PeerCertificates[0], x509.ExtKeyUsageClientAuth)
			return err
		},
	}
}

func (ca *CA) verify(leaf *x509.Certificate, usage x509.ExtKeyUsage) (spiffeid.ID, error) {
	_, err := leaf.Verify(x509.VerifyOptions{Roots: ca.pool, KeyUsages: []x509.ExtKeyUsage{usage}})
	if err != nil {
		return spiffeid.ID{}, err
	}
	return spiffeid.FromURI(leaf.URIs[0])
}
