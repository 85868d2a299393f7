// SPDX-License-Identifier: Apache-2.0

// Package credentials gives foreign peers a leaf of a mesh's embedded CA, as
// files or for crypto/tls. What the peers verify with it is up to them and not
// the product's code.
package credentials

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/meshproxy/meshproxy/nodeproxy/identity/embedded"
)

// Credentials are a leaf and the roots of its mesh.
type Credentials struct {
	ID    spiffeid.ID
	Leaf  tls.Certificate
	Roots []*x509.Certificate
}

// Issue makes a leaf with the CA in dir.
func Issue(ctx context.Context, dir, id string) (*Credentials, error) {
	c := &Credentials{}
	var err error
	if c.ID, err = spiffeid.FromString(id); err != nil {
		return nil, fmt.Errorf("parse identity: %w", err)
	}
	p, err := embedded.Open(embedded.Options{Dir: dir})
	if err != nil {
		return nil, fmt.Errorf("open CA: %w", err)
	}
	leaf, err := p.Leaf(ctx, c.ID)
	if err != nil {
		return nil, fmt.Errorf("issue leaf: %w", err)
	}
	bundle, err := p.Bundle().GetX509BundleForTrustDomain(c.ID.TrustDomain())
	if err != nil {
		return nil, fmt.Errorf("get roots: %w", err)
	}
	c.Leaf, c.Roots = *leaf, bundle.X509Authorities()
	return c, nil
}

// Files are the credentials as PEM.
type Files struct{ Cert, Key, Roots string }

// Write writes the files into dir, which is made.
func (c *Credentials) Write(dir string) (Files, error) {
	f := Files{
		Cert:  filepath.Join(dir, "cert.pem"),
		Key:   filepath.Join(dir, "key.pem"),
		Roots: filepath.Join(dir, "roots.pem"),
	}
	key, err := x509.MarshalPKCS8PrivateKey(c.Leaf.PrivateKey)
	if err != nil {
		return f, fmt.Errorf("encode key: %w", err)
	}
	var chain, roots []byte
	for _, der := range c.Leaf.Certificate {
		chain = append(chain, encode("CERTIFICATE", der)...)
	}
	for _, root := range c.Roots {
		roots = append(roots, encode("CERTIFICATE", root.Raw)...)
	}
	err = errors.Join(
		os.MkdirAll(dir, 0o755),
		os.WriteFile(f.Cert, chain, 0o644),
		os.WriteFile(f.Key, encode("PRIVATE KEY", key), 0o600),
		os.WriteFile(f.Roots, roots, 0o644),
	)
	if err != nil {
		return f, fmt.Errorf("write credentials: %w", err)
	}
	return f, nil
}

func encode(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

// Client is a configuration that accepts the identity server only. An empty
// name sends no SNI, as ztunnel's client does.
func (c *Credentials) Client(name, server string) *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS13,
		ServerName:         name,
		NextProtos:         []string{"h2"},
		Certificates:       []tls.Certificate{c.Leaf},
		InsecureSkipVerify: true, // names of hosts don't matter: see VerifyConnection
		VerifyConnection:   c.verify(x509.ExtKeyUsageServerAuth, server),
	}
}

// Server is a configuration that demands one of the identities of its clients;
// any of the mesh if there are none.
func (c *Credentials) Server(clients ...string) *tls.Config {
	return &tls.Config{
		MinVersion:       tls.VersionTLS13,
		NextProtos:       []string{"h2"},
		Certificates:     []tls.Certificate{c.Leaf},
		ClientAuth:       tls.RequireAnyClientCert,
		VerifyConnection: c.verify(x509.ExtKeyUsageClientAuth, clients...),
	}
}

var errIdentity = errors.New("peer has another identity")

func (c *Credentials) verify(usage x509.ExtKeyUsage, ids ...string) func(tls.ConnectionState) error {
	roots := x509.NewCertPool()
	for _, root := range c.Roots {
		roots.AddCert(root)
	}
	return func(s tls.ConnectionState) error {
		leaf, others := s.PeerCertificates[0], x509.NewCertPool()
		for _, cert := range s.PeerCertificates[1:] {
			others.AddCert(cert)
		}
		_, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: others, KeyUsages: []x509.ExtKeyUsage{usage}})
		if err != nil {
			return err
		}
		if len(ids) > 0 && (len(leaf.URIs) != 1 || !slices.Contains(ids, leaf.URIs[0].String())) {
			return fmt.Errorf("%w: %v, want %v", errIdentity, leaf.URIs, ids)
		}
		return nil
	}
}
