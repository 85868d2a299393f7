// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// NewLeaf joins a chain, leaf first, with its key. Nothing is left to parse in
// a handshake.
func NewLeaf(chain []*x509.Certificate, key Key) (*tls.Certificate, error) {
	if len(chain) == 0 {
		return nil, errors.New("empty certificate chain")
	}
	if !key.Matches(chain[0]) {
		return nil, errors.New("certificate and key do not belong together")
	}
	leaf := &tls.Certificate{PrivateKey: key, Leaf: chain[0]}
	for _, c := range chain {
		leaf.Certificate = append(leaf.Certificate, c.Raw)
	}
	return leaf, nil
}

// ParseCertificates reads all certificates of a PEM file, and nothing but
// certificates. A damaged block, which pem.Decode skips, is an error: half of a
// bundle is not a bundle.
func ParseCertificates(text []byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	begun := bytes.Count(text, []byte("-----BEGIN "))
	for {
		block, rest := pem.Decode(text)
		if block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			clear(block.Bytes) // it may be a key
			return nil, fmt.Errorf("PEM block is %.40q, want CERTIFICATE", block.Type)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("parse certificate: %w", err)
		}
		certs = append(certs, c)
		text = rest
	}
	switch {
	case begun == 0:
		return nil, errors.New("no certificate in PEM form")
	case begun != len(certs):
		return nil, fmt.Errorf("PEM block damaged or incomplete: %d begun, %d whole", begun, len(certs))
	}
	return certs, nil
}

// ServerName is the SNI that names a workload: one address of a node serves
// many identities. It is a hash since a SPIFFE ID is no host name, may be
// longer than one, and need not be readable on the wire.
func ServerName(id spiffeid.ID) string {
	sum := sha256.Sum256([]byte(id.String()))
	return hex.EncodeToString(sum[:16]) + "." + id.TrustDomain().Name()
}

// Fingerprint is the SHA-256 of a certificate in hexadecimal.
func Fingerprint(c *x509.Certificate) string {
	sum := sha256.Sum256(c.Raw)
	return hex.EncodeToString(sum[:])
}
