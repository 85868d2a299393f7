// SPDX-License-Identifier: Apache-2.0

package telemetry

import (
	"sync"
	"time"

	"github.com/meshproxy/meshproxy/nodeproxy/telemetry/reason"
)

const (
	// refusalBurst lines of one kind are written at once, then
	// refusalsPerSecond: enough to see who and why, and for 1,000 kinds a
	// disk still lasts.
	refusalBurst      = 10
	refusalsPerSecond = 1
	// refusalKinds bounds the kinds that are told apart; the others share a
	// limit.
	refusalKinds = 1024
)

// refusalKind is what refusals are limited by: one workload's flood must not
// hide another one's refusals, nor one reason another.
type refusalKind struct {
	direction Direction
	source    string
	reason    reason.Reason
}

// bucket is a token bucket.
type bucket struct {
	tokens     float64
	last       time.Time
	suppressed uint64
}

type refusalLimits struct {
	mu    sync.Mutex
	kinds map[refusalKind]*bucket
}

// allow reports whether the entry may be written, and if so how many of its
// kind were not since the last one.
func (l *refusalLimits) allow(e *Entry) (ok bool, suppressed uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.bucket(refusalKind{e.Direction, e.Source, e.Reason}, e.Time)
	b.tokens = min(refusalBurst, b.tokens+e.Time.Sub(b.last).Seconds()*refusalsPerSecond)
	b.last = e.Time
	if b.tokens < 1 {
		b.suppressed++
		return false, 0
	}
	b.tokens--
	suppressed, b.suppressed = b.suppressed, 0
	return true, suppressed
}

func (l *refusalLimits) bucket(kind refusalKind, now time.Time) *bucket {
	b := l.kinds[kind]
	if b == nil && len(l.kinds) >= refusalKinds {
		kind = refusalKind{direction: kind.direction, source: Other, reason: kind.reason}
		b = l.kinds[kind]
	}
	if b == nil {
		b = &bucket{tokens: refusalBurst, last: now}
		l.kinds[kind] = b
	}
	return b
}

type suppressedKind struct {
	kind  refusalKind
	count uint64
}

// takeSuppressed returns the kinds with unreported suppressions, and forgets
// the kinds that have been quiet for so long that their bucket is full again.
func (l *refusalLimits) takeSuppressed(now time.Time) []suppressedKind {
	l.mu.Lock()
	defer l.mu.Unlock()
	var kinds []suppressedKind
	for kind, b := range l.kinds {
		if b.suppressed > 0 {
			kinds = append(kinds, suppressedKind{kind, b.suppressed})
			b.suppressed = 0
		}
		if now.Sub(b.last) > refusalBurst*time.Second/refusalsPerSecond {
			delete(l.kinds, kind)
		}
	}
	return kinds
}
