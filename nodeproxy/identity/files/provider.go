// SPDX-License-Identifier: Apache-2.0

package files

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/meshproxy/meshproxy/nodeproxy/identity"
	"github.com/meshproxy/meshproxy/nodeproxy/identity/internal/watch"
)

// settle is how long a burst of events may last before the files are read:
// writers replace a certificate and its key one after the other.
const settle = 50 * time.Millisecond

// Workload is where the leaf of an identity is.
type Workload struct {
	Identity          spiffeid.ID
	CertFile, KeyFile string
}

// Options are for a provider; zero fields are the defaults.
type Options struct {
	Workloads []Workload
	// Dir has a subdirectory with tls.crt and tls.key per workload; the
	// identity is the certificate's.
	Dir string
	// Bundles are the files with the roots, by trust domain.
	Bundles map[spiffeid.TrustDomain]string
	// Poll is how often files are looked at even if no event says so, 30 s by
	// default.
	Poll   time.Duration
	Clock  identity.Clock
	Logger *slog.Logger
}

// Provider serves leaves and roots from files.
type Provider struct {
	opts Options
	log  *slog.Logger
	identity.Notifier
	view atomic.Pointer[view]

	// The rest belongs to Open, then to Run.
	pairs  map[string]*pair // by certificate file
	roots  map[spiffeid.TrustDomain]*rootFile
	dirErr error // of reading opts.Dir
}

// view is what readers see: immutable.
type view struct {
	leaves   map[spiffeid.ID]*tls.Certificate
	bundle   *identity.Bundle
	problems map[string]error // by certificate or bundle file
	byID     map[spiffeid.ID]error
}

var _ identity.Provider = (*Provider)(nil)

// Open reads the files. Every bundle must be usable; a leaf that is not may
// become so while Run watches.
func Open(opts Options) (*Provider, error) {
	if opts.Clock == nil {
		opts.Clock = identity.SystemClock{}
	}
	if opts.Poll == 0 {
		opts.Poll = 30 * time.Second
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if len(opts.Bundles) == 0 {
		return nil, errors.New("no bundle file")
	}
	p := &Provider{
		opts:  opts,
		log:   opts.Logger,
		pairs: make(map[string]*pair),
		roots: make(map[spiffeid.TrustDomain]*rootFile),
	}
	seen := make(map[spiffeid.ID]bool)
	for _, w := range opts.Workloads {
		if w.Identity.IsZero() || seen[w.Identity] {
			return nil, fmt.Errorf("identity %q of %s is empty or there twice", w.Identity, w.CertFile)
		}
		if _, ok := p.pairs[w.CertFile]; ok {
			return nil, fmt.Errorf("certificate file %s is there twice", w.CertFile)
		}
		seen[w.Identity] = true
		p.pairs[w.CertFile] = &pair{want: w.Identity, cert: w.CertFile, key: w.KeyFile}
	}
	for td, path := range opts.Bundles {
		p.roots[td] = &rootFile{trustDomain: td, path: path}
	}
	p.turn()
	for _, f := range p.roots {
		if f.err != nil {
			return nil, fmt.Errorf("load bundle of trust domain %q: %w", f.trustDomain, f.err)
		}
	}
	return p, nil
}

// Leaf returns the last good leaf of the identity, while it is valid.
func (p *Provider) Leaf(_ context.Context, id spiffeid.ID) (*tls.Certificate, error) {
	v := p.view.Load()
	leaf, ok := v.leaves[id]
	if !ok {
		if err := v.byID[id]; err != nil {
			return nil, fmt.Errorf("%w: %w", identity.ErrNoLeaf, err)
		}
		return nil, fmt.Errorf("%w: no file has it", identity.ErrNoLeaf)
	}
	if end := leaf.Leaf.NotAfter; !p.opts.Clock.Now().Before(end) {
		return nil, fmt.Errorf("%w: the last good one expired at %s", identity.ErrNoLeaf, end.UTC().Format(time.RFC3339))
	}
	return leaf, nil
}

// Bundle returns the roots of the last good bundle files.
func (p *Provider) Bundle() *identity.Bundle { return p.view.Load().bundle }

// Summary describes roots, leaves, and files that cannot be used.
func (p *Provider) Summary() identity.Summary {
	v := p.view.Load()
	s := identity.Summary{Provider: "files"}
	for _, td := range v.bundle.TrustDomains() {
		for _, c := range v.bundle.Roots(td) {
			s.Roots = append(s.Roots, identity.SummarizeRoot(td, c))
		}
	}
	for id, leaf := range v.leaves {
		s.Leaves = append(s.Leaves, identity.SummarizeLeaf(id, leaf))
	}
	identity.SortLeaves(s.Leaves)
	for _, path := range sortedKeys(v.problems) {
		s.Problems = append(s.Problems, v.problems[path].Error())
	}
	return s
}

// Run follows the files until ctx ends.
func (p *Provider) Run(ctx context.Context) error {
	w := watch.New(p.log)
	defer w.Close()
	var settled <-chan time.Time
	for {
		if settled == nil {
			// Watches first: what happens after the turn is an event.
			w.Set(p.dirs())
			p.turn()
		}
		select {
		case <-ctx.Done():
			return nil
		case <-w.Events():
			if settled == nil {
				settled = p.opts.Clock.After(settle)
			}
			continue
		case err := <-w.Errors():
			p.log.Debug("file events lost", "err", err)
		case <-settled:
		case <-p.opts.Clock.After(p.opts.Poll):
		}
		settled = nil
	}
}
