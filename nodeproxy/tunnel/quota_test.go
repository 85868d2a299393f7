// SPDX-License-Identifier: Apache-2.0

package tunnel

import (
	"testing"
	"time"
)

func TestQuota(t *testing.T) {
	var q quota
	now := time.Now()
	for i := range quotaBurst {
		if left, ok := q.take(now); !ok || left != 0 {
			t.Fatalf("line %d: %v, %d left out", i, ok, left)
		}
	}
	for range 3 {
		if _, ok := q.take(now); ok {
			t.Fatal("more than a burst")
		}
	}
	now = now.Add(quotaInterval)
	if left, ok := q.take(now); !ok || left != 3 {
		t.Errorf("after a while: %v, %d left out", ok, left)
	}
	if _, ok := q.take(now); ok {
		t.Error("more than one in an interval")
	}
	now = now.Add(time.Hour)
	for range quotaBurst {
		if _, ok := q.take(now); !ok {
			t.Fatal("no burst after a rest")
		}
	}
}
