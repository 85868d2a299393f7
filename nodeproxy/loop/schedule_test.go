// SPDX-License-Identifier: Apache-2.0

package loop_test

import (
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/meshproxy/meshproxy/nodeproxy/loop"
)

// A resumer that always wants more must not keep events, posts and timers away.
func TestFairness(t *testing.T) {
	l := start(t, loop.Options{})
	turns := 0
	stop := false
	var greedy resumerFunc
	greedy = func() {
		turns++
		if !stop {
			l.Again(greedy)
		}
	}
	do(t, l, func() { l.Again(greedy) })
	a, b := pair(t)
	defer unix.Close(b)
	heard := make(chan struct{})
	var once sync.Once
	do(t, l, func() {
		if _, err := l.Register(a, handlerFunc(func(loop.Events) { once.Do(func() { close(heard) }) })); err != nil {
			t.Error(err)
		}
	})
	await(t, heard, "an event beside a greedy resumer")
	fired := make(chan struct{})
	do(t, l, func() { l.After(time.Millisecond, func() { close(fired) }) })
	await(t, fired, "a timer beside a greedy resumer")
	do(t, l, func() {
		stop = true
		if turns == 0 {
			t.Error("the resumer never ran")
		}
	})
}

// More of everything than one turn handles: all of it happens, in order.
func TestBursts(t *testing.T) {
	l := start(t, loop.Options{})
	const n = 5000
	var posted, resumed, flushed, fired []int
	done := make(chan struct{})
	for i := range n {
		err := l.Post(func() {
			posted = append(posted, i)
			l.Again(resumerFunc(func() { resumed = append(resumed, i) }))
			l.EndOfTurn(flusherFunc(func() { flushed = append(flushed, i) }))
			l.After(0, func() {
				if fired = append(fired, i); len(fired) == n {
					l.Again(resumerFunc(func() { close(done) }))
				}
			})
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	await(t, done, "the bursts")
	for name, got := range map[string][]int{"posted": posted, "resumed": resumed, "flushed": flushed} {
		if len(got) != n {
			t.Errorf("%s: %d of %d", name, len(got), n)
			continue
		}
		for i, v := range got {
			if i != v {
				t.Errorf("%s: %d at %d", name, v, i)
				break
			}
		}
	}
}

func TestTimers(t *testing.T) {
	l := start(t, loop.Options{})
	done := make(chan struct{})
	var order []int
	do(t, l, func() {
		for _, ms := range []int{30, 10, 20} {
			l.After(time.Duration(ms)*time.Millisecond, func() { order = append(order, ms) })
		}
		stopped := l.After(5*time.Millisecond, func() { t.Error("a stopped timer fired") })
		stopped.Stop()
		stopped.Stop()
		var none *loop.Timer
		none.Stop()
		n := 0
		var every *loop.Timer
		every = l.Every(5*time.Millisecond, func() {
			if n++; n == 10 {
				every.Stop()
				close(done)
			}
		})
	})
	await(t, done, "ten ticks")
	do(t, l, func() {
		if len(order) != 3 || order[0] != 10 || order[1] != 20 || order[2] != 30 {
			t.Error("order", order)
		}
	})
}

func TestTickAndStats(t *testing.T) {
	beats := make(chan struct{}, 100)
	l := start(t, loop.Options{TickInterval: time.Millisecond, Tick: func() {
		select {
		case beats <- struct{}{}:
		default:
		}
	}})
	for range 3 {
		await(t, beats, "a heartbeat")
	}
	if s := l.Stats(); s.Turns == 0 {
		t.Errorf("stats %+v", s)
	}
}

func TestPoolTrims(t *testing.T) {
	l := start(t, loop.Options{TickInterval: time.Millisecond})
	var p *loop.Pool
	do(t, l, func() {
		p = l.Chunks()
		var out [][]byte
		for range 100 {
			out = append(out, p.Get())
		}
		if p.Used() != 100 {
			t.Error("used", p.Used())
		}
		for _, b := range out {
			p.Put(b[:0])
		}
		if b := p.Get(); len(b) != loop.ChunkSize {
			t.Error("length", len(b))
		} else {
			p.Put(b)
		}
	})
	idle := make(chan struct{})
	do(t, l, func() {
		var wait func()
		wait = func() {
			if p.Free() == 0 {
				close(idle)
				return
			}
			l.After(time.Millisecond, wait)
		}
		wait()
	})
	await(t, idle, "an empty pool")
}
