// SPDX-License-Identifier: Apache-2.0

package consul

import (
	"math/rand/v2"
	"time"

	"github.com/meshproxy/meshproxy/discovery/consulagent"
)

// The windows within which something that failed is tried again: at a random
// moment, so that nodes that failed together don't come back together
// (https://github.com/banks/sim-rate-limit-backoff is why Consul does so).
const (
	firstWindow = time.Second
	lastWindow  = 30 * time.Second
	// A refusal lasts until somebody changes a token or a policy.
	refusedWindow = 10 * time.Second
)

// backoff counts failures in a row.
type backoff struct{ failures int }

// next returns when to try again after err, counted from now.
func (b *backoff) next(err error) time.Duration {
	if err == nil {
		b.failures = 0
		return 0
	}
	window := min(firstWindow<<min(b.failures, 10), lastWindow)
	b.failures++
	if consulagent.Refused(err) {
		window = max(window, refusedWindow)
	}
	return window/4 + rand.N(window*3/4)
}
