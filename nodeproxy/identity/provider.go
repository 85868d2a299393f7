// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"context"
	"crypto/tls"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Provider hands out leaves and the trust bundle. All methods may be called
// from any goroutine.
type Provider interface {
	// Leaf returns the current leaf of the identity, its Leaf field set. It
	// is fast except for the first use of an identity. Callers must not
	// modify it, nor keep it beyond a handshake. Without a valid leaf the
	// error is ErrNoLeaf.
	Leaf(ctx context.Context, id spiffeid.ID) (*tls.Certificate, error)
	// Bundle returns the current trust bundle, never nil.
	Bundle() *Bundle
	// Changed returns a channel that is closed at the next change of the
	// bundle or of a leaf. Any number of callers may wait on it; one that
	// takes the channel before it reads the state misses nothing.
	Changed() <-chan struct{}
}

// Heritable is a Provider whose leaves live in memory only, so that a node that
// takes over from another process has to be handed them.
type Heritable interface {
	Provider
	// Export returns the leaves with their keys, and the trust bundle, for
	// Import. It must never be written to a disk as it is.
	Export() ([]byte, error)
	// Import takes over what is still valid of it, before Run.
	Import([]byte) error
}

// Clock tells the time to providers. Tests bring their own.
type Clock interface {
	Now() time.Time
	After(d time.Duration) <-chan time.Time
}

// SystemClock is the machine's clock.
type SystemClock struct{}

// Now is time.Now.
func (SystemClock) Now() time.Time { return time.Now() }

// After is time.After.
func (SystemClock) After(d time.Duration) <-chan time.Time { return time.After(d) }

// Notifier implements Provider.Changed. The zero value is ready.
type Notifier struct {
	mu sync.Mutex
	ch chan struct{}
}

// Changed returns the channel that the next Notify closes.
func (n *Notifier) Changed() <-chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.ch == nil {
		n.ch = make(chan struct{})
	}
	return n.ch
}

// Notify wakes everybody who waits. Changes that nobody has waited for since
// the last one come down to one.
func (n *Notifier) Notify() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.ch != nil {
		close(n.ch)
		n.ch = nil
	}
}
