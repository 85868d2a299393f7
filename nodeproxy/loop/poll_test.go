// SPDX-License-Identifier: Apache-2.0

package loop

import (
	"runtime"
	"testing"
	"time"
)

// A loop that holds its P must not hold up a garbage collection, which needs
// every P: the runtime's signal ends the wait.
func TestHeldProcessorYields(t *testing.T) {
	l, err := New(Options{HoldProcessor: true, TickInterval: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	if !l.poller.hold {
		t.Fatal("the loop doesn't hold its P")
	}
	go l.Run()
	defer func() { l.Close(); <-l.Done() }()

	collected := make(chan struct{})
	go func() {
		defer close(collected)
		for range 50 {
			// The loop is back in its wait, or about to be, when Do returns.
			if err := l.Do(t.Context(), func() {}); err != nil {
				t.Error(err)
				return
			}
			runtime.GC()
		}
	}()
	select {
	case <-collected:
	case <-time.After(time.Minute):
		t.Fatal("a garbage collection waits for a loop that has nothing to do")
	}
}

// A timer that becomes the first one while the loop waits for a later one, or
// that is the only one, fires; with the P held and not.
func TestAlarm(t *testing.T) {
	for _, hold := range []bool{false, true} {
		l, err := New(Options{HoldProcessor: hold, TickInterval: time.Hour})
		if err != nil {
			t.Fatal(err)
		}
		go l.Run()
		for range 3 {
			fired := make(chan time.Duration, 2)
			var set time.Duration
			err := l.Do(t.Context(), func() {
				set = l.Now()
				l.After(30*time.Millisecond, func() { fired <- l.Now() })
				l.After(10*time.Millisecond, func() { fired <- l.Now() })
			})
			if err != nil {
				t.Fatal(err)
			}
			for _, want := range []time.Duration{10 * time.Millisecond, 30 * time.Millisecond} {
				if at := <-fired; at < set+want {
					t.Errorf("hold %v: a timer of %v fired after %v", hold, want, at-set)
				}
			}
		}
		l.Close()
		<-l.Done()
	}
}

func TestPreemptible(t *testing.T) {
	for godebug, want := range map[string]bool{
		"":                                  true,
		"asyncpreemptoff=0":                 true,
		"asyncpreemptoff=1":                 false,
		"http2client=0,asyncpreemptoff=1":   false,
		"asyncpreemptoff=1,gctrace=1":       false,
		"http2client=0,madvdontneed=1":      true,
		"notasyncpreemptoff=1,tlsmlkem=0":   true,
		"asyncpreemptoff=10,http2server=0":  true,
		"gctrace=1,asyncpreemptoff=1,foo=2": false,
	} {
		if got := preemptible(godebug); got != want {
			t.Errorf("GODEBUG=%q: preemptible %v, want %v", godebug, got, want)
		}
	}
}
