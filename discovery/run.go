// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime/debug"
	"sync"
	"time"
)

// Delays before a failed source is run again.
const (
	minRestart = time.Second
	maxRestart = 30 * time.Second
	// steady is how long a source must have run for its failures to count
	// anew.
	steady = time.Minute
)

var errEnded = errors.New("the source ended")

// runSource runs one source again and again until ctx is done.
func (m *Merger) runSource(ctx context.Context, index int, s Source) {
	delay := minRestart
	for {
		began := time.Now()
		err := m.forward(ctx, index, s)
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			err = errEnded
		}
		if !m.deliver(ctx, delivery{index, Update{Err: err}}) {
			return
		}
		if time.Since(began) >= steady {
			delay = minRestart
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(delay/2 + rand.N(delay/2)):
		}
		delay = min(2*delay, maxRestart)
	}
}

// forward runs the source once and passes on what it sends.
func (m *Merger) forward(ctx context.Context, index int, s Source) error {
	updates := make(chan Update)
	done := make(chan error, 1)
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { done <- m.guarded(ctx, s, updates) })
	for {
		select {
		case u := <-updates:
			m.deliver(ctx, delivery{index, u})
		case err := <-done:
			return err
		}
	}
}

// guarded turns a panic of the source into an error: one backend's client
// library must not take the others down.
func (m *Merger) guarded(ctx context.Context, s Source, updates chan<- Update) (err error) {
	defer func() {
		if p := recover(); p != nil {
			m.opts.Logger.Error("source panicked", "source", s.Name(), "panic", p, "stack", string(debug.Stack()))
			err = fmt.Errorf("source panicked: %v", p)
		}
	}()
	return s.Run(ctx, updates)
}

func (m *Merger) deliver(ctx context.Context, d delivery) bool {
	select {
	case m.inbox <- d:
		return true
	case <-ctx.Done():
		return false
	}
}
