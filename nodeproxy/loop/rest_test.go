// SPDX-License-Identifier: Apache-2.0

package loop

import (
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// echo answers whatever comes.
type echo struct {
	loop  *Loop
	fd    int
	heard int // events; of the loop
}

func (e *echo) Ready(Events) {
	e.heard++
	for {
		n, errno := Read(e.fd, e.loop.Scratch())
		if n <= 0 || errno != 0 {
			return
		}
		_, _ = Write(e.fd, e.loop.Scratch()[:n])
	}
}

// resting runs a loop with an echo, and returns the other end of it.
func resting(t *testing.T, tick time.Duration) (*Loop, *echo, *os.File) {
	t.Helper()
	l, err := New(Options{HoldProcessor: true, TickInterval: tick})
	if err != nil {
		t.Fatal(err)
	}
	p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	far := os.NewFile(uintptr(p[1]), "far end")
	if err := far.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	go l.Run()
	t.Cleanup(func() {
		far.Close()
		l.Close()
		<-l.Done()
	})
	e := &echo{loop: l, fd: p[0]}
	if err := l.Do(t.Context(), func() {
		if _, err := l.Register(e.fd, e); err != nil {
			t.Error(err)
		}
	}); err != nil {
		t.Fatal(err)
	}
	return l, e, far
}

func ask(t *testing.T, far *os.File) {
	t.Helper()
	if _, err := far.Write([]byte{1}); err != nil {
		t.Fatal(err)
	}
	if _, err := far.Read(make([]byte, 1)); err != nil {
		t.Fatalf("no answer: %v", err)
	}
}

// TestRest: a loop rests when only its clock rings, and works on when anything
// else does. What it holds while it rests is given back.
func TestRest(t *testing.T) {
	l, _, far := resting(t, 20*time.Millisecond)
	rests := func() (yes bool) {
		if err := l.Do(t.Context(), func() { yes = l.poller.idle && l.poller.rest.file != nil }); err != nil {
			t.Fatal(err)
		}
		return yes
	}
	for range 5 {
		for deadline := time.Now().Add(time.Minute); !rests(); {
			if time.Now().After(deadline) {
				t.Fatal("a loop that has nothing to do doesn't rest")
			}
		}
		ask(t, far)
	}
	// The event itself ended the rest; a tick may have begun another since.
	woken := false
	for deadline := time.Now().Add(time.Minute); !woken && time.Now().Before(deadline); woken = !rests() {
		ask(t, far)
	}
	if !woken {
		t.Error("a loop that works rests")
	}
}

// TestRestMissesNothing: whatever comes while a loop rests, or while it is about
// to, wakes it: what descriptors bring, what is posted, timers.
func TestRestMissesNothing(t *testing.T) {
	l, e, far := resting(t, time.Millisecond)
	for range 500 {
		// Up to three ticks, with a wait for the loop at any point of them.
		pause := time.NewTimer(time.Duration(rand.Int64N(int64(3 * time.Millisecond))))
		<-pause.C
		switch rand.IntN(3) {
		case 0:
			ask(t, far)
		case 1:
			if err := l.Do(t.Context(), func() {}); err != nil {
				t.Fatal(err)
			}
		case 2:
			fired := make(chan struct{})
			if err := l.Post(func() { l.After(time.Duration(rand.Int64N(int64(time.Millisecond))), func() { close(fired) }) }); err != nil {
				t.Fatal(err)
			}
			select {
			case <-fired:
			case <-time.After(time.Minute):
				t.Fatal("a timer didn't fire")
			}
		}
	}
	if err := l.Do(t.Context(), func() {
		if e.heard == 0 {
			t.Error("nothing was heard")
		}
	}); err != nil {
		t.Fatal(err)
	}
}

// TestRestWithoutDescriptors: a loop that can't rest waits as before.
func TestRestWithoutDescriptors(t *testing.T) {
	var p poller
	if err := p.open(true); err != nil {
		t.Fatal(err)
	}
	defer p.close()
	p.idle = true
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	none := limit
	none.Cur = 0
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &none); err != nil {
		t.Fatal(err)
	}
	began := p.rest.begin(p.epoll)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if began == nil || p.rest.file != nil {
		t.Errorf("began to rest without a descriptor: %v", began)
	}
}
