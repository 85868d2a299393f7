// SPDX-License-Identifier: Apache-2.0

package sockmap

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
)

// table is a map whose only writer is this process. It remembers the contents,
// so that bringing it up to date costs what changed.
//
// Adding and removing are separate steps: Apply adds in all tables before it
// removes in any, so that no entry refers to what isn't there.
type table[K, V comparable] struct {
	m    *ebpf.Map
	have map[K]V
}

// openTable reads what an earlier process left in m.
func openTable[K, V comparable](m *ebpf.Map) (*table[K, V], error) {
	have, err := contents[K, V](m)
	if err != nil {
		return nil, err
	}
	return &table[K, V]{m: m, have: have}, nil
}

// put adds and changes what differs from want. An entry that changes is
// replaced in place.
func (t *table[K, V]) put(want map[K]V) error {
	for k, v := range want {
		if have, ok := t.have[k]; ok && have == v {
			continue
		}
		if err := t.set(k, v); err != nil {
			return err
		}
	}
	return nil
}

func (t *table[K, V]) set(k K, v V) error {
	if err := t.m.Update(k, v, ebpf.UpdateAny); err != nil {
		return fmt.Errorf("update %s: %w", t.m, err)
	}
	t.have[k] = v
	return nil
}

// prune removes what want does not have.
func (t *table[K, V]) prune(want map[K]V) error {
	for k := range t.have {
		if _, ok := want[k]; ok {
			continue
		}
		if err := t.remove(k); err != nil {
			return err
		}
	}
	return nil
}

func (t *table[K, V]) remove(k K) error {
	if err := t.m.Delete(k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("delete from %s: %w", t.m, err)
	}
	delete(t.have, k)
	return nil
}

// contents reads a map that the kernel may be writing at the same time.
// Iteration starts over when the entry it stands on is deleted under it, which
// can repeat entries, hence the map; giving up after too many of these would
// only be an error of the kernel's doing, so it is tried again.
func contents[K, V comparable](m *ebpf.Map) (map[K]V, error) {
	const tries = 5
	for try := 1; ; try++ {
		var (
			k    K
			v    V
			have = make(map[K]V)
			it   = m.Iterate()
		)
		for it.Next(&k, &v) {
			have[k] = v
		}
		err := it.Err()
		if err == nil {
			return have, nil
		}
		if try == tries || !errors.Is(err, ebpf.ErrIterationAborted) {
			return nil, fmt.Errorf("read %s: %w", m, err)
		}
	}
}
