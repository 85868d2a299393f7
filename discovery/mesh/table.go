// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"hash/maphash"
	"maps"
	"math/bits"
	"net/netip"
)

// shardEntries is the number of entries a shard holds on average. A changed
// entry costs a copy of its shard and of the list of shards, so for 100 000
// entries 32 balances the two (a few KB and 32 KB).
const shardEntries = 32

// table is a persistent map: an edit copies the shards it touches and shares
// the others with the table it began with, which stays as it was. The zero
// value is empty.
type table[K comparable, V any] struct {
	seed   maphash.Seed
	shards []map[K]V // length is a power of two
	length int
}

// get does not allocate as long as K holds no pointers other than strings
// (maphash.Comparable moves the rest to the heap); hence addrKey.
func (t *table[K, V]) get(k K) (V, bool) {
	if len(t.shards) == 0 {
		var zero V
		return zero, false
	}
	v, ok := t.shards[t.shard(k)][k]
	return v, ok
}

func (t *table[K, V]) shard(k K) int {
	return int(maphash.Comparable(t.seed, k) & uint64(len(t.shards)-1))
}

// tableEdit collects changes to a copy of a table.
type tableEdit[K comparable, V any] struct {
	t table[K, V]
	// owned marks the shards that this edit has copied already; nil until
	// the first change.
	owned []bool
}

// edit begins an edit of t; hint is the number of entries expected at the end.
func (t table[K, V]) edit(hint int) *tableEdit[K, V] {
	e := &tableEdit[K, V]{t: t}
	if want := shardsFor(hint); len(t.shards) == 0 || want > 4*len(t.shards) {
		e.resize(want)
	}
	return e
}

func shardsFor(entries int) int {
	n := entries / shardEntries
	if n < 1 {
		return 1
	}
	return 1 << bits.Len(uint(n-1))
}

// resize distributes the entries anew over n shards, all of them owned.
func (e *tableEdit[K, V]) resize(n int) {
	old := e.t.shards
	e.t.seed = maphash.MakeSeed()
	e.t.shards = make([]map[K]V, n)
	e.owned = make([]bool, n)
	for i := range e.owned {
		e.owned[i] = true
	}
	for _, m := range old {
		for k, v := range m {
			e.put(e.t.shard(k), k, v)
		}
	}
}

func (e *tableEdit[K, V]) put(shard int, k K, v V) {
	if e.t.shards[shard] == nil {
		e.t.shards[shard] = make(map[K]V, shardEntries)
	}
	e.t.shards[shard][k] = v
}

// own makes the shard private to this edit.
func (e *tableEdit[K, V]) own(shard int) {
	if e.owned == nil {
		e.t.shards = append([]map[K]V(nil), e.t.shards...)
		e.owned = make([]bool, len(e.t.shards))
	}
	if !e.owned[shard] {
		e.t.shards[shard] = maps.Clone(e.t.shards[shard])
		e.owned[shard] = true
	}
}

func (e *tableEdit[K, V]) get(k K) (V, bool) { return e.t.get(k) }

func (e *tableEdit[K, V]) set(k K, v V) {
	i := e.t.shard(k)
	e.own(i)
	before := len(e.t.shards[i])
	e.put(i, k, v)
	e.t.length += len(e.t.shards[i]) - before
}

func (e *tableEdit[K, V]) delete(k K) {
	i := e.t.shard(k)
	if _, ok := e.t.shards[i][k]; !ok {
		return
	}
	e.own(i)
	delete(e.t.shards[i], k)
	e.t.length--
}

// done ends the edit.
func (e *tableEdit[K, V]) done() table[K, V] {
	e.owned = nil
	return e.t
}

// addrKey is an address and port without pointers; port 0 stands for the
// address alone. IPv4 and IPv4-mapped addresses are the same key, zones are
// dropped.
type addrKey struct {
	addr [16]byte
	port uint16
}

func keyOf(a netip.Addr, port uint16) addrKey {
	if !a.IsValid() {
		return addrKey{}
	}
	return addrKey{addr: a.As16(), port: port}
}

func (k addrKey) String() string {
	a := netip.AddrFrom16(k.addr).Unmap()
	if k.port == 0 {
		return a.String()
	}
	return netip.AddrPortFrom(a, k.port).String()
}
