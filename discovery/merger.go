// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/meshproxy/meshproxy/discovery/mesh"
)

// The defaults of Options.
const (
	DefaultSettle      = 20 * time.Millisecond
	DefaultMaxDelay    = 500 * time.Millisecond
	DefaultInitialWait = 5 * time.Second
)

var (
	errNoSource        = errors.New("a merger needs at least one source")
	errDuplicateSource = errors.New("two sources have the same name")
	errFromDisk        = errors.New("not heard from since the restart; its last view is from disk")
)

// Options of a Merger.
type Options struct {
	Node   mesh.Node
	Domain string
	// Sources in order of precedence: where two have a service or a workload
	// of the same name, that of the earlier one is in force.
	Sources []Source
	// Defaults are the policy defaults that no source decides.
	Defaults mesh.PolicyDefaults
	// VirtualIPs are the ranges that services without virtual IPs get theirs
	// from: at most one of each family.
	VirtualIPs []netip.Prefix
	// Assignments keeps the virtual IPs over restarts; nil: they are found
	// again by hash.
	Assignments Assignments
	// Quarantine of released virtual IPs; 0 means DefaultQuarantine.
	Quarantine time.Duration
	// Last is the snapshot of an earlier run. What it has of the sources is
	// in force, as stale, until they are heard from.
	Last *mesh.BuildInput
	// Updates are combined until none came for Settle, but not longer than
	// MaxDelay. 0 means the defaults.
	Settle, MaxDelay time.Duration
	// InitialWait bounds how long the first snapshot waits for all sources:
	// half of the sources could mean half of the policies. 0 means
	// DefaultInitialWait.
	InitialWait time.Duration
	Logger      *slog.Logger
}

func (o *Options) defaults() error {
	if len(o.Sources) == 0 {
		return errNoSource
	}
	names := make(map[string]bool)
	for _, s := range o.Sources {
		if names[s.Name()] {
			return fmt.Errorf("%w: %q", errDuplicateSource, s.Name())
		}
		names[s.Name()] = true
	}
	for i, p := range o.VirtualIPs {
		if !p.IsValid() || slices.ContainsFunc(o.VirtualIPs[:i], func(q netip.Prefix) bool { return q.Addr().Is4() == p.Addr().Is4() }) {
			return fmt.Errorf("virtual IP range %s: want at most one valid range of each family", p)
		}
	}
	for _, d := range []struct {
		to *time.Duration
		or time.Duration
	}{{&o.Settle, DefaultSettle}, {&o.MaxDelay, DefaultMaxDelay}, {&o.InitialWait, DefaultInitialWait}, {&o.Quarantine, DefaultQuarantine}} {
		if *d.to == 0 {
			*d.to = d.or
		}
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return nil
}

// Merger runs sources and publishes what they say as snapshots.
type Merger struct {
	opts      Options
	store     *Store
	views     []*view
	addresses *addressing
	inbox     chan delivery
	version   uint64
	complete  bool // a snapshot of all sources was published, or InitialWait is over
}

// delivery is an update of the source with that index.
type delivery struct {
	source int
	update Update
}

// NewMerger prepares a merger. Its store holds an empty snapshot, or what
// Options.Last has, before Run is called.
func NewMerger(opts Options) (*Merger, error) {
	if err := opts.defaults(); err != nil {
		return nil, fmt.Errorf("make merger: %w", err)
	}
	m := &Merger{
		opts:      opts,
		addresses: newAddressing(opts.VirtualIPs, opts.Assignments, opts.Quarantine, opts.Logger),
		inbox:     make(chan delivery),
	}
	now := time.Now()
	for _, s := range opts.Sources {
		m.views = append(m.views, &view{state: mesh.SourceState{Name: s.Name(), Since: now}})
	}
	if opts.Last != nil {
		m.prime(opts.Last)
	}
	m.store = NewStore(m.build(nil))
	return m, nil
}

// prime puts the parts of a snapshot back to the sources they came from.
func (m *Merger) prime(last *mesh.BuildInput) {
	m.version = last.Version
	for _, v := range m.views {
		var u Update
		for _, s := range last.Services {
			if s.Source == v.state.Name {
				u.Services = append(u.Services, m.addresses.adopt(s))
			}
		}
		for _, w := range last.Workloads {
			if w.Source == v.state.Name {
				u.Workloads = append(u.Workloads, w)
			}
		}
		for _, p := range last.Policies {
			if p.Source == v.state.Name {
				u.Policies = append(u.Policies, p)
			}
		}
		for _, state := range last.Sources {
			if state.Name == v.state.Name && state.Ready {
				since := last.Built
				if state.Stale {
					since = state.Since
				}
				v.update(u)
				v.fresh(since)
				v.failed(since, errFromDisk)
				v.state.FromDisk = true
			}
		}
	}
	if m.opts.Defaults.Default == "" { // what is configured now goes before what was in force
		m.opts.Defaults = last.Defaults
	}
	m.complete = m.allReady()
}

// Store holds the snapshots that the merger publishes.
func (m *Merger) Store() *Store { return m.store }

// Run runs the sources until ctx is done, and returns when all of them have
// ended. It is called once.
func (m *Merger) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	for i, s := range m.opts.Sources {
		wg.Go(func() { m.runSource(ctx, i, s) })
	}
	m.loop(ctx)
	return nil
}

// loop combines bursts: after the first update it waits for Settle without
// another one, or for MaxDelay.
func (m *Merger) loop(ctx context.Context) {
	initial := time.NewTimer(m.opts.InitialWait)
	defer initial.Stop()
	settle, bound := stoppedTimer(), stoppedTimer()
	defer settle.Stop()
	defer bound.Stop()
	pending := false
	for {
		select {
		case <-ctx.Done():
			return
		case d := <-m.inbox:
			if !m.take(d) {
				continue
			}
			if !pending {
				pending = true
				bound.Reset(m.opts.MaxDelay)
			}
			settle.Reset(m.opts.Settle)
			continue
		case <-settle.C:
		case <-bound.C:
		case <-initial.C:
			pending = pending || !m.complete
			m.giveUpWaiting()
		}
		if pending && (m.complete || m.allReady()) {
			m.complete, pending = true, false
			settle.Stop()
			bound.Stop()
			m.publish()
		}
	}
}

func stoppedTimer() *time.Timer {
	t := time.NewTimer(time.Hour)
	t.Stop()
	return t
}

func (m *Merger) allReady() bool {
	return !slices.ContainsFunc(m.views, func(v *view) bool { return !v.state.Ready })
}

func (m *Merger) giveUpWaiting() {
	if m.complete || m.allReady() {
		return
	}
	for _, v := range m.views {
		if !v.state.Ready {
			m.opts.Logger.Warn("source is not ready; going on without it", "source", v.state.Name, "error", v.state.Err)
		}
	}
	m.complete = true
}

// take puts a delivery into its view and reports whether anything changed.
func (m *Merger) take(d delivery) bool {
	v, now := m.views[d.source], time.Now()
	if d.update.Err != nil {
		changed := v.failed(now, d.update.Err)
		if changed {
			m.opts.Logger.Warn("source failed; its last view stays in force", "source", v.state.Name, "ready", v.state.Ready, "error", d.update.Err)
		}
		return changed
	}
	v.update(d.update)
	if err := d.update.Stale; err != nil {
		v.state.Ready, v.state.FromDisk = true, false
		if v.failed(now, err) {
			m.opts.Logger.Warn("source failed in part; what cannot be read stays as it was", "source", v.state.Name, "error", err)
		}
		return true
	}
	if v.state.Err != "" {
		m.opts.Logger.Info("source works again", "source", v.state.Name)
	}
	v.fresh(now)
	return true
}

// publish makes the next snapshot, unless it would say nothing new.
func (m *Merger) publish() {
	m.version++
	now := m.store.Load()
	next := m.build(now)
	if m.version > 1 && mesh.Diff(now, next).Empty() && reflect.DeepEqual(now.Sources(), next.Sources()) {
		m.version--
		return
	}
	m.opts.Logger.Debug("snapshot", "version", m.version, "services", len(next.Services()),
		"endpoints", next.EndpointCount(), "workloads", len(next.Workloads()), "policies", len(next.Policies()))
	m.store.Publish(next)
}

// build makes a snapshot of the views as they are.
func (m *Merger) build(previous *mesh.Snapshot) *mesh.Snapshot {
	services, workloads, policies, shadowed := combine(m.views)
	now := time.Now()
	services = m.addresses.apply(services, now)
	in := mesh.BuildInput{
		Version: m.version, Built: now, Node: m.opts.Node, Domain: m.opts.Domain,
		Services: services, Workloads: workloads, Policies: policies,
		Defaults: m.opts.Defaults, Previous: previous,
	}
	for i, v := range m.views {
		if v.defaults != nil && !slices.ContainsFunc(m.views[:i], func(w *view) bool { return w.defaults != nil }) {
			in.Defaults = *v.defaults
		}
		state := v.state
		state.Warnings = slices.Concat(v.allWarnings(), bounded(shadowed[i]), bounded(m.addresses.unserved(v.state.Name)))
		in.Sources = append(in.Sources, state)
	}
	return mesh.Build(in)
}

func bounded(list []string) []string {
	if n := len(list) - maxViewWarnings; n > 0 {
		return append(list[:maxViewWarnings:maxViewWarnings], fmt.Sprintf("and %d more", n))
	}
	return list
}
