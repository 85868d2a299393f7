// SPDX-License-Identifier: Apache-2.0

package h2

import "testing"

func TestPoolLetsGoOfABurst(t *testing.T) {
	p := NewBatchPool()
	p.size(DefaultSlots)
	var burst []*Batch
	for range keepBatches {
		burst = append(burst, p.get())
	}
	for _, b := range burst {
		p.put(b)
	}
	p.Trim() // the burst was within this period
	for n := 0; len(p.free) > 0; n++ {
		if n > 10 {
			t.Fatalf("%d batches are kept", len(p.free))
		}
		p.Trim()
	}
	// What is in use all the time is kept.
	p.put(p.get())
	for range 10 {
		p.put(p.get())
		p.Trim()
	}
	if len(p.free) != 1 {
		t.Errorf("%d batches are kept, want the one in use", len(p.free))
	}
}
