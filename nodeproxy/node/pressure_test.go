// SPDX-License-Identifier: Apache-2.0

package node

import (
	"testing"
	"time"

	"github.com/meshproxy/meshproxy/sockmap/cgroup"
)

// TestPressureRests: memory is read seldom while nothing comes, and often again
// from the first connection on; where it is half used, it is read often.
func TestPressureRests(t *testing.T) {
	const mib = 1 << 20
	for _, tt := range []struct {
		name    string
		usage   cgroup.Usage
		quiet   int
		want    time.Duration
		resting bool
	}{
		{"no limit", cgroup.Usage{Used: 60 * mib}, 1, pressureInterval, false},
		{"no limit, and nothing came", cgroup.Usage{Used: 60 * mib}, restAfter, restWithoutLimit, true},
		{"lately a connection", cgroup.Usage{Used: 60 * mib, Limit: 256 * mib}, restAfter - 1, pressureInterval, false},
		{"nothing came", cgroup.Usage{Used: 60 * mib, Limit: 256 * mib}, restAfter, restInterval, true},
		{"half used", cgroup.Usage{Used: 129 * mib, Limit: 256 * mib}, restAfter, pressureInterval, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := newPressure(&cgroup.Memory{})
			p.last = tt.usage
			if got := p.until(tt.quiet); got != tt.want || p.resting.Load() != tt.resting {
				t.Errorf("next reading after %s, resting %v", got, p.resting.Load())
			}
			if err := p.admit(); err != nil {
				t.Fatal(err)
			}
			if woken := len(p.wake) == 1; woken != tt.resting || p.resting.Load() {
				t.Errorf("a connection wakes: %v", woken)
			}
		})
	}
}
