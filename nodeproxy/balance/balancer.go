// SPDX-License-Identifier: Apache-2.0

package balance

import (
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"sync"
	"time"

	"github.com/meshproxy/meshproxy/discovery/mesh"
)

// The defaults of Options. Envoy ejects after 5 failures of any kind, for 30 s
// times the number of ejections up to 300 s, and at most 10 % of a cluster.
// Here only failures to connect count, which are no matter of opinion, so
// three suffice, the first ejection is shorter, and half of a service may be
// out: services have few endpoints more often than many.
const (
	DefaultFailures         = 3
	DefaultEjection         = 10 * time.Second
	DefaultMaxEjection      = 300 * time.Second
	DefaultEjectablePercent = 50
)

// forgetAfter is how long the state of an endpoint outlives its last use.
const forgetAfter = 10 * time.Minute

// Options of a Balancer.
type Options struct {
	// Node is this node, which "near" refers to.
	Node mesh.Node
	// Failures in a row to connect eject an endpoint; 0 means
	// DefaultFailures.
	Failures int
	// Ejection is how long the first ejection lasts; each further one lasts
	// twice as long, up to MaxEjection. 0 means the defaults.
	Ejection, MaxEjection time.Duration
	// EjectablePercent of a service's endpoints may be ejected at a time,
	// but always one of several, and never the only one. 0 means
	// DefaultEjectablePercent.
	EjectablePercent int
	// Changed, if set, is called when an endpoint became usable or ceased to be
	// (for whoever has copies of EndpointSummary.Usable), other than by the end
	// of an ejection's time. It must not call the balancer.
	Changed func()
	// Random replaces the random numbers in tests.
	Random func() uint64
	Logger *slog.Logger
}

func (o *Options) defaults() {
	if o.Failures == 0 {
		o.Failures = DefaultFailures
	}
	if o.Ejection == 0 {
		o.Ejection = DefaultEjection
	}
	if o.MaxEjection == 0 {
		o.MaxEjection = DefaultMaxEjection
	}
	if o.EjectablePercent == 0 {
		o.EjectablePercent = DefaultEjectablePercent
	}
	if o.Changed == nil {
		o.Changed = func() {}
	}
	if o.Random == nil {
		o.Random = rand.Uint64
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
}

// Balancer picks endpoints. All methods may be called from any goroutine; a
// pick takes no lock and allocates nothing once the service has been picked
// from before.
type Balancer struct {
	opts  Options
	start time.Time

	// groups holds a *groups for each *mesh.Service that was picked from.
	groups sync.Map

	mu     sync.Mutex
	states map[stateKey]*state
	checks map[checkKey]*check
	swept  time.Time
}

// stateKey is who is behind an address. A loopback address means something
// else on each node.
type stateKey struct {
	addr netip.AddrPort
	node string
}

func keyOf(e *mesh.Endpoint, port int) stateKey {
	k := stateKey{addr: e.AddrPort(port)}
	if e.Address.IsLoopback() {
		k.node = e.Node
	}
	return k
}

// New returns a balancer that knows nothing yet.
func New(opts Options) *Balancer {
	opts.defaults()
	return &Balancer{
		opts: opts, start: time.Now(), swept: time.Now(),
		states: make(map[stateKey]*state),
		checks: make(map[checkKey]*check),
	}
}

// now is the time since the balancer's start, which fits an atomic.
func (b *Balancer) now() time.Duration { return time.Since(b.start) }

// Update forgets what belongs to services that are no longer as they were. It
// is called with every snapshot; picks from older ones still work.
func (b *Balancer) Update(s *mesh.Snapshot) {
	b.groups.Range(func(key, _ any) bool {
		svc := key.(*mesh.Service)
		if s.Service(svc.Name) != svc {
			b.groups.Delete(key)
		}
		return true
	})
	b.sweep()
}

// sweep forgets states that no group has and nobody used for a while.
func (b *Balancer) sweep() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if time.Since(b.swept) < forgetAfter/10 {
		return
	}
	b.swept = time.Now()
	now := b.now()
	checks := make(map[*check]bool)
	b.groups.Range(func(_, value any) bool {
		for _, g := range value.(*groups).ports {
			for _, m := range g.members {
				m.state.used.Store(int64(now))
				checks[m.check] = true
			}
		}
		return true
	})
	for k, c := range b.checks {
		if c.service == nil && !checks[c] { // of an old snapshot; no Checker has it
			delete(b.checks, k)
		}
	}
	for k, st := range b.states {
		if st.inFlight.Load() == 0 && now-time.Duration(st.used.Load()) > forgetAfter {
			delete(b.states, k)
		}
	}
}

// stateOf returns the state of an endpoint, a new one if it has none. The
// caller holds b.mu.
func (b *Balancer) stateOf(k stateKey) *state {
	st := b.states[k]
	if st == nil {
		st = &state{}
		b.states[k] = st
	}
	st.used.Store(int64(b.now()))
	return st
}
