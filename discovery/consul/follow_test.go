// SPDX-License-Identifier: Apache-2.0

package consul

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/meshproxy/meshproxy/discovery/consulagent"
)

// least and most are the bounds of what is drawn.
func least(time.Duration) time.Duration  { return 0 }
func most(n time.Duration) time.Duration { return n - 1 }

// TestJitter: from half to one and a half of what is asked for.
func TestJitter(t *testing.T) {
	for _, d := range []time.Duration{minPause, maxPause, deniedPause, pollInterval, 3} {
		if got := random(least).jittered(d); got != d/2 {
			t.Errorf("%v: at least %v", d, got)
		}
		if got := random(most).jittered(d); got != d/2+d-1 {
			t.Errorf("%v: at most %v", d, got)
		}
	}
}

// TestBackoff: pauses double up to a bound, and begin anew after a success. What
// the token may not do is asked rarely, whatever went before.
func TestBackoff(t *testing.T) {
	const ms = time.Millisecond
	down, denied := errors.New("down"), api.StatusError{Code: http.StatusForbidden, Body: "Permission denied"}
	var b backoff
	for i, want := range []time.Duration{200 * ms, 400 * ms, 800 * ms, 1600 * ms, 3200 * ms, 6400 * ms, maxPause, maxPause} {
		if got := b.next(down); got != want {
			t.Errorf("failure %d: %v, want %v", i+1, got, want)
		}
	}
	if got := b.next(denied); got != deniedPause {
		t.Errorf("denied: %v", got)
	}
	b.reset()
	if got := b.next(down); got != minPause {
		t.Errorf("after a success: %v", got)
	}
}

// TestFollowPauses: when a question is asked again, to the nanosecond, at both ends
// of what is drawn.
func TestFollowPauses(t *testing.T) {
	const ms, s = time.Millisecond, time.Second
	down := errors.New("down")
	denied := api.StatusError{Code: http.StatusForbidden, Body: "Permission denied"}
	type answer struct {
		index uint64
		err   error
		after time.Duration // that it takes
		want  time.Duration // from this question to the next
	}
	steps := []answer{
		{err: down, want: 200 * ms},
		{err: down, want: 400 * ms},
		{err: down, want: 800 * ms},
		{err: denied, want: 30 * s},
		{err: down, want: 3200 * ms},
		{err: down, want: 6400 * ms},
		{err: down, want: 10 * s},
		{err: down, want: 10 * s},
		{index: 7, after: s, want: s},         // as soon as it has come
		{err: down, want: 200 * ms},           // begins anew
		{index: 8, after: s, want: s},         //
		{index: 0, after: s, want: 6 * s},     // none to wait for
		{index: 9, after: s, want: s},         //
		{index: 9, after: s, want: 6 * s},     // early, and nothing changed
		{index: 3, after: s, want: 1200 * ms}, // backwards
		{index: 4, after: s, want: s},
	}
	for name, draw := range map[string]random{"least": least, "most": most} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				agent, err := consulagent.New(consulagent.Settings{Address: "127.0.0.1:1"}, 1)
				if err != nil {
					t.Fatal(err)
				}
				defer agent.Close()
				r := newRun(New(Options{Agent: agent, Logger: slog.New(slog.DiscardHandler)}), nil)
				r.random = draw
				ctx, cancel := context.WithCancel(t.Context())
				var at []time.Time
				go func() {
					for {
						select {
						case f := <-r.events:
							f()
						case <-ctx.Done():
							return
						}
					}
				}()
				follow(ctx, r, "question", func(_ context.Context, _ uint64, wait time.Duration) (struct{}, *api.QueryMeta, error) {
					if low, high := longWait, longWait+longWait/5; wait < low || wait >= high {
						t.Errorf("waits for %v, want from %v to %v", wait, low, high)
					}
					at = append(at, time.Now())
					if len(at) > len(steps) {
						cancel()
						return struct{}{}, nil, ctx.Err()
					}
					step := steps[len(at)-1]
					time.Sleep(step.after)
					return struct{}{}, &api.QueryMeta{LastIndex: step.index}, step.err
				}, func(struct{}, *api.QueryMeta) {})
				for i, step := range steps {
					pause := step.want - step.after
					want := step.after
					if pause > 0 {
						want += draw.jittered(pause)
					}
					if got := at[i+1].Sub(at[i]); got != want {
						t.Errorf("question %d: the next one after %v, want %v", i+1, got, want)
					}
				}
			})
		})
	}
}
