// SPDX-License-Identifier: Apache-2.0

package consul

import (
	"context"
	"crypto/sha256"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/meshproxy/meshproxy/discovery"
	"github.com/meshproxy/meshproxy/discovery/consulagent"
	"github.com/meshproxy/meshproxy/discovery/mesh"
)

// settle is how long changes gather before they are handed over: answers to
// several questions follow from one cause.
const settle = 5 * time.Millisecond

// run is one Run of a Source. What it knows belongs to one goroutine, that of
// loop; others ask the agent and post what they hear.
type run struct {
	source  *Source
	opts    Options
	log     *slog.Logger
	updates chan<- discovery.Update
	events  chan func()
	tasks   sync.WaitGroup
	kick    chan struct{} // asks for the local services now

	translation
	tenancy        tenancy
	addressOfAgent string
	all            map[string]*agentService // as the agent has them
	asked          time.Time                // when the agent was asked for all
	polled         [sha256.Size]byte        // sum of the agent's answer, for pollAgent
	listeners      []Listener
	services       localIndex
	catalog        map[string]bool // names of services
	entries        map[string]map[mesh.Name]configEntry
	defaults       mesh.Action // of intentions
	fallback       mesh.Action // the ACLs' default, until the agent says more
	to, from       map[mesh.Name][]intention
	unreadable     map[mesh.Name]bool // services whose intentions the token may not read
	answered       []mesh.Name        // services that to is about
	intentions     func()             // ends the queries about them

	random    random
	last      remembered
	chains    map[chainKey]*chainState
	targets   map[targetKey]*targetState
	fetches   fetches
	checks    checks
	registrar registrar

	ctx      context.Context // ends with the run
	heard    map[string]bool // queries that have been answered or denied
	failing  map[string]error
	denied   map[string]string // what the token may not do, by query
	partial  map[string]string // what it may see only some of, by query
	reported string            // the failure that was handed over last
	changed  bool              // something is to be handed over
	news     bool              // whether the agent can be read is
	planned  bool              // which chains are wanted is settled
	emitted  bool
}

func newRun(s *Source, updates chan<- discovery.Update) *run {
	opts := s.options()
	r := &run{
		source: s, opts: opts, log: opts.Logger, updates: updates,
		events: make(chan func(), 64), kick: make(chan struct{}, 1),
		chains: make(map[chainKey]*chainState), targets: make(map[targetKey]*targetState),
		entries: make(map[string]map[mesh.Name]configEntry),
		heard:   make(map[string]bool), failing: make(map[string]error), denied: make(map[string]string), partial: make(map[string]string),
		unreadable: make(map[mesh.Name]bool), last: s.last,
		random: rand.N[time.Duration],
	}
	r.translation = translation{
		self: opts.Node, domain: opts.Domain, hbone: opts.HBONEPort, instances: r.instancesOf,
	}
	r.tenancy.configured = opts.Namespace
	r.registrar.run, r.checks.run, r.fetches.run = r, r, r
	return r
}

// post has f run on the run's goroutine.
func (r *run) post(ctx context.Context, f func()) {
	select {
	case r.events <- f:
	case <-ctx.Done():
	}
}

func (r *run) loop(ctx context.Context) {
	timer := time.NewTimer(time.Hour)
	timer.Stop()
	defer timer.Stop()
	armed := false
	for {
		select {
		case <-ctx.Done():
			return
		case f := <-r.events:
			f()
			r.drain()
		case <-r.source.reload:
			r.reconfigure()
		case <-timer.C:
			armed = false
			r.emit(ctx)
		}
		r.follow(ctx)
		if (r.changed || r.news) && !armed {
			armed = true
			timer.Reset(settle)
		}
	}
}

// drain takes the events that are there, so that what follows from them is
// worked out once.
func (r *run) drain() {
	for range cap(r.events) {
		select {
		case f := <-r.events:
			f()
		default:
			return
		}
	}
}

// follow brings what is asked in line with what is known.
func (r *run) follow(ctx context.Context) {
	if !r.planned {
		r.plan(ctx)
	}
	r.fetches.pump(ctx)
	if r.fetches.idle() {
		r.checks.assign(ctx)
	}
	r.registrar.keep()
}

// complete reports whether everything was heard that a first view needs. From
// then on what cannot be asked is as it was.
func (r *run) complete() bool {
	if r.emitted {
		return true
	}
	for _, what := range firstWords {
		if !r.heard[what] {
			return false
		}
	}
	if len(r.services.names) > 0 && (!r.heard[queryTo] || !r.heard[queryFrom]) {
		return false
	}
	return r.planned && r.fetches.idle() && len(r.failing) == 0
}

func (r *run) reconfigure() {
	// The rest is read by others, and does not change.
	o := r.source.options()
	r.opts.Services, r.opts.Workload = o.Services, o.Workload
	r.opts.Reach, r.opts.DefaultIntention = o.Reach, o.DefaultIntention
	r.services.stale = true
	r.registrar.stale = true
	r.planned, r.changed = false, true
	r.resetDefault()
}

// worked and failed keep account of the queries.
func (r *run) worked(what string) {
	r.heard[what] = true
	if _, ok := r.failing[what]; ok {
		delete(r.failing, what)
		r.news = true
		r.kickLocal()
		if what == queryServices {
			// An agent that was restarted calls its services critical until it
			// has checked them. The node knows that its port is open.
			r.registrar.anew, r.registrar.stale = true, true
		}
	}
	if _, ok := r.denied[what]; ok {
		delete(r.denied, what)
		r.changed = true
		r.log.Info("Consul answers what its ACLs denied before", "query", what)
	}
}

// forget is for a query that is no longer asked.
func (r *run) forget(what string) {
	if _, ok := r.failing[what]; ok {
		delete(r.failing, what)
		r.news = true
	}
	for _, m := range []map[string]string{r.denied, r.partial} {
		if _, ok := m[what]; ok {
			delete(m, what)
			r.changed = true
		}
	}
}

func (r *run) failed(what string, err error) {
	if refused(err) {
		r.deny(what, err)
		delete(r.failing, what)
		return
	}
	r.failing[what] = plainly(r.opts.Agent.Address(), err)
	r.news = true
}

// deny notes what the token may not do, and says once which rule it lacks.
func (r *run) deny(what string, err error) {
	r.heard[what] = true
	text := plainly(r.opts.Agent.Address(), err).Error()
	rule := consulagent.Rule(err)
	if rule != "" {
		text = "the token lacks the ACL rule " + rule
	}
	if r.denied[what] == text {
		return
	}
	r.denied[what] = text
	r.changed = true
	if rule != "" {
		r.log.Warn("Consul's ACLs deny what this node needs to know", "query", what, "missing_rule", rule)
	} else {
		r.log.Warn("Consul refuses to answer", "query", what, "error", text)
	}
}

// lacks notes rows that the ACLs left out of an answer without a word. It holds
// until an answer is whole: that the next one is the same says nothing.
func (r *run) lacks(what, rule string, filtered bool) {
	if !filtered {
		if _, ok := r.partial[what]; ok {
			delete(r.partial, what)
			r.changed = true
		}
		return
	}
	text := "the ACLs left something out of the answer; the token may lack the rule " + rule
	if r.partial[what] != text {
		r.partial[what] = text
		r.changed = true
		r.log.Warn("Consul's ACLs leave something out of an answer", "query", what, "missing_rule", rule)
	}
}
