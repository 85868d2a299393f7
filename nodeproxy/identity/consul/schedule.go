// SPDX-License-Identifier: Apache-2.0

package consul

import (
	"cmp"
	"context"
	"crypto/tls"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// entry is a leaf that is kept.
type entry struct {
	leaf  *tls.Certificate // nil: none yet
	index uint64           // to block on
	due   time.Time        // when to ask next
	back  backoff
	fault trouble
	// superseded: another key signs now than the leaf's; how many leaves in a
	// row may not be of it, either, before that counts as how this CA is.
	superseded int
	// muted: the agent gave a superseded leaf once more. Why it cannot renew it
	// is said to blocking queries only (Manager.internalGet in agent/leafcert).
	muted bool
	// cancel ends the request that is under way, nil when none is.
	cancel context.CancelFunc
}

func (e *entry) end() {
	if e.cancel != nil {
		e.cancel()
	}
}

// How long a leaf's query blocks: long while there is room for all, else
// briefly, to let others have their turn.
const (
	longWait  = 5 * time.Minute
	shortWait = 30 * time.Second
	// sleepMost bounds how wrong a clock that jumps can make Run.
	sleepMost = 10 * time.Minute
)

// supersededTries covers leaves that were signed while the root changed. A CA
// whose leaves never name what Consul says to be signing must not be asked for
// others without end.
const supersededTries = 3

// soften is the part of a leaf's lifetime after which the agent may renew it
// (agent/leafcert/util.go of Consul).
const soften = 0.6

// startDue starts a request for each leaf whose time has come, in the order in
// which they did, and returns how long nothing else is due.
func (p *Provider) startDue(ctx context.Context) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.opts.Clock.Now()
	var due []spiffeid.ID
	next := now.Add(sleepMost)
	for id, e := range p.entries {
		switch {
		case e.cancel != nil:
		case !e.due.After(now):
			due = append(due, id)
		case e.due.Before(next):
			next = e.due
		}
	}
	slices.SortFunc(due, func(a, b spiffeid.ID) int {
		return cmp.Or(p.entries[a].due.Compare(p.entries[b].due), cmp.Compare(a.String(), b.String()))
	})
	wait := longWait
	if len(due)+len(p.watching) > cap(p.watching) {
		wait = shortWait
	}
	for _, id := range due {
		switch e := p.entries[id]; {
		case e.leaf == nil:
			p.start(ctx, e, func(ctx context.Context) { _, _ = p.leaves.Get(ctx, id) })
		case e.superseded > 0 && !e.muted:
			p.start(ctx, e, func(ctx context.Context) { p.renew(ctx, id, p.askNow) })
		case len(p.watching) < cap(p.watching):
			p.watching <- struct{}{} // only this goroutine takes any
			ask := p.awaitLeaf(e.index, wait)
			p.start(ctx, e, func(ctx context.Context) {
				defer func() { <-p.watching }()
				p.renew(ctx, id, ask)
			})
		default: // a slot that gets free wakes Run
		}
	}
	return next.Sub(now)
}

// awaitLeaf asks for the next leaf after an index.
func (p *Provider) awaitLeaf(index uint64, wait time.Duration) askFunc {
	return func(ctx context.Context, id spiffeid.ID) (leafAnswer, error) {
		return p.askLeaf(ctx, id, index, wait)
	}
}

type askFunc func(context.Context, spiffeid.ID) (leafAnswer, error)

// renew asks for a leaf beside the one that is in use.
func (p *Provider) renew(ctx context.Context, id spiffeid.ID, ask askFunc) {
	if answer, err := ask(ctx, id); ctx.Err() == nil {
		p.took(id, answer, err)
	}
}

// start has a request of an entry made on a goroutine.
func (p *Provider) start(ctx context.Context, e *entry, request func(context.Context)) {
	ctx, e.cancel = context.WithCancel(ctx)
	p.tasks.Go(func() {
		request(ctx)
		p.mu.Lock()
		e.end()
		e.cancel = nil
		if e.leaf == nil && !e.due.After(p.opts.Clock.Now()) {
			// Nothing was asked: another's failure was shared.
			e.due = p.opts.Clock.Now().Add(firstWindow)
		}
		p.mu.Unlock()
		p.wakeUp()
	})
}

// took notes what came of asking for a leaf, and when to ask again.
func (p *Provider) took(id spiffeid.ID, answer leafAnswer, err error) {
	p.mu.Lock()
	e := p.entries[id]
	if e == nil { // for a handshake, before anybody said that it is to be kept
		e = &entry{}
		p.entries[id] = e
	}
	now := p.opts.Clock.Now()
	if err != nil {
		if !e.muted {
			e.index = 0
		}
		e.due = now.Add(e.back.next(err))
		p.report(id, e, err)
		p.mu.Unlock()
		return
	}
	e.back.next(nil)
	p.recovered(id, e)
	renewed := !sameLeaf(e.leaf, answer.leaf)
	e.leaf, e.index = answer.leaf, answer.index
	switch e.due = softEnd(e.leaf); {
	case p.trusted.Load().signed(e.leaf):
		e.superseded, e.muted = 0, false
	case e.superseded > 0 && renewed:
		e.superseded--
		e.due, e.muted = now.Add(rand.N(p.opts.RotationWindow)), false
	case e.superseded > 0:
		e.due, e.muted = now, true
	}
	// It may be renewed any time: more of the blocking query, after a pause in
	// case it doesn't block.
	e.due = latest(e.due, now.Add(betweenQueries+rand.N(betweenQueries)))
	p.mu.Unlock()
	if renewed {
		p.leaves.Put(id, answer.leaf)
		p.log.Debug("leaf from Consul", "identity", id.String(), "notAfter", answer.leaf.Leaf.NotAfter)
		p.Notify()
	}
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// softEnd is when the agent may begin to renew a leaf.
func softEnd(leaf *tls.Certificate) time.Time {
	from, until := validity(leaf)
	return from.Add(time.Duration(soften * float64(until.Sub(from))))
}
