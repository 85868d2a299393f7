// SPDX-License-Identifier: Apache-2.0

package consul

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/meshproxy/meshproxy/nodeproxy/identity"
)

// answerWithin is how much longer than a query is to block its answer may take.
// An agent that hangs is noticed then.
const answerWithin = 10 * time.Second

// secretText is the text of a key, which can be overwritten.
type secretText []byte

// UnmarshalJSON implements json.Unmarshaler.
func (s *secretText) UnmarshalJSON(text []byte) error {
	var plain string // of the decoder's own copy, which is beyond reach
	err := json.Unmarshal(text, &plain)
	*s = secretText(plain)
	return err
}

// issued is the answer of /v1/agent/connect/ca/leaf/.
type issued struct {
	CertPEM       string
	PrivateKeyPEM secretText
}

// leafAnswer is a leaf and the index to block on for the next one.
type leafAnswer struct {
	leaf  *tls.Certificate
	index uint64
}

// askLeaf asks for the leaf of an identity. With an index it waits for another
// one, for as long as given, and may get the same once more.
func (p *Provider) askLeaf(ctx context.Context, id spiffeid.ID, index uint64, wait time.Duration) (leafAnswer, error) {
	s, err := parseService(id)
	if err != nil {
		return leafAnswer{}, err
	}
	q := &api.QueryOptions{WaitIndex: index, WaitTime: wait}
	// Consul without Enterprise refuses to hear of these.
	if s.namespace != standard {
		q.Namespace = s.namespace
	}
	if s.partition != standard {
		q.Partition = s.partition
	}
	var answer issued
	defer func() { clear(answer.PrivateKeyPEM) }()
	last, err := p.ask(ctx, "/v1/agent/connect/ca/leaf/"+url.PathEscape(s.name), &answer, q)
	if err != nil {
		return leafAnswer{}, err
	}
	leaf, err := p.accept(ctx, id, &answer)
	return leafAnswer{leaf, last}, err
}

// ask returns the index of the answer.
func (p *Provider) ask(ctx context.Context, path string, out any, q *api.QueryOptions) (uint64, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, q.WaitTime+answerWithin, errSilent)
	defer cancel()
	meta, err := p.opts.Agent.Raw().Query(path, out, q.WithContext(ctx))
	if err != nil {
		if errors.Is(context.Cause(ctx), errSilent) {
			err = errSilent
		}
		return 0, fmt.Errorf("ask Consul: %w", err)
	}
	return meta.LastIndex, nil
}

var errSilent = errors.New("the agent took the request and does not answer")

// accept makes a leaf of an answer, if it is one that peers will accept. A leaf
// may be ahead of its root: those are asked for then.
func (p *Provider) accept(ctx context.Context, id spiffeid.ID, answer *issued) (*tls.Certificate, error) {
	chain, err := identity.ParseCertificates([]byte(answer.CertPEM))
	if err != nil {
		return nil, fmt.Errorf("read Consul's leaf: %w", err)
	}
	key, err := identity.ParseKey(answer.PrivateKeyPEM)
	if err != nil {
		return nil, fmt.Errorf("read Consul's leaf: %w", err)
	}
	leaf, err := identity.NewLeaf(chain, key)
	if err != nil {
		return nil, fmt.Errorf("read Consul's leaf: %w", err)
	}
	err = p.check(id, chain)
	if errors.Is(err, identity.ErrUntrusted) {
		if err := p.refreshRoots(ctx); err != nil {
			return nil, err
		}
		err = p.check(id, chain)
	}
	if err != nil {
		return nil, fmt.Errorf("check Consul's leaf: %w", err)
	}
	return leaf, nil
}

// check verifies a leaf as peers will do. Consul decides on trust domain and
// datacenter of what it issues, so they may be others than those asked for.
func (p *Provider) check(id spiffeid.ID, chain []*x509.Certificate) error {
	got, err := identity.Verify(chain, p.Bundle(), p.opts.Clock.Now())
	if err != nil {
		return err
	}
	if got != id {
		return &identity.PeerError{Kind: identity.ErrIdentityMismatch, Got: got, Want: []spiffeid.ID{id}}
	}
	return nil
}

// validity is when a chain may be used: from its leaf's begin to the first end.
func validity(leaf *tls.Certificate) (from, until time.Time) {
	from, until = leaf.Leaf.NotBefore, leaf.Leaf.NotAfter
	for _, der := range leaf.Certificate[1:] {
		if c, err := x509.ParseCertificate(der); err == nil && c.NotAfter.Before(until) {
			until = c.NotAfter
		}
	}
	return from, until
}

func sameLeaf(a, b *tls.Certificate) bool {
	return a != nil && b != nil && slices.EqualFunc(a.Certificate, b.Certificate, slices.Equal)
}
