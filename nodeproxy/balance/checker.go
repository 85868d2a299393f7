// SPDX-License-Identifier: Apache-2.0

package balance

import (
	"container/heap"
	"context"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/meshproxy/meshproxy/discovery"
	"github.com/meshproxy/meshproxy/discovery/mesh"
)

// DefaultConcurrency bounds the probes under way at a time.
const DefaultConcurrency = 32

// The defaults of a health check that leaves something out.
const (
	defaultInterval = 10 * time.Second
	defaultTimeout  = 2 * time.Second
	// firstWithin spreads the first probes after a start.
	firstWithin = 2 * time.Second
)

// Checker runs the active checks of services that have one, of every endpoint
// from every node: what counts is whether this node reaches it. A check that
// fails takes that port of the endpoint out of the balancer's choice until it
// passes again; a port that was never checked counts as healthy.
type Checker struct {
	balancer    *Balancer
	dial        Dial
	concurrency int
	log         *slog.Logger

	queue    queue
	services map[mesh.Name][]*check
	results  chan result
	running  int
}

type result struct {
	check *check
	err   error
}

// CheckerOptions of a Checker.
type CheckerOptions struct {
	// Dial connects to an endpoint: with the proxy's own sockets, through a
	// tunnel, or as else the wiring decides.
	Dial Dial
	// Concurrency bounds the probes at a time; 0 means DefaultConcurrency.
	Concurrency int
	Logger      *slog.Logger
}

// NewChecker returns a checker whose results go to the balancer.
func NewChecker(b *Balancer, opts CheckerOptions) *Checker {
	if opts.Concurrency == 0 {
		opts.Concurrency = DefaultConcurrency
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	return &Checker{
		balancer: b, dial: opts.Dial, concurrency: opts.Concurrency, log: opts.Logger,
		services: make(map[mesh.Name][]*check), results: make(chan result),
	}
}

// Run checks the endpoints of the store's snapshots until ctx is done and the
// last probe has ended.
func (c *Checker) Run(ctx context.Context, store *discovery.Store) {
	changed, cancel := store.Subscribe()
	defer cancel()
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	var current *mesh.Snapshot
	for {
		c.startDue(ctx)
		timer.Reset(c.untilNext())
		select {
		case <-ctx.Done():
			for ; c.running > 0; c.running-- {
				<-c.results
			}
			return
		case <-changed:
			next := store.Load()
			c.reconcile(current, next)
			current = next
		case r := <-c.results:
			c.running--
			c.finish(r)
		case <-timer.C:
		}
	}
}

// startDue starts probes that are due, as many as may run.
func (c *Checker) startDue(ctx context.Context) {
	now := time.Now()
	for c.running < c.concurrency && len(c.queue) > 0 && !c.queue[0].due.After(now) {
		k := heap.Pop(&c.queue).(*check)
		k.running = true
		c.running++
		// What the probe reads does not change while it runs.
		p := probe{service: k.service, endpoint: k.endpoint, addr: k.endpoint.AddrPort(k.port), http: speaksHTTP(k.service, k.port), dial: c.dial}
		go func() { c.results <- result{k, p.run(ctx)} }()
	}
}

func (c *Checker) untilNext() time.Duration {
	if len(c.queue) == 0 || c.running >= c.concurrency {
		return time.Hour // a change or a result comes first
	}
	return max(0, time.Until(c.queue[0].due))
}

func (c *Checker) finish(r result) {
	k := r.check
	k.running = false
	if k.gone {
		return
	}
	spec := k.service.HealthCheck
	if k.judge(spec, r.err) {
		log := c.log.With("service", k.key.service, "endpoint", k.key.addr, "node", k.endpoint.Node)
		if r.err != nil {
			log.Warn("health check fails", "error", r.err)
		} else {
			c.balancer.readmit(k.endpoint, k.port)
			log.Info("health check passes again")
		}
		c.balancer.opts.Changed()
	}
	interval := spec.Interval
	if interval <= 0 {
		interval = defaultInterval
	}
	// ±10 %, so that checks of many nodes do not march in step.
	k.due = time.Now().Add(interval - interval/10 + rand.N(interval/5+1))
	heap.Push(&c.queue, k)
}

// reconcile begins and ends checks so that they are those of next.
func (c *Checker) reconcile(current, next *mesh.Snapshot) {
	for _, name := range mesh.Diff(current, next).Services {
		svc := next.Service(name)
		before := c.services[name]
		if svc == nil || svc.HealthCheck == nil {
			delete(c.services, name)
			c.end(before, nil)
			continue
		}
		now := c.checksOf(svc)
		c.services[name] = now
		c.end(before, now)
	}
}

// checksOf returns the checks of a service's endpoints, and begins new ones.
func (c *Checker) checksOf(svc *mesh.Service) []*check {
	c.balancer.mu.Lock()
	defer c.balancer.mu.Unlock()
	var out []*check
	for _, e := range svc.Endpoints {
		for port := range svc.Ports {
			k := c.balancer.checkOf(svc, e, port)
			if k == nil {
				continue
			}
			k.service, k.endpoint, k.port, k.gone = svc, e, port, false
			if k.index < 0 && !k.running {
				k.due = time.Now().Add(rand.N(firstWithin))
				heap.Push(&c.queue, k)
			}
			out = append(out, k)
		}
	}
	return out
}

// end ends the checks that are in before and not in now.
func (c *Checker) end(before, now []*check) {
	if len(before) == 0 {
		return
	}
	stay := make(map[*check]bool, len(now))
	for _, k := range now {
		stay[k] = true
	}
	c.balancer.mu.Lock()
	defer c.balancer.mu.Unlock()
	for _, k := range before {
		if stay[k] {
			continue
		}
		k.gone = true
		if k.index >= 0 {
			heap.Remove(&c.queue, k.index)
		}
		delete(c.balancer.checks, k.key)
	}
}
