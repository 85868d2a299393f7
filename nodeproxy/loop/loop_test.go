// SPDX-License-Identifier: Apache-2.0

package loop_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/meshproxy/meshproxy/nodeproxy/loop"
)

// patience is how long anything may take: the machine may be busy with other tests.
const patience = 2 * time.Minute

type handlerFunc func(loop.Events)

func (f handlerFunc) Ready(e loop.Events) { f(e) }

type resumerFunc func()

func (f resumerFunc) Resume() { f() }

type flusherFunc func()

func (f flusherFunc) Flush() { f() }

// start runs a loop until the test's end.
func start(t *testing.T, o loop.Options) *loop.Loop {
	t.Helper()
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	l, err := loop.New(o)
	if err != nil {
		t.Fatal(err)
	}
	go l.Run()
	t.Cleanup(func() {
		l.Close()
		<-l.Done()
	})
	return l
}

func do(t *testing.T, l *loop.Loop, f func()) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := l.Do(ctx, f); err != nil {
		t.Fatal(err)
	}
}

func await(t *testing.T, c <-chan struct{}, what string) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(patience):
		t.Fatal("waited in vain for ", what)
	}
}

func pair(t *testing.T) (a, b int) {
	t.Helper()
	p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	return p[0], p[1]
}

func TestReadiness(t *testing.T) {
	l := start(t, loop.Options{})
	a, b := pair(t)
	got := make(chan string, 1)
	closed := make(chan struct{})
	do(t, l, func() {
		var reg loop.Registration
		reg, err := l.Register(a, handlerFunc(func(ev loop.Events) {
			if !ev.Has(loop.Input) {
				return
			}
			for {
				n, e := loop.Read(a, l.Scratch())
				if e == unix.EAGAIN {
					return
				}
				if n == 0 {
					reg.Close()
					reg.Close()
					close(closed)
					return
				}
				got <- string(l.Scratch()[:n])
			}
		}))
		if err != nil {
			t.Error(err)
		}
		if _, err := l.Register(a, handlerFunc(nil)); !errors.Is(err, loop.ErrRegistered) {
			t.Error("registered twice:", err)
		}
	})
	if _, e := loop.Write(b, []byte("hello")); e != 0 {
		t.Fatal(e)
	}
	if s := <-got; s != "hello" {
		t.Errorf("got %q", s)
	}
	unix.Close(b)
	await(t, closed, "end of file")
}

// Two descriptors are ready in one batch; the first handler closes the second,
// and a new descriptor takes over its number. The event that was fetched for
// the old one must not reach the new one.
func TestStaleEventAfterReuse(t *testing.T) {
	l := start(t, loop.Options{})
	a1, b1 := pair(t)
	a2, b2 := pair(t)
	defer unix.Close(b1)
	defer unix.Close(b2)
	var first sync.Once
	settled := make(chan struct{})
	do(t, l, func() {
		regs := map[int]loop.Registration{}
		closeOther := func(other int) func(loop.Events) {
			return func(loop.Events) {
				first.Do(func() {
					regs[other].Close()
					fresh, freshPeer := pair(t)
					// The lowest free number is the one just closed.
					if fresh != other {
						t.Errorf("descriptor %d instead of %d", fresh, other)
					}
					stale := true
					_, err := l.Register(fresh, handlerFunc(func(ev loop.Events) {
						if stale {
							t.Error("stale event:", ev)
						}
					}))
					if err != nil {
						t.Error(err)
					}
					l.EndOfTurn(flusherFunc(func() {
						stale = false
						unix.Close(freshPeer)
						close(settled)
					}))
				})
			}
		}
		for _, p := range [][2]int{{a1, a2}, {a2, a1}} {
			reg, err := l.Register(p[0], handlerFunc(closeOther(p[1])))
			if err != nil {
				t.Error(err)
			}
			regs[p[0]] = reg
		}
	})
	await(t, settled, "the turn's end")
}

func TestPanicIsContained(t *testing.T) {
	var log syncBuffer
	l := start(t, loop.Options{Name: "victim", Logger: slog.New(slog.NewTextHandler(&log, nil))})
	a, b := pair(t)
	defer unix.Close(b)
	h := &fragile{aborted: make(chan error, 1)}
	do(t, l, func() {
		var err error
		if h.reg, err = l.Register(a, h); err != nil {
			t.Error(err)
		}
	})
	var pe *loop.PanicError
	if err := <-h.aborted; !errors.As(err, &pe) || len(pe.Stack) == 0 {
		t.Errorf("aborted with %v", err)
	}
	do(t, l, func() {
		if h.reg.Open() {
			t.Error("registration survived its handler's panic")
		}
	})
	for name, blow := range map[string]func(){
		"posted":  func() { panic("posted") },
		"timer":   func() { l.After(0, func() { panic("timer") }) },
		"resumer": func() { l.Again(resumerFunc(func() { panic("resumer") })) },
		"flusher": func() { l.EndOfTurn(flusherFunc(func() { panic("flusher") })) },
	} {
		if err := l.Post(blow); err != nil {
			t.Fatal(name, err)
		}
	}
	// The timer comes last, a turn after the others.
	fired := make(chan struct{})
	do(t, l, func() { l.After(time.Millisecond, func() { close(fired) }) })
	await(t, fired, "a timer after the panics")
	for _, want := range []string{"loop=victim", "*loop_test.fragile", "panic=resumer", "panic=flusher", "panic=timer", "panic=posted"} {
		if !bytes.Contains(log.Bytes(), []byte(want)) {
			t.Errorf("log lacks %q", want)
		}
	}
}

type fragile struct {
	reg     loop.Registration
	aborted chan error
}

func (f *fragile) Ready(loop.Events) { panic("boom") }
func (f *fragile) Abort(err error)   { f.aborted <- err }

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) Bytes() []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return bytes.Clone(s.b.Bytes())
}

func TestPostAfterClose(t *testing.T) {
	l, err := loop.New(loop.Options{})
	if err != nil {
		t.Fatal(err)
	}
	var accepted, ran atomic.Int64
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for l.Post(func() { ran.Add(1) }) == nil {
				accepted.Add(1)
			}
		})
	}
	go l.Run()
	for accepted.Load() < 1000 {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		_ = l.Do(ctx, func() {})
		cancel()
	}
	l.Close()
	l.Close()
	<-l.Done()
	wg.Wait()
	if accepted.Load() != ran.Load() {
		t.Errorf("%d closures accepted, %d ran", accepted.Load(), ran.Load())
	}
	if err := l.Post(func() {}); !errors.Is(err, loop.ErrClosed) {
		t.Error("post after close:", err)
	}
	if err := l.Do(context.Background(), func() {}); !errors.Is(err, loop.ErrClosed) {
		t.Error("do after close:", err)
	}
}

func TestCloseWithoutRun(t *testing.T) {
	l, err := loop.New(loop.Options{})
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	await(t, l.Done(), "the end")
	l.Run() // returns
}

func TestCloseAbortsRegistrations(t *testing.T) {
	l, err := loop.New(loop.Options{})
	if err != nil {
		t.Fatal(err)
	}
	go l.Run()
	a, b := pair(t)
	defer unix.Close(b)
	h := &patient{aborted: make(chan error, 1)}
	do(t, l, func() {
		if _, err := l.Register(a, h); err != nil {
			t.Error(err)
		}
	})
	l.Close()
	<-l.Done()
	if err := <-h.aborted; !errors.Is(err, loop.ErrClosed) {
		t.Error("aborted with", err)
	}
	if n, e := loop.Read(b, make([]byte, 1)); n != 0 || e != 0 {
		t.Error("the descriptor is still open:", n, e)
	}
}

type patient struct{ aborted chan error }

func (p *patient) Ready(loop.Events) {}
func (p *patient) Abort(err error)   { p.aborted <- err }

func TestRelease(t *testing.T) {
	l := start(t, loop.Options{})
	a, b := pair(t)
	defer unix.Close(b)
	do(t, l, func() {
		reg, err := l.Register(a, handlerFunc(func(loop.Events) {}))
		if err != nil {
			t.Fatal(err)
		}
		if fd := reg.Release(); fd != a {
			t.Errorf("released %d, want %d", fd, a)
		}
		if reg.Open() || reg.FD() != -1 {
			t.Error("still open")
		}
		// It can be registered anew: here, or on another loop.
		if _, err := l.Register(a, handlerFunc(func(loop.Events) {})); err != nil {
			t.Error(err)
		}
	})
}
