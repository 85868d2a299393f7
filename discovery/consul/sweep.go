// SPDX-License-Identifier: Apache-2.0

package consul

import (
	"context"
	"net/http"
	"time"

	"github.com/meshproxy/meshproxy/discovery/consulagent"
)

const (
	// sweepShare bounds the time spent on sweeps: after one that took a
	// second, the next one begins sweepShare seconds later at the earliest.
	sweepShare = 10
	// sweepInterval is how often everything is asked again all the same.
	sweepInterval = 5 * time.Minute
	// sweepWait is the wait of a question that is not to wait.
	sweepWait = time.Millisecond
)

// sweepAgain is when a sweep is repeated: the agent's views may lag behind the
// servers that said that something changed, and which of them it is about no
// answer says.
var sweepAgain = []time.Duration{time.Second, 5 * time.Second}

// sweep asks every target that has no query of its own whether it changed.
type sweep struct {
	wanted   bool
	due      time.Time       // when it may begin
	repeats  []time.Duration // when it is to be repeated
	began    time.Time
	underWay bool
	glancing bool   // it has begun
	timer    func() // stops the alarm
}

// sweepSoon is called when something in the catalog changed.
func (c *checks) sweepSoon() {
	c.sweeping.wanted, c.sweeping.repeats = true, sweepAgain
}

// next begins a sweep if one is wanted and due, and sets the alarm for the
// following one. It is called when no fetch is under way.
func (s *sweep) next(ctx context.Context, c *checks) {
	if s.glancing {
		return
	}
	now := time.Now()
	if s.underWay { // and now over
		s.underWay = false
		s.due = now.Add(sweepShare * now.Sub(s.began))
		after := sweepInterval
		if len(s.repeats) > 0 {
			after = max(s.repeats[0], s.due.Sub(now))
			s.repeats = s.repeats[1:]
		}
		s.alarm(ctx, c, after)
	}
	if !s.wanted {
		return
	}
	if c.watching == nil {
		s.wanted, s.repeats = false, nil
		return
	}
	if now.Before(s.due) {
		if s.timer == nil {
			s.alarm(ctx, c, s.due.Sub(now))
		}
		return
	}
	s.wanted, s.underWay, s.began = false, true, now
	var known []*targetState
	for _, t := range c.run.targets {
		switch {
		case t.stop != nil:
		case t.known():
			known = append(known, t)
		default:
			c.run.fetches.target(t, sweepWait)
		}
	}
	if len(known) > maxFetches {
		s.glance(ctx, c.run, known)
	} else {
		for _, t := range known { // as many as fit at a time
			c.run.fetches.target(t, sweepWait)
		}
	}
	c.run.fetches.pump(ctx)
}

// glance has those of the targets asked for that may have changed. Mostly none
// has, and to find that out is nearly all of what a sweep costs.
func (s *sweep) glance(ctx context.Context, r *run, list []*targetState) {
	questions, indexes := make([]consulagent.Question, len(list)), make([]uint64, len(list))
	for i, t := range list {
		q := t.key.question()
		// What is older than any answer is answered at once.
		q.index, q.wait = 1, sweepWait
		questions[i], indexes[i] = consulagent.Question{Path: q.path, Options: r.options(q)}, t.index
	}
	same := make([]bool, len(list))
	s.glancing = true
	r.tasks.Go(func() {
		err := r.opts.Agent.Glance(ctx, questions, func(i int, a consulagent.Answer) {
			same[i] = a.Status == http.StatusOK && a.Index == indexes[i] && !a.Filtered
		})
		if err != nil && ctx.Err() == nil {
			r.log.Debug("ask whether services have changed; each is asked for", "error", err)
		}
		r.post(ctx, func() {
			s.glancing = false
			for i, t := range list {
				if !same[i] && r.targets[t.key] == t && t.stop == nil {
					r.fetches.target(t, sweepWait)
				}
			}
		})
	})
}

func (s *sweep) alarm(ctx context.Context, c *checks, after time.Duration) {
	if s.timer != nil {
		s.timer()
	}
	ctx, cancel := context.WithCancel(ctx)
	s.timer = cancel
	c.run.tasks.Go(func() {
		defer cancel()
		if sleep(ctx, after) {
			c.run.post(ctx, func() {
				s.timer = nil
				s.wanted = true
			})
		}
	})
}
