// SPDX-License-Identifier: Apache-2.0

package loop

import (
	"container/heap"
	"time"
)

// Timer is a call in the future. Timers are for what is rare: one per tunnel,
// per dial, per sweep. Whoever has ten thousand connections to watch keeps a
// coarse stamp of Now in each and looks at a part of them Every so often; that
// costs four bytes a connection instead of a timer.
type Timer struct {
	loop  *Loop
	due   time.Duration
	every time.Duration
	index int // in the heap, -1 when it is not armed
	fire  func()
}

// After calls f once, d from now or a little later.
func (l *Loop) After(d time.Duration, f func()) *Timer {
	return l.arm(&Timer{loop: l, due: l.clock() + d, fire: f})
}

// Every calls f each d until the timer is stopped. Calls that a long turn has
// delayed are not made up for.
func (l *Loop) Every(d time.Duration, f func()) *Timer {
	return l.arm(&Timer{loop: l, due: l.clock() + d, every: d, fire: f})
}

func (l *Loop) arm(t *Timer) *Timer {
	heap.Push(&l.timers, t)
	return t
}

// Stop cancels the timer. A nil or stopped timer may be stopped again.
func (t *Timer) Stop() {
	if t == nil {
		return
	}
	t.every = 0
	if t.index >= 0 {
		heap.Remove(&t.loop.timers, t.index)
	}
}

func (l *Loop) fireTimers() {
	for len(l.timers) > 0 && l.fired < maxTimers && l.timers[0].due <= l.now {
		t := l.timers[0]
		l.fired++
		if t.every > 0 {
			t.due = l.now + t.every
			heap.Fix(&l.timers, 0)
		} else {
			heap.Pop(&l.timers)
		}
		t.fire()
	}
}

// timerHeap is ordered by due time.
type timerHeap []*Timer

func (h timerHeap) Len() int           { return len(h) }
func (h timerHeap) Less(i, j int) bool { return h[i].due < h[j].due }
func (h timerHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}

func (h *timerHeap) Push(x any) {
	t := x.(*Timer)
	t.index = len(*h)
	*h = append(*h, t)
}

func (h *timerHeap) Pop() any {
	old := *h
	n := len(old) - 1
	t := old[n]
	old[n] = nil
	*h = old[:n]
	t.index = -1
	return t
}
