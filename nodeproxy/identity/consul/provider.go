// SPDX-License-Identifier: Apache-2.0

package consul

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/meshproxy/meshproxy/discovery/consulagent"
	"github.com/meshproxy/meshproxy/nodeproxy/identity"
)

const providerName = "consul"

// What a provider asks at once, at most.
const (
	// firstLeaves are asked for together.
	firstLeaves = 4
	// watchedLeaves may have blocking queries.
	watchedLeaves = 16
	// Connections is what an Agent for a provider needs: those, the roots, and
	// the roots once more, for a leaf that is ahead of them.
	Connections = firstLeaves + watchedLeaves + 2
)

// Options are for a provider; zero fields are the defaults.
type Options struct {
	// Agent is asked.
	Agent *consulagent.Agent
	// TrustDomain is the only one to be accepted; any if zero.
	TrustDomain spiffeid.TrustDomain
	// RotationWindow is the time over which leaves are renewed after a change
	// of the root that signs, 30 s by default, as agents do it themselves
	// (agent/leafcert/generate.go of Consul). Nothing hurries: Consul has the
	// old root vouch for the new one, and trusts it for as long as its leaves
	// live.
	RotationWindow time.Duration
	// Wait is how long a query for other roots blocks, 1 min by default. An
	// agent that hangs is noticed a little later than that.
	Wait   time.Duration
	Clock  identity.Clock
	Logger *slog.Logger
}

// Provider gets the leaves of Consul services.
type Provider struct {
	opts   Options
	log    *slog.Logger
	leaves *identity.Leaves

	identity.Notifier
	trusted  atomic.Pointer[trust]
	wake     chan struct{}
	first    chan struct{} // slots for first leaves
	watching chan struct{} // slots for blocking queries
	tasks    sync.WaitGroup

	mu      sync.Mutex
	entries map[spiffeid.ID]*entry
	away    trouble // of the agent
}

var _ identity.Provider = (*Provider)(nil)

// Open makes a provider. It asks for nothing before Run.
func Open(opts Options) *Provider {
	if opts.Clock == nil {
		opts.Clock = identity.SystemClock{}
	}
	if opts.RotationWindow == 0 {
		opts.RotationWindow = 30 * time.Second
	}
	if opts.Wait == 0 {
		opts.Wait = time.Minute
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	p := &Provider{
		opts: opts, log: opts.Logger,
		wake:     make(chan struct{}, 1),
		first:    make(chan struct{}, firstLeaves),
		watching: make(chan struct{}, watchedLeaves),
		entries:  make(map[spiffeid.ID]*entry),
	}
	p.leaves = identity.NewLeaves(p.fetch, opts.Clock)
	p.trusted.Store(nobody)
	return p
}

// Leaf returns the leaf of an identity. One that Keep has not named is asked
// for at its first use.
func (p *Provider) Leaf(ctx context.Context, id spiffeid.ID) (*tls.Certificate, error) {
	return p.leaves.Get(ctx, id)
}

// Bundle returns Consul's roots, all of them: while the CA rotates, leaves of
// the old root and of the new one are about.
func (p *Provider) Bundle() *identity.Bundle { return p.trusted.Load().bundle }

// TrustDomain returns Consul's; zero until it is known.
func (p *Provider) TrustDomain() spiffeid.TrustDomain { return p.trusted.Load().domain }

// Keep says whose leaves to have at hand from now on; others are dropped.
func (p *Provider) Keep(ids []spiffeid.ID) {
	wanted := make(map[spiffeid.ID]bool, len(ids))
	p.mu.Lock()
	defer p.mu.Unlock()
	dropped := false
	for _, id := range ids {
		wanted[id] = true
		if p.entries[id] == nil {
			p.entries[id] = &entry{due: p.opts.Clock.Now()}
			p.wakeUp()
		}
	}
	for id, e := range p.entries {
		if !wanted[id] {
			e.end()
			delete(p.entries, id)
			p.leaves.Forget(id)
			dropped = true
		}
	}
	if dropped {
		p.Notify() // who keeps leaves for later forgets those, too
	}
}

// fetch is the fetch of p.leaves.
func (p *Provider) fetch(ctx context.Context, id spiffeid.ID) (*tls.Certificate, error) {
	answer, err := p.askNow(ctx, id)
	if ctx.Err() == nil || err == nil { // a caller's impatience says nothing of Consul
		p.took(id, answer, err)
	}
	return answer.leaf, err
}

// askNow asks for a leaf that the agent may have to get from a server, a few at
// a time.
func (p *Provider) askNow(ctx context.Context, id spiffeid.ID) (leafAnswer, error) {
	select {
	case p.first <- struct{}{}:
	case <-ctx.Done():
		return leafAnswer{}, fmt.Errorf("wait to ask Consul: %w", ctx.Err())
	}
	defer func() { <-p.first }()
	return p.askLeaf(ctx, id, 0, 0)
}

// Summary describes the roots and leaves, and what is wrong since when.
func (p *Provider) Summary() identity.Summary {
	s := identity.Summary{Provider: providerName, Roots: p.trusted.Load().summaries()}
	p.leaves.All(func(id spiffeid.ID, leaf *tls.Certificate) {
		s.Leaves = append(s.Leaves, identity.SummarizeLeaf(id, leaf))
	})
	identity.SortLeaves(s.Leaves)
	s.Problems = p.problems()
	return s
}

// Run follows roots and leaves until ctx ends.
func (p *Provider) Run(ctx context.Context) error {
	defer p.opts.Agent.Close()
	defer p.tasks.Wait()
	p.tasks.Go(func() { p.watchRoots(ctx) })
	for {
		next := p.startDue(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-p.wake:
		case <-p.opts.Clock.After(next):
		}
	}
}

func (p *Provider) wakeUp() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}
