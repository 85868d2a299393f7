// SPDX-License-Identifier: Apache-2.0

package dns

import "sync"

// limiter bounds how much goes on at a time, altogether and per client.
type limiter struct {
	total, perClient int

	mu      sync.Mutex
	sum     int
	clients map[string]int
}

func newLimiter(total, perClient int) *limiter {
	return &limiter{total: total, perClient: perClient, clients: map[string]int{}}
}

// acquire takes a place for the client, if there is one, and returns how to
// give it back.
func (l *limiter) acquire(client string) (release func(), ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.sum >= l.total || l.clients[client] >= l.perClient {
		return nil, false
	}
	l.sum++
	l.clients[client]++
	return func() { l.release(client) }, true
}

// taken is the number of places that are not free.
func (l *limiter) taken() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.sum
}

func (l *limiter) release(client string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sum--
	if l.clients[client]--; l.clients[client] == 0 {
		delete(l.clients, client)
	}
}
