// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Summary is what a provider has, for people; no keys in it.
type Summary struct {
	Provider string        `json:"provider"`
	Roots    []RootSummary `json:"roots"`
	Leaves   []LeafSummary `json:"leaves"`
	// Problems are those that the provider lives with now, such as a file
	// that it cannot use.
	Problems []string `json:"problems,omitempty"`
}

// RootSummary is a trusted root.
type RootSummary struct {
	TrustDomain string    `json:"trustDomain"`
	Fingerprint string    `json:"fingerprint"` // SHA-256 of the certificate
	Subject     string    `json:"subject"`
	NotBefore   time.Time `json:"notBefore"`
	NotAfter    time.Time `json:"notAfter"`
	// State is "signing", "next" or "retiring" where the provider is the CA.
	State string `json:"state,omitempty"`
	// SignsFrom and TrustedUntil bound a root that takes over, or goes.
	SignsFrom    time.Time `json:"signsFrom,omitzero"`
	TrustedUntil time.Time `json:"trustedUntil,omitzero"`
}

// LeafSummary is a workload's leaf.
type LeafSummary struct {
	Identity  spiffeid.ID `json:"identity"`
	Serial    string      `json:"serial"`
	NotBefore time.Time   `json:"notBefore"`
	NotAfter  time.Time   `json:"notAfter"`
	Issuer    string      `json:"issuer"`
}

// SummarizeRoot fills what the certificate says.
func SummarizeRoot(td spiffeid.TrustDomain, c *x509.Certificate) RootSummary {
	return RootSummary{
		TrustDomain: td.Name(),
		Fingerprint: Fingerprint(c),
		Subject:     c.Subject.String(),
		NotBefore:   c.NotBefore,
		NotAfter:    c.NotAfter,
	}
}

// SummarizeLeaf fills what the certificate says.
func SummarizeLeaf(id spiffeid.ID, leaf *tls.Certificate) LeafSummary {
	return LeafSummary{
		Identity:  id,
		Serial:    leaf.Leaf.SerialNumber.Text(16),
		NotBefore: leaf.Leaf.NotBefore,
		NotAfter:  leaf.Leaf.NotAfter,
		Issuer:    leaf.Leaf.Issuer.String(),
	}
}

// SortLeaves sorts by identity.
func SortLeaves(s []LeafSummary) {
	slices.SortFunc(s, func(a, b LeafSummary) int { return cmp.Compare(a.Identity.String(), b.Identity.String()) })
}
