// SPDX-License-Identifier: Apache-2.0

package embedded

import (
	"crypto/x509"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/meshproxy/meshproxy/nodeproxy/identity"
)

// authority is a CA directory as it was read: immutable. What it does depends
// on the time.
type authority struct {
	trustDomain spiffeid.TrustDomain
	maxLeafTTL  time.Duration
	roots       []*root // by signsFrom
}

// load reads all that the manifest names.
func (s *store) load(text []byte) (*authority, error) {
	m, err := s.parseManifest(text)
	if err != nil {
		return nil, err
	}
	a := &authority{}
	if a.trustDomain, err = spiffeid.TrustDomainFromString(m.TrustDomain); err != nil {
		return nil, fmt.Errorf("parse trust domain %q: %w", m.TrustDomain, err)
	}
	if a.maxLeafTTL, err = time.ParseDuration(m.MaxLeafTTL); err != nil {
		return nil, fmt.Errorf("parse maxLeafTTL: %w", err)
	}
	for _, mr := range m.Roots {
		r, err := s.loadRoot(mr, a.trustDomain)
		if err != nil {
			return nil, err
		}
		a.add(r)
	}
	return a, nil
}

// add makes r the successor of the last root.
func (a *authority) add(r *root) {
	if n := len(a.roots); n > 0 {
		a.roots[n-1].trustedUntil = r.signsFrom.Add(a.maxLeafTTL)
	}
	a.roots = append(a.roots, r)
}

// signer returns the root that signs now: the latest whose time has come.
func (a *authority) signer(now time.Time) *root {
	s := a.roots[0]
	for _, r := range a.roots[1:] {
		if !r.signsFrom.After(now) {
			s = r
		}
	}
	return s
}

func (a *authority) trusted(now time.Time) []*root {
	var roots []*root
	for _, r := range a.roots {
		if r.trustedUntil.IsZero() || now.Before(r.trustedUntil) {
			roots = append(roots, r)
		}
	}
	return roots
}

func (a *authority) bundle(now time.Time) *identity.Bundle {
	var certs []*x509.Certificate
	for _, r := range a.trusted(now) {
		certs = append(certs, r.cert)
	}
	return identity.NewBundle(map[spiffeid.TrustDomain][]*x509.Certificate{a.trustDomain: certs})
}

// keyGrace is how long a succeeded root keeps its key, for nodes whose clocks
// are late.
const keyGrace = 10 * time.Minute

// keyIsSpent reports whether the root will never sign again.
func (a *authority) keyIsSpent(r *root, now time.Time) bool {
	return !r.trustedUntil.IsZero() && now.After(r.trustedUntil.Add(-a.maxLeafTTL).Add(keyGrace))
}

// prunable reports whether there is anything that Prune would remove.
func (a *authority) prunable(now time.Time) bool {
	for _, r := range a.roots {
		if r.canSign && a.keyIsSpent(r, now) {
			return true
		}
	}
	return len(a.trusted(now)) < len(a.roots)
}

// nextChange is when signer or trusted will answer differently; zero if never.
func (a *authority) nextChange(now time.Time) time.Time {
	var next time.Time
	for _, r := range a.roots {
		for _, t := range []time.Time{r.signsFrom, r.trustedUntil} {
			if t.After(now) && (next.IsZero() || t.Before(next)) {
				next = t
			}
		}
	}
	return next
}

// manifest is the inverse of load.
func (a *authority) manifest() manifest {
	m := manifest{
		Version:     manifestVersion,
		TrustDomain: a.trustDomain.Name(),
		MaxLeafTTL:  a.maxLeafTTL.String(),
	}
	for _, r := range a.roots {
		m.Roots = append(m.Roots, manifestRoot{Name: r.name(), SignsFrom: r.signsFrom})
	}
	return m
}

func (a *authority) summaries(now time.Time) []identity.RootSummary {
	signer := a.signer(now)
	var out []identity.RootSummary
	for _, r := range a.trusted(now) {
		s := identity.SummarizeRoot(a.trustDomain, r.cert)
		s.SignsFrom, s.TrustedUntil = r.signsFrom, r.trustedUntil
		switch {
		case r == signer:
			s.State = "signing"
		case r.signsFrom.After(now):
			s.State = "next"
		default:
			s.State = "retiring"
		}
		out = append(out, s)
	}
	return out
}
