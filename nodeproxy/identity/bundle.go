// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"slices"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Bundle is the roots that the node trusts, for each trust domain its own: a
// root of one trust domain vouches for no identity of another. It is
// immutable.
type Bundle struct {
	domains map[spiffeid.TrustDomain]*x509bundle.Bundle
	// sum is the same for bundles of the same roots.
	sum    [sha256.Size]byte
	proofs proofs
}

var _ x509bundle.Source = (*Bundle)(nil)

// NewBundle makes a bundle of roots that CheckRoot has accepted.
func NewBundle(roots map[spiffeid.TrustDomain][]*x509.Certificate) *Bundle {
	b := &Bundle{domains: make(map[spiffeid.TrustDomain]*x509bundle.Bundle, len(roots))}
	for td, certs := range roots {
		b.domains[td] = x509bundle.FromX509Authorities(td, certs)
	}
	h := sha256.New()
	for _, td := range b.TrustDomains() {
		own := slices.SortedFunc(slices.Values(b.Roots(td)), func(x, y *x509.Certificate) int { return bytes.Compare(x.Raw, y.Raw) })
		sum := digest(own)
		fmt.Fprintf(h, "%s\x00%s", td.Name(), sum[:])
	}
	h.Sum(b.sum[:0])
	return b
}

// GetX509BundleForTrustDomain makes Bundle a source for go-spiffe.
func (b *Bundle) GetX509BundleForTrustDomain(td spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	roots, ok := b.domains[td]
	if !ok {
		return nil, fmt.Errorf("no roots for trust domain %q", td)
	}
	return roots, nil
}

// TrustDomains returns the trust domains that have roots, sorted.
func (b *Bundle) TrustDomains() []spiffeid.TrustDomain {
	tds := make([]spiffeid.TrustDomain, 0, len(b.domains))
	for td := range b.domains {
		tds = append(tds, td)
	}
	slices.SortFunc(tds, func(x, y spiffeid.TrustDomain) int { return cmp.Compare(x.Name(), y.Name()) })
	return tds
}

// Roots returns the roots of a trust domain.
func (b *Bundle) Roots(td spiffeid.TrustDomain) []*x509.Certificate {
	if roots, ok := b.domains[td]; ok {
		return roots.X509Authorities()
	}
	return nil
}

// Equal reports whether both hold the same roots.
func (b *Bundle) Equal(other *Bundle) bool {
	if len(b.domains) != len(other.domains) {
		return false
	}
	for td, roots := range b.domains {
		if o, ok := other.domains[td]; !ok || !roots.Equal(o) {
			return false
		}
	}
	return true
}

// CheckRoot says whether a certificate can be a root of the trust domain. It
// must be a CA. If it names a trust domain, as SPIFFE asks, it must be this
// one; CAs that were not made for SPIFFE name none.
func CheckRoot(c *x509.Certificate, td spiffeid.TrustDomain) error {
	if !c.BasicConstraintsValid || !c.IsCA {
		return fmt.Errorf("certificate %q is no CA", c.Subject)
	}
	if c.KeyUsage != 0 && c.KeyUsage&x509.KeyUsageCertSign == 0 {
		return fmt.Errorf("certificate %q may not sign certificates", c.Subject)
	}
	for _, uri := range c.URIs {
		if uri.Scheme != "spiffe" {
			continue
		}
		if id, err := spiffeid.FromURI(uri); err != nil || id.TrustDomain() != td {
			return fmt.Errorf("certificate %q is a root of %s, not of trust domain %q", c.Subject, uri, td)
		}
	}
	return nil
}
