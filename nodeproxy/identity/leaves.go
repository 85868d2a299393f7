// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"context"
	"crypto/tls"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// retryLeafAfter keeps handshakes from asking a CA that has just refused.
const retryLeafAfter = time.Second

// Leaves keeps the current leaf of each identity for providers that fetch or
// issue them one by one. Reading is lock-free; the first readers of an identity
// share one fetch.
type Leaves struct {
	fetch   func(context.Context, spiffeid.ID) (*tls.Certificate, error)
	clock   Clock
	entries sync.Map // of spiffeid.ID to *leafEntry
}

type leafEntry struct {
	current atomic.Pointer[tls.Certificate]
	used    atomic.Bool // since current was fetched

	fetching chan struct{} // a lock that can be waited for with a context
	failed   error         // of the last fetch; guarded by fetching
	failedAt time.Time
}

// NewLeaves makes an empty set that gets its leaves from fetch.
func NewLeaves(fetch func(context.Context, spiffeid.ID) (*tls.Certificate, error), clock Clock) *Leaves {
	return &Leaves{fetch: fetch, clock: clock}
}

// Get returns the current leaf, fetching it when there is none that is valid.
func (l *Leaves) Get(ctx context.Context, id spiffeid.ID) (*tls.Certificate, error) {
	e := l.entry(id)
	if leaf := l.valid(e); leaf != nil {
		if !e.used.Load() {
			e.used.Store(true)
		}
		return leaf, nil
	}
	if err := e.lock(ctx); err != nil {
		return nil, err
	}
	defer e.unlock()
	if leaf := l.valid(e); leaf != nil {
		return leaf, nil
	}
	if e.failed != nil && l.clock.Now().Sub(e.failedAt) < retryLeafAfter {
		return nil, e.failed
	}
	leaf, err := l.fetchLocked(ctx, id, e)
	e.used.Store(err == nil)
	return leaf, err
}

// Renew replaces the leaf. When it fails, the old one stays.
func (l *Leaves) Renew(ctx context.Context, id spiffeid.ID) error {
	e := l.entry(id)
	if err := e.lock(ctx); err != nil {
		return err
	}
	defer e.unlock()
	_, err := l.fetchLocked(ctx, id, e)
	return err
}

func (l *Leaves) fetchLocked(ctx context.Context, id spiffeid.ID, e *leafEntry) (*tls.Certificate, error) {
	leaf, err := l.fetch(ctx, id)
	if err != nil {
		err = fmt.Errorf("%w: %w", ErrNoLeaf, err)
		if ctx.Err() == nil { // otherwise it is this caller's failure only
			e.failed, e.failedAt = err, l.clock.Now()
		}
		return nil, err
	}
	e.failed = nil
	e.used.Store(false)
	e.current.Store(leaf)
	return leaf, nil
}

// Put makes the leaf the current one, however it was come by.
func (l *Leaves) Put(id spiffeid.ID, leaf *tls.Certificate) {
	e := l.entry(id)
	e.used.Store(false)
	e.current.Store(leaf)
}

// Forget drops the leaf; the next Get fetches a new one.
func (l *Leaves) Forget(id spiffeid.ID) { l.entries.Delete(id) }

// Used reports whether anybody got the leaf since it was fetched.
func (l *Leaves) Used(id spiffeid.ID) bool {
	e, ok := l.entries.Load(id)
	return ok && e.(*leafEntry).used.Load()
}

// Peek returns the leaf as it is, valid or not, or nil. It does not count as
// use.
func (l *Leaves) Peek(id spiffeid.ID) *tls.Certificate {
	if e, ok := l.entries.Load(id); ok {
		return e.(*leafEntry).current.Load()
	}
	return nil
}

// All calls visit for every leaf, in no order.
func (l *Leaves) All(visit func(spiffeid.ID, *tls.Certificate)) {
	l.entries.Range(func(id, e any) bool {
		if leaf := e.(*leafEntry).current.Load(); leaf != nil {
			visit(id.(spiffeid.ID), leaf)
		}
		return true
	})
}

func (l *Leaves) entry(id spiffeid.ID) *leafEntry {
	if e, ok := l.entries.Load(id); ok {
		return e.(*leafEntry)
	}
	e, _ := l.entries.LoadOrStore(id, &leafEntry{fetching: make(chan struct{}, 1)})
	return e.(*leafEntry)
}

func (l *Leaves) valid(e *leafEntry) *tls.Certificate {
	if leaf := e.current.Load(); leaf != nil && l.clock.Now().Before(leaf.Leaf.NotAfter) {
		return leaf
	}
	return nil
}

func (e *leafEntry) lock(ctx context.Context) error {
	select {
	case e.fetching <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for leaf: %w", ctx.Err())
	}
}

func (e *leafEntry) unlock() { <-e.fetching }
