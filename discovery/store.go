// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"sync"
	"sync/atomic"

	"github.com/meshproxy/meshproxy/discovery/mesh"
)

// Store holds the snapshot in force. All methods may be called from any
// goroutine.
type Store struct {
	current atomic.Pointer[mesh.Snapshot]

	mu          sync.Mutex
	subscribers map[*subscriber]struct{}
}

type subscriber struct{ changed chan struct{} }

// NewStore returns a store with an initial snapshot, which must not be nil.
func NewStore(initial *mesh.Snapshot) *Store {
	s := &Store{subscribers: make(map[*subscriber]struct{})}
	s.current.Store(initial)
	return s
}

// Load returns the snapshot in force; never nil. It takes no lock.
func (s *Store) Load() *mesh.Snapshot { return s.current.Load() }

// Publish puts a snapshot in force and tells the subscribers.
func (s *Store) Publish(next *mesh.Snapshot) {
	s.current.Store(next)
	s.mu.Lock()
	defer s.mu.Unlock()
	for sub := range s.subscribers {
		select {
		case sub.changed <- struct{}{}:
		default: // it has not looked since the last time, and will see this one too
		}
	}
}

// Subscribe returns a channel that receives a value after each change;
// changes that come faster than they are received become one. The first value
// is there at once, so that a subscriber needs no special first step. cancel
// ends the subscription; the channel is never closed.
func (s *Store) Subscribe() (changed <-chan struct{}, cancel func()) {
	sub := &subscriber{changed: make(chan struct{}, 1)}
	sub.changed <- struct{}{}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.subscribers[sub] = struct{}{}
	return sub.changed, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.subscribers, sub)
	}
}
