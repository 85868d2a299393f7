// SPDX-License-Identifier: Apache-2.0

package discovery

import "slices"

// align walks two sorted lists side by side. It calls visit with the indexes
// of items of the same name, with is = -1 for what is in before only, and with
// was = -1 for what is in now only. Equal pointers are not looked into.
func align[T any](before, now []*T, compare func(a, b *T) int, visit func(was, is int)) {
	i, j := 0, 0
	for i < len(before) || j < len(now) {
		c := 0
		switch {
		case i == len(before):
			c = 1
		case j == len(now):
			c = -1
		case before[i] != now[j]:
			c = compare(before[i], now[j])
		}
		switch {
		case c < 0:
			visit(i, -1)
			i++
		case c > 0:
			visit(-1, j)
			j++
		default:
			visit(i, j)
			i, j = i+1, j+1
		}
	}
}

// inOrder returns list sorted; the same list if it is already.
func inOrder[T any](list []*T, compare func(a, b *T) int) []*T {
	if slices.IsSortedFunc(list, compare) {
		return list
	}
	list = slices.Clone(list)
	slices.SortStableFunc(list, compare)
	return list
}

// inOrderLike reports whether list is sorted, knowing that before is: only items
// that differ from those at the same place are compared with their neighbours.
func inOrderLike[T any](before, list []*T, compare func(a, b *T) int) bool {
	same := true // the item before list[i]
	for i, item := range list {
		now := i < len(before) && before[i] == item
		if i > 0 && (!same || !now) && compare(list[i-1], item) > 0 {
			return false
		}
		same = now
	}
	return true
}
