// SPDX-License-Identifier: Apache-2.0

package h2

import (
	"cmp"
	"math/rand/v2"
	"slices"
)

// table finds a connection's streams by id: open addressing, linear probing. A
// tunnel's streams live long and its table is mostly looked into, so it is one
// word per slot and nothing else: 11 to 21 bytes per stream where a map takes 25
// to 37, and two to three times as fast (BenchmarkTable).
//
// The peer of a server chooses the ids. The multiplier is random so that it cannot
// choose them to collide.
type table struct {
	slots []*Stream // length is a power of two, or 0
	count int
	mult  uint32
}

const minSlots = 8

func (t *table) home(id uint32) uint32 {
	// Ids are odd. The high bits of a product are the well mixed ones.
	return uint32(uint64((id>>1)*t.mult) * uint64(len(t.slots)) >> 32)
}

func (t *table) get(id uint32) *Stream {
	if t.count == 0 {
		return nil
	}
	mask := uint32(len(t.slots) - 1)
	for i := t.home(id); ; i = (i + 1) & mask {
		if s := t.slots[i]; s == nil || s.id == id {
			return s
		}
	}
}

// put adds a stream whose id is not in the table.
func (t *table) put(s *Stream) {
	if (t.count+1)*4 > len(t.slots)*3 {
		t.resize(max(minSlots, len(t.slots)*2))
	}
	t.count++
	t.place(s)
}

func (t *table) place(s *Stream) {
	mask := uint32(len(t.slots) - 1)
	i := t.home(s.id)
	for t.slots[i] != nil {
		i = (i + 1) & mask
	}
	t.slots[i] = s
}

// remove closes the gap by moving back what had to probe past it, so that no
// tombstones pile up on a connection that lives for months.
func (t *table) remove(id uint32) {
	if t.count == 0 {
		return
	}
	mask := uint32(len(t.slots) - 1)
	i := t.home(id)
	for t.slots[i] == nil || t.slots[i].id != id {
		if t.slots[i] == nil {
			return
		}
		i = (i + 1) & mask
	}
	for j := (i + 1) & mask; t.slots[j] != nil; j = (j + 1) & mask {
		if home := t.home(t.slots[j].id); (j-home)&mask >= (j-i)&mask {
			t.slots[i] = t.slots[j]
			i = j
		}
	}
	t.slots[i] = nil
	t.count--
	if len(t.slots) > minSlots && t.count < len(t.slots)/8 {
		t.resize(len(t.slots) / 2)
	}
}

func (t *table) resize(n int) {
	if t.mult == 0 {
		t.mult = rand.Uint32() | 1
	}
	old := t.slots
	t.slots = make([]*Stream, n)
	for _, s := range old {
		if s != nil {
			t.place(s)
		}
	}
}

// all returns the streams as they are now: callbacks may change the table while
// the caller walks the result. The order is that of the ids.
func (t *table) all() []*Stream {
	list := make([]*Stream, 0, t.count)
	for _, s := range t.slots {
		if s != nil {
			list = append(list, s)
		}
	}
	sortByID(list)
	return list
}

func sortByID(list []*Stream) {
	slices.SortFunc(list, func(a, b *Stream) int { return cmp.Compare(a.id, b.id) })
}
