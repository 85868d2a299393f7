// SPDX-License-Identifier: Apache-2.0

package consul

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/meshproxy/meshproxy/discovery/consulagent"
	"github.com/meshproxy/meshproxy/discovery/mesh"
)

// chainState is a chain that is wanted.
type chainState struct {
	key      chainKey
	gateway  string // how targets elsewhere are reached; empty: as they say
	compiled *chain
	targets  []*targetState
	tried    bool
	job      job

	dirty    bool // built is not up to date
	built    *mesh.Service
	warnings []string
}

// targetState is a target of some chain.
type targetState struct {
	key       targetKey
	instances []instance
	index     uint64
	filtered  bool // the ACLs left something out of the last answer
	tried     bool
	answered  bool
	users     map[*chainState]bool
	job       job
	stop      func() // ends its own blocking query; nil without one
	wait      time.Duration
	since     uint64 // the last change that is known of is not older
	late      lateness
	doubtful  time.Time // since when some status is one of before; zero: none is
	again     bool      // it will be asked for once more
}

// job is the fetch of a chain or a target.
type job struct {
	queued, running, again bool
}

// fetches asks for chains and targets, so many at a time.
type fetches struct {
	run     *run
	queue   []func(context.Context)
	running int
}

func (f *fetches) idle() bool { return f.running == 0 && len(f.queue) == 0 }

// pump starts what fits.
func (f *fetches) pump(ctx context.Context) {
	for f.running < maxFetches && len(f.queue) > 0 {
		start := f.queue[0]
		f.queue = f.queue[1:]
		f.running++
		start(ctx)
	}
}

// add queues a fetch unless it is queued already; one that runs is repeated,
// since its answer may have been under way when the change came. Prepare and
// what fetch returns in the end have the run's goroutine, fetch one of its own.
func (f *fetches) add(j *job, prepare func(context.Context) (fetch func() func())) {
	switch {
	case j.queued:
		return
	case j.running:
		j.again = true
		return
	}
	j.queued = true
	r := f.run
	f.queue = append(f.queue, func(ctx context.Context) {
		j.queued, j.running = false, true
		fetch := prepare(ctx)
		r.tasks.Go(func() {
			finish := fetch()
			r.post(ctx, func() {
				f.running--
				j.running = false
				finish()
				if j.again {
					j.again = false
					f.add(j, prepare)
				}
			})
		})
	})
}

// chain has a chain compiled.
func (f *fetches) chain(c *chainState) {
	r := f.run
	f.add(&c.job, func(ctx context.Context) func() func() {
		return func() func() {
			compiled, err := r.askChain(ctx, c.key)
			return func() {
				if ctx.Err() == nil {
					r.takeChain(c, compiled, err)
				}
			}
		}
	})
}

// askChain has a chain compiled here, for the other datacenter where it is for one,
// as agents do it for Envoy (agent/proxycfg/upstreams.go of Consul): it follows
// from the entries that are watched, which arrive over there later. Whether there
// is such a datacenter, its own servers say.
func (r *run) askChain(ctx context.Context, k chainKey) (*chain, error) {
	q := question{path: "/v1/discovery-chain/" + k.name.Name, namespace: k.name.Namespace}
	if k.datacenter != "" {
		there := q
		there.datacenter = k.datacenter
		if _, err := r.ask(ctx, there, new(json.RawMessage)); err != nil {
			return nil, err
		}
		q.more = url.Values{"compile-dc": {k.datacenter}}
	}
	var answer struct{ Chain *chain }
	_, err := r.ask(ctx, q, &answer)
	return answer.Chain, err
}

// target asks for the instances of a target: at once if they are not known
// yet, else within wait for a change.
func (f *fetches) target(t *targetState, wait time.Duration) {
	r := f.run
	t.wait = max(t.wait, wait)
	f.add(&t.job, func(ctx context.Context) func() func() {
		index, wait := t.index, max(t.wait, sweepWait)
		if t.behind() {
			wait = max(wait, changeWait)
		}
		t.wait = 0 // what comes from now on is for the next time
		known := t.known()
		return func() func() {
			instances, same, meta, err := r.askAgain(ctx, t.key, index, wait, known)
			return func() {
				if ctx.Err() != nil {
					return
				}
				if same {
					instances = t.instances
				}
				r.takeTarget(t, instances, meta, err)
			}
		}
	})
}

// known says whether an answer with the same index is the same: what the ACLs
// leave out has no index, and what is doubtful is to be looked at again.
func (t *targetState) known() bool { return t.index > 1 && !t.filtered && t.doubtful.IsZero() }

// askAgain is askTarget for what may be known. Most answers to a sweep are, and
// reading those again would be most of its cost.
func (r *run) askAgain(ctx context.Context, k targetKey, index uint64, wait time.Duration, known bool) (list []instance, same bool, meta *api.QueryMeta, err error) {
	if !known {
		list, meta, err = r.askTarget(ctx, k, index, wait)
		return list, false, meta, err
	}
	var body json.RawMessage
	if meta, err = r.askRows(consulagent.Unless(ctx, index), k, index, wait, &body); err != nil {
		return nil, false, nil, err
	}
	if meta.LastIndex == index && !meta.ResultsFilteredByACLs {
		return nil, true, meta, nil
	}
	var rows []row
	if err := json.Unmarshal(body, &rows); err != nil {
		return nil, false, nil, fmt.Errorf("decode instances of %s: %w", k.service, err)
	}
	return instancesOf(rows), false, meta, nil
}

// askTarget asks for the instances of a target.
func (r *run) askTarget(ctx context.Context, k targetKey, index uint64, wait time.Duration) ([]instance, *api.QueryMeta, error) {
	var rows []row
	meta, err := r.askRows(ctx, k, index, wait, &rows)
	if err != nil {
		return nil, nil, err
	}
	return instancesOf(rows), meta, nil
}

// askRows always names an index: with one the agent answers from the view that
// it keeps, without one from a server.
func (r *run) askRows(ctx context.Context, k targetKey, index uint64, wait time.Duration, out any) (*api.QueryMeta, error) {
	q := k.question()
	q.index, q.wait = max(1, index), wait
	return r.ask(ctx, q, out)
}

func (k targetKey) question() question {
	return question{
		path: "/v1/health/connect/" + k.service, filter: k.filter,
		namespace: k.namespace, partition: k.partition, datacenter: k.datacenter,
	}
}

const queryChains, queryTargets = "discovery chains", "instances of services"

func (r *run) takeChain(c *chainState, compiled *chain, err error) {
	c.tried = true
	if r.chains[c.key] != c {
		return // no longer wanted
	}
	switch {
	case err != nil && (refused(err) || particular(err)):
		r.deny(c.query(), err)
		r.afterwards(deniedPause, func() { r.fetches.chain(c) })
		return
	case err != nil:
		r.failed(queryChains, err)
		r.later(func() { r.fetches.chain(c) })
		return
	}
	r.worked(queryChains)
	r.worked(c.query())
	compiled.override(c.gateway)
	c.compiled = compiled
	var next []*targetState
	for _, t := range compiled.Targets {
		if t.refused(r.home) != "" {
			continue
		}
		state := r.targets[t.key()]
		if state == nil {
			state = &targetState{key: t.key(), users: make(map[*chainState]bool)}
			r.targets[t.key()] = state
			r.fetches.target(state, firstWait)
			r.checks.stale = true
		}
		state.users[c] = true
		next = append(next, state)
	}
	for _, t := range c.targets {
		if !slices.Contains(next, t) {
			r.leave(c, t)
		}
	}
	c.targets = next
	c.dirty, r.changed = true, true
}

// firstWait is for the first answer about a target: any index is newer than 1.
const firstWait = time.Second

func (r *run) leave(c *chainState, t *targetState) {
	delete(t.users, c)
	if len(t.users) > 0 {
		return
	}
	if t.stop != nil {
		t.stop()
	}
	r.forget(t.query())
	delete(r.targets, t.key)
	r.checks.moved(t, t.instances, nil)
	r.checks.stale = true
}

func (r *run) dropChain(c *chainState) {
	for _, t := range c.targets {
		r.leave(c, t)
	}
	r.forget(c.query())
	delete(r.chains, c.key)
	r.changed = true
}

// The names of queries about one chain or target, for people.
func (c *chainState) query() string  { return queryChains + " of " + c.key.meshName().String() }
func (t *targetState) query() string { return queryTargets + " " + t.key.String() }

func (r *run) takeTarget(t *targetState, instances []instance, meta *api.QueryMeta, err error) {
	t.tried = true
	if r.targets[t.key] != t {
		return
	}
	switch {
	case err != nil && (refused(err) || particular(err)):
		delete(r.failing, t.query()) // it is denied rather than late
		r.deny(t.query(), err)
		if t.stop == nil {
			r.afterwards(deniedPause, func() { r.fetches.target(t, firstWait) })
		}
		return
	case err != nil:
		r.failed(queryTargets, err)
		r.later(func() { r.fetches.target(t, firstWait) })
		return
	}
	r.worked(queryTargets)
	if r.unseen(t, instances, meta) {
		return
	}
	r.worked(t.query())
	r.lacksRows(t, meta)
	first := !t.answered
	t.index, t.filtered, t.answered = meta.LastIndex, meta.ResultsFilteredByACLs, true
	r.catchUp(t)
	r.believe(t, instances, first)
	if slices.Equal(t.instances, instances) {
		return
	}
	r.checks.moved(t, t.instances, instances)
	t.instances = instances
	for c := range t.users {
		c.dirty = true
	}
	r.changed = true
}

func (r *run) lacksRows(t *targetState, meta *api.QueryMeta) {
	r.lacks(t.query(), `service "`+t.key.service+`" { policy = "read" }, node_prefix "" { policy = "read" }`, meta.ResultsFilteredByACLs)
}

// instancesOf implements translation.instances.
func (r *run) instancesOf(k targetKey) []instance {
	if t := r.targets[k]; t != nil {
		return t.instances
	}
	return nil
}

// concerns reports whether a chain may follow from one of the services'
// configuration entries.
func (c *chainState) concerns(names map[mesh.Name]bool) bool {
	if names[c.key.name.Canonical()] || c.compiled == nil {
		return true
	}
	for _, t := range c.compiled.Targets {
		if names[mesh.Name{Namespace: t.Namespace, Name: t.Service}.Canonical()] {
			return true
		}
	}
	for _, n := range c.compiled.Nodes {
		service, _, _ := strings.Cut(n.Name, ".")
		if n.Type != nodeResolver && names[mesh.Name{Name: service}.Canonical()] {
			return true
		}
	}
	return false
}

// retryPause is how long a failed fetch waits for its next attempt.
const retryPause = 2 * time.Second

// later repeats a fetch that failed.
func (r *run) later(f func()) { r.afterwards(retryPause, f) }

// afterwards runs f on the run's goroutine after a while.
func (r *run) afterwards(d time.Duration, f func()) {
	ctx := r.ctx
	r.tasks.Go(func() {
		if sleep(ctx, r.random.jittered(d)) {
			r.post(ctx, f)
		}
	})
}
