// SPDX-License-Identifier: Apache-2.0

// Package credentials gives foreign peers a leaf of a mesh's embedded CA, as
// files or for crypto/tls. It issues them itself, with the CA's root as any
// other tool could; what the peers verify is up to them and not the product's
// code either.
package credentials

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Credentials are a leaf and the root of its mesh.
type Credentials struct {
	Leaf tls.Certificate
	Root *x509.Certificate
}

// Issue makes a leaf for a SPIFFE ID with the root of the CA in dir.
func Issue(dir, id string) (*Credentials, error) {
	uri, err := url.Parse(id)
	if err != nil {
		return nil, fmt.Errorf("parse identity: %w", err)
	}
	root, signer, err := readRoot(dir)
	if err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("generate key: %w", err)
	}
	now := time.Now()
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		URIs:        []*url.URL{uri},
		NotBefore:   now.Add(-time.Minute),
		NotAfter:    now.Add(time.Hour),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, root, key.Public(), signer)
	if err != nil {
		return nil, fmt.Errorf("sign leaf: %w", err)
	}
	return &Credentials{Leaf: tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, Root: root}, nil
}

var errRoots = errors.New("want one root with its key")

// readRoot reads the only root of a CA.
func readRoot(dir string) (*x509.Certificate, crypto.PrivateKey, error) {
	names, err := filepath.Glob(filepath.Join(dir, "root-*.key"))
	if err != nil || len(names) != 1 {
		return nil, nil, fmt.Errorf("read CA in %s: %w, found %d", dir, errors.Join(err, errRoots), len(names))
	}
	keyDER, err := readPEM(names[0])
	if err != nil {
		return nil, nil, err
	}
	key, err := x509.ParsePKCS8PrivateKey(keyDER)
	if err != nil {
		return nil, nil, fmt.Errorf("parse root's key: %w", err)
	}
	der, err := readPEM(strings.TrimSuffix(names[0], ".key") + ".crt")
	if err != nil {
		return nil, nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, nil, fmt.Errorf("parse root: %w", err)
	}
	return cert, key, nil
}

func readPEM(path string) ([]byte, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read CA: %w", err)
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, fmt.Errorf("read CA: no PEM in %s", path)
	}
	return block.Bytes, nil
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
	err = errors.Join(
		os.MkdirAll(dir, 0o755),
		os.WriteFile(f.Cert, encode("CERTIFICATE", c.Leaf.Certificate[0]), 0o644),
		os.WriteFile(f.Key, encode("PRIVATE KEY", key), 0o600),
		os.WriteFile(f.Roots, encode("CERTIFICATE", c.Root.Raw), 0o644),
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
	roots.AddCert(c.Root)
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
