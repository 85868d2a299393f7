// SPDX-License-Identifier: Apache-2.0

package consul

import (
	"context"
	"time"
)

const (
	// sweepShare bounds the time spent on sweeps: after one that took a
	// second, the next one begins sweepShare seconds later at the earliest.
	sweepShare = 10
	// sweepAgain is when a sweep is repeated: the agent's views may lag
	// behind the servers that said that something changed.
	sweepAgain = time.Second
	// sweepInterval is how often everything is asked again all the same.
	sweepInterval = 5 * time.Minute
	// sweepWait is the wait of a question that is not to wait.
	sweepWait = time.Millisecond
)

// sweep asks every target that has no query of its own whether it changed.
type sweep struct {
	wanted   bool
	due      time.Time // when it may begin
	repeat   bool      // once more after this one
	began    time.Time
	underWay bool
	timer    func() // stops the alarm
}

// sweepSoon is called when something in the catalog changed.
func (c *checks) sweepSoon() {
	c.sweeping.wanted, c.sweeping.repeat = true, true
}

// next begins a sweep if one is wanted and due, and sets the alarm for the
// following one. It is called when no fetch is under way.
func (s *sweep) next(ctx context.Context, c *checks) {
	now := time.Now()
	if s.underWay { // and now over
		s.underWay = false
		s.due = now.Add(sweepShare * now.Sub(s.began))
		after := sweepInterval
		if s.repeat {
			s.repeat, after = false, max(sweepAgain, s.due.Sub(now))
		}
		s.alarm(ctx, c, after)
	}
	if !s.wanted {
		return
	}
	if c.watching == nil {
		s.wanted, s.repeat = false, false
		return
	}
	if now.Before(s.due) {
		if s.timer == nil {
			s.alarm(ctx, c, s.due.Sub(now))
		}
		return
	}
	s.wanted, s.underWay, s.began = false, true, now
	for _, t := range c.run.targets {
		if t.stop == nil {
			c.run.fetches.target(t, sweepWait)
		}
	}
	c.run.fetches.pump(ctx)
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
