// SPDX-License-Identifier: Apache-2.0

package consul

import (
	"context"
	"sync"

	"github.com/meshproxy/meshproxy/discovery"
)

// MaxConnections is the most that a Source has to the agent.
const MaxConnections = maxDirect + maxFetches + broadQueries

const (
	// maxDirect targets have a blocking query each.
	maxDirect = 32
	// maxFetches are under way at a time.
	maxFetches = 16
	// broadQueries is an upper bound of those that watch for what changed:
	// services, roots, names, kinds of configuration entries, intentions,
	// checks; registrations, and a sweep's glance.
	broadQueries = 16
)

// Source follows a Consul agent.
type Source struct {
	reload chan struct{}

	// last is for the first run until it is complete, and for its goroutine.
	last remembered

	mu   sync.Mutex
	opts Options
}

var _ discovery.Source = (*Source)(nil)

// New returns a source; nothing is asked before Run.
func New(opts Options) *Source {
	s := &Source{last: remember(opts.Last), reload: make(chan struct{}, 1)}
	opts.Last = nil // what is not used of it need not stay in memory
	s.opts = opts.withDefaults()
	return s
}

// Name implements discovery.Source.
func (s *Source) Name() string { return Name }

// Reload replaces what configuration says about the services here: Services,
// Workload, Reach and DefaultIntention.
func (s *Source) Reload(opts Options) {
	s.mu.Lock()
	s.opts.Services, s.opts.Workload = opts.Services, opts.Workload
	s.opts.Reach, s.opts.DefaultIntention = opts.withDefaults().Reach, opts.DefaultIntention
	s.mu.Unlock()
	select {
	case s.reload <- struct{}{}:
	default:
	}
}

func (s *Source) options() Options {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.opts
}

// Run implements discovery.Source. It returns when ctx is done: an agent that
// is away is an update with an error, and asked again.
func (s *Source) Run(ctx context.Context, updates chan<- discovery.Update) error {
	ctx, cancel := context.WithCancel(ctx)
	r := newRun(s, updates)
	defer r.tasks.Wait()
	defer cancel()
	r.start(ctx)
	r.loop(ctx)
	return nil
}
