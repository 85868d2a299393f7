// SPDX-License-Identifier: Apache-2.0

package h2

import (
	"math/rand/v2"
	"testing"
)

// TestTableLikeAMap: any order of putting and removing, ids in a row and ids that
// a peer has spread.
func TestTableLikeAMap(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 3))
	for _, stride := range []uint32{2, 4096, 1 << 18} {
		var tab table
		model := map[uint32]*Stream{}
		next := uint32(1)
		for range 20_000 {
			if n := len(model); n < 200 && r.IntN(100) < 55 {
				s := &Stream{id: next}
				next += stride * uint32(1+r.IntN(2))
				next &= maxStreamID
				if model[s.id] == nil {
					model[s.id] = s
					tab.put(s)
				}
			} else {
				for id := range model { // any
					delete(model, id)
					tab.remove(id)
					tab.remove(id) // not there: no effect
					break
				}
			}
			if tab.count != len(model) {
				t.Fatalf("%d streams, want %d", tab.count, len(model))
			}
			probe := uint32(r.IntN(1 << 20))
			if tab.get(probe) != model[probe] {
				t.Fatalf("id %d", probe)
			}
		}
		for id, s := range model {
			if tab.get(id) != s {
				t.Fatalf("stride %d: id %d is lost", stride, id)
			}
		}
		list := tab.all()
		for i := range list {
			if i > 0 && list[i-1].id >= list[i].id {
				t.Fatal("streams are not in the order of their ids")
			}
		}
		for _, s := range list {
			tab.remove(s.id)
		}
		if len(tab.slots) > minSlots {
			t.Errorf("empty table keeps %d slots", len(tab.slots))
		}
	}
}
