// SPDX-License-Identifier: Apache-2.0

package loop

import (
	"sync"
	"time"
)

// Stats describes a loop's life. It is published at each housekeeping, so it
// is up to one TickInterval old, and older when the loop hangs.
type Stats struct {
	Turns      uint64
	Events     uint64
	Panics     uint64
	Registered int // descriptors now

	Accepted     uint64
	AcceptPauses uint64 // accepting was paused for want of descriptors or memory

	// Busy is the time spent in turns. LongestTurn, since the publication
	// before, bounds how long an event had to wait for the loop's attention.
	Busy        time.Duration
	LongestTurn time.Duration
}

type counters struct {
	Stats // the loop's own

	mu        sync.Mutex
	published Stats
}

func (c *counters) publish(registered int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.Registered = registered
	c.published = c.Stats
	c.LongestTurn = 0
}

// Stats returns what was last published.
func (l *Loop) Stats() Stats {
	l.stats.mu.Lock()
	defer l.stats.mu.Unlock()
	return l.stats.published
}
