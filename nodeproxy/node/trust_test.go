// SPDX-License-Identifier: Apache-2.0

package node

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"math/big"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/meshproxy/meshproxy/nodeproxy/identity"
)

func root(t *testing.T) *x509.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), IsCA: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestWithdrawnRoots(t *testing.T) {
	td := spiffeid.RequireTrustDomainFromString("mesh.internal")
	other := spiffeid.RequireTrustDomainFromString("other.internal")
	a, b, c := root(t), root(t), root(t)
	bundle := func(roots ...*x509.Certificate) *identity.Bundle {
		return identity.NewBundle(map[spiffeid.TrustDomain][]*x509.Certificate{td: roots})
	}
	for _, tc := range []struct {
		name        string
		before, now *identity.Bundle
		want        int
	}{
		{"the same", bundle(a, b), bundle(b, a), 0},
		{"one more", bundle(a), bundle(a, b), 0},
		{"one less", bundle(a, b), bundle(b), 1},
		{"replaced", bundle(a), bundle(c), 1},
		{"a trust domain less", identity.NewBundle(map[spiffeid.TrustDomain][]*x509.Certificate{td: {a}, other: {b, c}}), bundle(a), 2},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := withdrawnRoots(tc.before, tc.now); got != tc.want {
				t.Errorf("%d roots were withdrawn, want %d", got, tc.want)
			}
		})
	}
}
