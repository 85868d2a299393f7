// SPDX-License-Identifier: Apache-2.0

package consul

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/meshproxy/meshproxy/nodeproxy/identity"
)

// rootList is the answer of /v1/agent/connect/ca/roots; the api package's lacks
// what signs.
type rootList struct {
	TrustDomain string
	Roots       []listedRoot
}

type listedRoot struct {
	RootCert string
	// SigningKeyID is that of the root or of an intermediate, as hexadecimal
	// bytes with colons.
	SigningKeyID string
	Active       bool
}

// trust is what the roots say. It is immutable.
type trust struct {
	domain  spiffeid.TrustDomain // zero: nothing is known yet
	bundle  *identity.Bundle
	active  map[string]bool // fingerprints of roots that sign
	signing string          // key id of what signs, in hexadecimal
}

// nobody is trusted before Consul has said who is.
var nobody = &trust{bundle: identity.NewBundle(nil)}

// refreshRoots asks for the roots of now.
func (p *Provider) refreshRoots(ctx context.Context) error {
	_, err := p.askRoots(ctx, 0)
	return err
}

// askRoots takes over what the agent says, and returns its index.
func (p *Provider) askRoots(ctx context.Context, index uint64) (uint64, error) {
	var list rootList
	q := &api.QueryOptions{WaitIndex: index}
	if index > 0 {
		q.WaitTime = p.opts.Wait
	}
	last, err := p.ask(ctx, "/v1/agent/connect/ca/roots", &list, q)
	if err != nil {
		return 0, err
	}
	if err := p.trust(&list); err != nil {
		return 0, err
	}
	return last, nil
}

// watchRoots follows the roots until ctx ends. It is also what notices that the
// agent is away.
func (p *Provider) watchRoots(ctx context.Context) {
	var index uint64
	var back backoff
	for ctx.Err() == nil {
		last, err := p.askRoots(ctx, index)
		if ctx.Err() != nil {
			return
		}
		p.agentIs(err)
		// An agent that was replaced counts anew
		// (https://developer.hashicorp.com/consul/api-docs/features/blocking).
		if last < index {
			last = 0
		}
		index = last
		pause := back.next(err)
		if err == nil {
			pause = betweenQueries // whatever the agent's index does
		}
		select {
		case <-ctx.Done():
		case <-p.opts.Clock.After(pause):
		}
	}
}

// betweenQueries keeps an agent whose blocking queries don't block from being
// asked all the time.
const betweenQueries = 200 * time.Millisecond

var errNoRoots = errors.New("consul has no roots: is Connect enabled?")

// trust makes the list what the node trusts.
func (p *Provider) trust(list *rootList) error {
	if len(list.Roots) == 0 {
		return errNoRoots
	}
	domain, err := spiffeid.TrustDomainFromString(list.TrustDomain)
	if err != nil {
		return fmt.Errorf("read Consul's roots: trust domain %q: %w", list.TrustDomain, err)
	}
	if want := p.opts.TrustDomain; !want.IsZero() && want != domain {
		return fmt.Errorf("consul's trust domain is %s, node.trustDomain is %s", domain, want)
	}
	next := &trust{domain: domain, active: make(map[string]bool)}
	var certs []*x509.Certificate
	for _, r := range list.Roots {
		roots, err := identity.ParseCertificates([]byte(r.RootCert))
		if err != nil {
			return fmt.Errorf("read Consul's roots: %w", err)
		}
		for _, root := range roots {
			if err := identity.CheckRoot(root, domain); err != nil {
				return fmt.Errorf("read Consul's roots: %w", err)
			}
			if r.Active {
				next.active[identity.Fingerprint(root)] = true
			}
		}
		if r.Active {
			next.signing = strings.ToLower(strings.ReplaceAll(r.SigningKeyID, ":", ""))
		}
		certs = append(certs, roots...)
	}
	next.bundle = identity.NewBundle(map[spiffeid.TrustDomain][]*x509.Certificate{domain: certs})
	p.install(next)
	return nil
}

// install puts the trust in force, and has the leaves renewed that another key
// has signed than the one that signs now.
func (p *Provider) install(next *trust) {
	p.mu.Lock()
	before := p.trusted.Load()
	if before.bundle.Equal(next.bundle) && before.signing == next.signing {
		p.mu.Unlock()
		return
	}
	p.trusted.Store(next)
	now := p.opts.Clock.Now()
	for _, e := range p.entries {
		if e.leaf != nil && !next.signed(e.leaf) {
			e.superseded = supersededTries
			e.due = now.Add(rand.N(p.opts.RotationWindow))
		}
	}
	p.mu.Unlock()
	switch {
	case before.domain.IsZero():
		p.log.Info("trust domain learned from Consul", "trustDomain", next.domain.Name(), "roots", len(next.bundle.Roots(next.domain)))
	case before.domain != next.domain:
		p.log.Warn("Consul is of another trust domain now", "trustDomain", next.domain.Name(), "before", before.domain.Name())
	default:
		p.log.Info("Consul's roots changed", "roots", len(next.bundle.Roots(next.domain)))
	}
	p.Notify()
	p.wakeUp()
}

// signed says whether the leaf is of the key that signs now.
func (t *trust) signed(leaf *tls.Certificate) bool {
	return t.signing == "" || hex.EncodeToString(leaf.Leaf.AuthorityKeyId) == t.signing
}

// summaries describe the roots.
func (t *trust) summaries() []identity.RootSummary {
	var list []identity.RootSummary
	for _, root := range t.bundle.Roots(t.domain) {
		s := identity.SummarizeRoot(t.domain, root)
		s.State = "retiring"
		if t.active[s.Fingerprint] {
			s.State = "signing"
		}
		list = append(list, s)
	}
	slices.SortFunc(list, func(a, b identity.RootSummary) int { return a.NotBefore.Compare(b.NotBefore) })
	return list
}
