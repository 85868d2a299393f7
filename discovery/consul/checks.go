// SPDX-License-Identifier: Apache-2.0

package consul

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/hashicorp/consul/api"
)

// checks keeps the instances of targets up to date: some by a blocking query
// each, the others by what does not pass, and by asking all of them when the
// catalog changed.
type checks struct {
	run   *run
	stale bool // which targets have a query of their own is to be settled

	failing  map[string]map[checkKey]bool // by state: what is in it
	indexes  map[string]uint64            // by state: of that answer
	byNode   map[string]map[*targetState]bool
	byName   map[string]map[*targetState]bool // by the rows' service
	watching func()                           // ends the watch of states; nil without one
	sweeping sweep
}

// checkKey is a check that does not pass. A node's check has no service.
type checkKey struct{ node, id, service string }

// assign gives targets their own queries, explicit upstreams and services here
// first, then those in other datacenters, whose checks no query here shows, and
// has the others watched.
func (c *checks) assign(ctx context.Context) {
	if !c.stale {
		c.sweeping.next(ctx, c)
		return
	}
	c.stale = false
	r := c.run
	all := make([]*targetState, 0, len(r.targets))
	first := r.preferred()
	for _, t := range r.targets {
		all = append(all, t)
	}
	slices.SortFunc(all, func(a, b *targetState) int {
		return cmp.Or(rank(!first[a])-rank(!first[b]), rank(r.here(a))-rank(r.here(b)), rank(a.stop == nil)-rank(b.stop == nil), cmp.Compare(a.key.String(), b.key.String()))
	})
	for i, t := range all {
		switch {
		case i < maxDirect && t.stop == nil:
			c.followTarget(ctx, t)
		case i >= maxDirect && t.stop != nil:
			t.stop()
			t.stop = nil
			r.forget(t.query())
		}
	}
	c.watch(ctx, len(all) > maxDirect)
}

func rank(b bool) int {
	if b {
		return 1
	}
	return 0
}

// preferred are the targets of explicit upstreams and of services here.
func (r *run) preferred() map[*targetState]bool {
	out := make(map[*targetState]bool)
	add := func(k chainKey) {
		if c := r.chains[k]; c != nil {
			for _, t := range c.targets {
				out[t] = true
			}
		}
	}
	for _, n := range r.services.names {
		add(chainKey{name: n})
		for _, u := range r.services.upstreams[n] {
			add(r.key(&u))
		}
	}
	return out
}

func (c *checks) followTarget(ctx context.Context, t *targetState) {
	r := c.run
	ctx, cancel := context.WithCancel(ctx)
	t.stop = cancel
	type answer struct {
		instances []instance
	}
	r.tasks.Go(func() {
		follow(ctx, r, t.query(), func(ctx context.Context, index uint64, wait time.Duration) (answer, *api.QueryMeta, error) {
			if index == 0 {
				wait = firstWait
			}
			list, meta, err := r.askTarget(ctx, t.key, index, wait)
			return answer{list}, meta, err
		}, func(a answer, meta *api.QueryMeta) { r.takeTarget(t, a.instances, meta, nil) })
	})
}

// moved notes where a target's instances are.
func (c *checks) moved(t *targetState, before, now []instance) {
	if c.byNode == nil {
		c.byNode, c.byName = make(map[string]map[*targetState]bool), make(map[string]map[*targetState]bool)
	}
	for i := range before {
		delete(c.byNode[before[i].node], t)
		delete(c.byName[before[i].service], t)
	}
	note := func(m map[string]map[*targetState]bool, k string) {
		if m[k] == nil {
			m[k] = make(map[*targetState]bool)
		}
		m[k][t] = true
	}
	for i := range now {
		note(c.byNode, now[i].node)
		note(c.byName, now[i].service)
	}
}

// failingStates are the states of checks that don't pass.
var failingStates = []string{statusCritical, statusWarning}

const queryChecks = "checks that are "

// watch begins or ends the watch of checks that don't pass. An instance's
// health changes only when a check enters or leaves one of these states, and
// the answers are as small as the trouble is.
func (c *checks) watch(ctx context.Context, on bool) {
	switch {
	case on == (c.watching != nil):
		return
	case !on:
		c.watching()
		c.watching = nil
		for _, state := range failingStates {
			c.run.forget(queryChecks + state)
		}
		return
	}
	r := c.run
	ctx, c.watching = context.WithCancel(ctx)
	c.failing, c.indexes = make(map[string]map[checkKey]bool), make(map[string]uint64)
	for _, state := range failingStates {
		r.tasks.Go(func() {
			follow(ctx, r, queryChecks+state, get[[]checkRow](r, question{path: "/v1/health/state/" + state}), func(list []checkRow, meta *api.QueryMeta) {
				c.take(state, list, meta.LastIndex)
			})
		})
	}
}

// take has the targets asked for that the difference is about. One that enters
// a state says since which index. One that has left it, and is not in the other
// state by now, did so after the answer before. With no such answer, what changed
// since the targets were fetched matters: what entered shows in its index, and the
// rest is for a sweep.
func (c *checks) take(state string, list []checkRow, index uint64) {
	now := make(map[checkKey]bool, len(list))
	before, known := c.failing[state]
	last := c.indexes[state]
	c.failing[state], c.indexes[state] = now, index
	if !known {
		c.sweeping.wanted = true
	}
	for i := range list {
		k := checkKey{list[i].Node, list[i].CheckID, list[i].ServiceName}
		now[k] = true
		if !before[k] {
			c.touched(k, func(t *targetState) {
				if known || list[i].ModifyIndex > t.index {
					c.changed(t, list[i].ModifyIndex, 0)
				}
			})
		}
	}
	for k := range before {
		if !now[k] && !c.fails(k) {
			c.touched(k, func(t *targetState) { c.changed(t, last+1, changeWait) })
		}
	}
}

// changed has a target asked for that changed at an index or after it.
func (c *checks) changed(t *targetState, since uint64, wait time.Duration) {
	t.since = max(t.since, since)
	t.late.tries = 0
	c.run.fetches.target(t, wait)
}

// fails reports whether a check is in one of the states.
func (c *checks) fails(k checkKey) bool {
	return slices.ContainsFunc(failingStates, func(state string) bool { return c.failing[state][k] })
}

// touched does something about the targets of a check that have no query of their
// own. Those in other datacenters have other checks.
func (c *checks) touched(k checkKey, ask func(*targetState)) {
	set := c.byName[k.service]
	if k.service == "" {
		set = c.byNode[k.node]
	}
	for t := range set {
		if t.stop == nil && c.run.here(t) {
			ask(t)
		}
	}
}
