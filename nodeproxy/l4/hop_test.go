// SPDX-License-Identifier: Apache-2.0

package l4

import "testing"

// TestMixing: a change that is seen concerns its turn and the next one, and more
// while turns have no place for all events.
func TestMixing(t *testing.T) {
	var m mixing
	for i, turn := range []struct {
		counter uint32
		full    bool
		want    bool
	}{
		{0, false, false},
		{0, true, false},
		{1, false, true},
		{1, false, true}, // an edge from before the change may come now
		{1, false, false},
		{2, true, true},
		{2, true, true}, // or be left for the turn after this
		{2, true, true},
		{2, false, true},
		{2, true, false},
		{3, false, true},
		{4, false, true},
		{4, false, true},
		{4, false, false},
	} {
		if m.look(turn.counter, turn.full); m.is != turn.want {
			t.Errorf("turn %d: %v", i, m.is)
		}
	}
}
