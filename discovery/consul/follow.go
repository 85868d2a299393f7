// SPDX-License-Identifier: Apache-2.0

package consul

import (
	"context"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/meshproxy/meshproxy/discovery/consulagent"
)

const (
	minPause = 200 * time.Millisecond
	maxPause = 10 * time.Second
	// deniedPause is for what the token may not do.
	deniedPause = 30 * time.Second
	// pace is the least time between two answers to a query, so that a busy
	// catalog does not make the node busy.
	pace = 30 * time.Millisecond
	// noIndexPause is for an agent that gives no index to wait for.
	noIndexPause = 5 * time.Second
)

// random draws from [0, n), as rand.N does, for any goroutine.
type random func(n time.Duration) time.Duration

// jittered is between half of d and one and a half of it.
func (r random) jittered(d time.Duration) time.Duration { return d/2 + r(d) }

// backoff are the pauses after failures in a row.
type backoff struct{ last time.Duration }

func (b *backoff) next(err error) time.Duration {
	b.last = min(max(2*b.last, minPause), maxPause)
	if refused(err) {
		return deniedPause
	}
	return b.last
}

func (b *backoff) reset() { b.last = 0 }

// asker asks a question with an index to wait for a change of.
type asker[T any] func(ctx context.Context, index uint64, wait time.Duration) (T, *api.QueryMeta, error)

// follow asks again and again until ctx is done, and hands what changed to
// take, on the run's goroutine. Indexes are not taken at their word: one that is
// none, or does not move although the answer came early, costs a pause and is
// not waited for. A restore shows in this way: servers let go of whoever waits,
// with the answer of before (agent/blockingquery), and go on from an older index.
func follow[T any](ctx context.Context, r *run, what string, ask asker[T], take func(T, *api.QueryMeta)) {
	var index, latest uint64 // to wait for, and that of the last answer
	var last time.Time       // of the last answer
	var pause backoff
	for {
		wait, asked := longWait+r.random(longWait/5), time.Now()
		v, meta, err := ask(unlessLate(ctx, index, asked.Add(wait/2)), index, wait)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			r.post(ctx, func() {
				if ctx.Err() == nil {
					r.failed(what, err)
				}
			})
			// Whatever it was, the next answer is to come at once.
			index = 0
			if !sleep(ctx, r.random.jittered(pause.next(err))) {
				return
			}
			continue
		}
		pause.reset()
		stuck := index != 0 && meta.LastIndex == index && time.Since(asked) < wait/2
		changed := index == 0 || meta.LastIndex != index || stuck
		backwards := meta.LastIndex < latest
		index, latest = meta.LastIndex, meta.LastIndex
		r.post(ctx, func() {
			if ctx.Err() != nil {
				return // the question is another one by now
			}
			r.worked(what)
			if changed {
				take(v, meta)
			}
			if backwards && meta.QueryBackend != streaming {
				r.restored()
			}
		})
		rest := pace - time.Since(last)
		switch {
		case index == 0 || stuck:
			index = 0
			rest = r.random.jittered(noIndexPause)
		case backwards:
			rest = r.random.jittered(minPause)
		}
		if !sleep(ctx, rest) {
			return
		}
		last = time.Now()
	}
}

// unlessLate spares the answer that ends a wait for nothing: it is what is known.
func unlessLate(ctx context.Context, index uint64, late time.Time) context.Context {
	if index == 0 {
		return ctx
	}
	return consulagent.UnlessAfter(ctx, index, late)
}

// restored has all targets asked for anew. Queries with an index of before wait
// for it to come again: the agent answers them from views of its own, and does
// not tell them that these have begun anew (agent/submatview).
func (r *run) restored() {
	for _, t := range r.targets {
		t.index, t.since = 0, 0
		if t.stop != nil {
			t.stop()
			t.stop = nil
		}
	}
	r.checks.stale = true
	r.checks.sweepSoon()
}

// sleep waits for d; false when ctx ended.
func sleep(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// get makes an asker of a GET.
func get[T any](r *run, q question) asker[T] {
	return func(ctx context.Context, index uint64, wait time.Duration) (v T, meta *api.QueryMeta, err error) {
		q.index, q.wait = index, wait
		meta, err = r.ask(ctx, q, &v)
		return v, meta, err
	}
}
