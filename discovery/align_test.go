// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"cmp"
	"math/rand/v2"
	"slices"
	"testing"
)

// TestInOrderLike compares with the plain check, for lists that change a little.
func TestInOrderLike(t *testing.T) {
	compare := func(a, b *int) int { return cmp.Compare(*a, *b) }
	yes, no := 0, 0
	for range 2000 {
		var before []*int
		for i := range rand.N(8) {
			n := 2 * i
			before = append(before, &n)
		}
		list := slices.Clone(before)
		for range rand.N(3) {
			n, at := rand.N(16), rand.N(len(list)+1)
			switch {
			case at < len(list) && rand.N(2) == 0:
				list[at] = &n
			case at < len(list) && rand.N(2) == 0:
				list = slices.Delete(list, at, at+1)
			default:
				list = slices.Insert(list, at, &n)
			}
		}
		want := slices.IsSortedFunc(list, compare)
		if got := inOrderLike(before, list, compare); got != want {
			t.Fatalf("%v, want %v", got, want)
		}
		if want {
			yes++
		} else {
			no++
		}
	}
	if yes == 0 || no == 0 {
		t.Errorf("%d sorted, %d not", yes, no)
	}
}
