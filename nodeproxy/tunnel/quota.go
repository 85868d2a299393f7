// SPDX-License-Identifier: Apache-2.0

package tunnel

import (
	"sync"
	"time"
)

// A peer that keeps coming back must not fill the log: so many lines are
// written at once, and one more after each interval.
const (
	quotaBurst    = 10
	quotaInterval = time.Second
)

// quota bounds how often something is logged.
type quota struct {
	mu         sync.Mutex
	left       int
	refilled   time.Time
	suppressed int
}

// take reports whether to log now, and how many lines were left out before.
func (q *quota) take(now time.Time) (suppressed int, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if n := now.Sub(q.refilled) / quotaInterval; n > 0 {
		q.left, q.refilled = int(min(quotaBurst, time.Duration(q.left)+n)), now
	}
	if q.left == 0 {
		q.suppressed++
		return 0, false
	}
	suppressed, q.suppressed = q.suppressed, 0
	q.left--
	return suppressed, true
}
