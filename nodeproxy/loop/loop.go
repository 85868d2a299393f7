// SPDX-License-Identifier: Apache-2.0

package loop

import (
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"time"

	"golang.org/x/sys/unix"
)

// What one turn may do at most of each kind of work. The values are large
// enough that the cost of a turn (one epoll_wait) is spread over many calls,
// and small enough that a turn of cheap calls stays below a millisecond.
const (
	maxEvents   = 256
	maxPosted   = 256
	maxTimers   = 256
	maxResumed  = 256
	flushRounds = 4
)

const (
	defaultScratch = 512 << 10
	defaultTick    = 250 * time.Millisecond
)

var (
	// ErrClosed says that the loop has been closed: a closure was not accepted,
	// or a registration ended with the loop.
	ErrClosed = errors.New("loop closed")
	// ErrRegistered says that the descriptor already belongs to the loop.
	ErrRegistered = errors.New("descriptor already registered")
)

// PanicError reports a panic in a handler that the loop survived.
type PanicError struct {
	Value any
	Stack []byte
}

func (e *PanicError) Error() string { return fmt.Sprintf("panic: %v", e.Value) }

// Options configures a Loop. The zero value is usable.
type Options struct {
	// Name tells loops apart in logs.
	Name string
	// Logger receives panics and accept trouble; nil means slog.Default.
	Logger *slog.Logger
	// Tick is called on the loop every TickInterval: proof that the loop turns.
	// It must be short.
	Tick func()
	// TickInterval is also the loop's housekeeping interval (trimming of pools,
	// publication of statistics); 0 means 250 ms.
	TickInterval time.Duration
	// ScratchSize is the length of Scratch; 0 means 512 KiB.
	ScratchSize int
	// HoldProcessor keeps the loop's P for up to 10 ms while it waits. It is for
	// processes whose GOMAXPROCS is larger than the number of their loops.
	HoldProcessor bool
}

// Loop is one event loop. Create it with New, give a goroutine to Run.
type Loop struct {
	name   string
	log    *slog.Logger
	poller poller
	inbox  inbox

	table  []entry
	live   int
	events []unix.EpollEvent
	at     int // next event to deliver

	timers  timerHeap
	ready   []Resumer
	readyAt int
	flushes []Flusher
	flushAt int

	// How far the steps of this turn are; a step that a panic ended goes on.
	ran        int
	fired      int
	resumable  int
	flushRound int

	running any // whose code runs now: a Handler, Resumer, Flusher or nil
	current Registration

	epoch    time.Time
	now      time.Duration
	scratch  []byte
	chunks   *Pool
	pools    []*Pool
	tick     func()
	stopping bool
	done     chan struct{}
	stats    counters
}

// New makes a loop. It holds three descriptors until Run has returned, or until
// Close when Run is never called.
func New(o Options) (*Loop, error) {
	l := &Loop{
		name:   o.Name,
		log:    o.Logger,
		events: make([]unix.EpollEvent, 0, maxEvents),
		epoch:  time.Now(),
		tick:   o.Tick,
		done:   make(chan struct{}),
	}
	if l.log == nil {
		l.log = slog.Default()
	}
	if o.ScratchSize == 0 {
		o.ScratchSize = defaultScratch
	}
	if o.TickInterval == 0 {
		o.TickInterval = defaultTick
	}
	l.scratch = make([]byte, o.ScratchSize)
	l.chunks = l.NewPool(ChunkSize)

	if err := l.poller.open(o.HoldProcessor); err != nil {
		return nil, err
	}
	if err := l.inbox.open(l.poller.epoll); err != nil {
		l.poller.close()
		return nil, err
	}
	l.poller.post = l.inbox.fd
	l.Every(o.TickInterval, l.keepHouse)
	return l, nil
}

// Run turns the loop until Close. It returns once every registration is
// closed and every accepted closure has run.
func (l *Loop) Run() {
	if !l.inbox.start() {
		return
	}
	for !l.stopping {
		l.wait()
		for !l.turn() {
		}
	}
	l.shutdown()
}

// Close asks the loop to stop and returns at once; Done says when it has.
// Registrations that are still open are aborted with ErrClosed.
func (l *Loop) Close() {
	if l.inbox.close() {
		return // Run sees it and tidies up
	}
	l.shutdown() // Run was never called, and will not turn the loop any more
}

// Done is closed when the loop has stopped and holds no descriptor any more.
func (l *Loop) Done() <-chan struct{} { return l.done }

// Name returns the loop's name.
func (l *Loop) Name() string { return l.name }

// Full says that there may be more events than this turn has brought.
func (l *Loop) Full() bool { return len(l.events) == maxEvents }

// Now is the time of this turn, measured from the loop's creation on the
// monotonic clock. It costs nothing.
func (l *Loop) Now() time.Duration { return l.now }

// turn does one turn's work. It returns false when a handler panicked; called
// again, it continues after that handler. One deferred call per turn, not per
// handler, is what the isolation costs.
func (l *Loop) turn() (done bool) {
	defer l.contain()
	l.deliver()
	l.runPosted()
	l.fireTimers()
	l.resume()
	l.flush()
	l.endTurn()
	return true
}

// contain ends what panicked and lets the others live.
func (l *Loop) contain() {
	v := recover()
	if v == nil {
		return
	}
	culprit, reg := l.running, l.current
	l.running, l.current = nil, Registration{}
	l.blame(culprit, v)
	if _, ok := culprit.(*Listener); !ok { // it outlives what it accepted
		reg.Close()
	}
}

// Contain, when deferred, ends a panic in the code of who, for callers that can
// go on without who: a state machine whose other streams must not suffer.
func (l *Loop) Contain(who Aborter) {
	if v := recover(); v != nil {
		l.blame(who, v)
	}
}

func (l *Loop) blame(who, v any) {
	e := &PanicError{Value: v, Stack: debug.Stack()}
	l.stats.Panics++
	l.log.Error("handler panicked", "loop", l.name, "handler", fmt.Sprintf("%T", who),
		"panic", v, "stack", string(e.Stack))
	l.abort(who, e)
}

// abort tells whoever cares that its descriptor is lost.
func (l *Loop) abort(who any, err error) {
	defer func() {
		if v := recover(); v != nil {
			l.stats.Panics++
			l.log.Error("abort panicked", "loop", l.name, "handler", fmt.Sprintf("%T", who),
				"panic", v, "stack", string(debug.Stack()))
		}
	}()
	if a, ok := who.(Aborter); ok {
		a.Abort(err)
	}
}

func (l *Loop) deliver() {
	for l.at < len(l.events) {
		ev := &l.events[l.at]
		l.at++
		e := l.lookup(ev)
		if e == nil {
			continue // closed earlier in this batch, or the inbox's wake-up
		}
		l.running, l.current = e.handler, Registration{l, ev.Fd, uint32(ev.Pad)}
		e.handler.Ready(Events(ev.Events))
	}
	l.running, l.current = nil, Registration{}
}

// wait blocks until something is to be done.
func (l *Loop) wait() {
	l.beginTurn()
	l.events = l.events[:l.await(l.events[:maxEvents])]
	l.now = l.clock()
	l.poller.rung(l.now)
}

func (l *Loop) await(events []unix.EpollEvent) int {
	if len(l.ready) > l.readyAt || len(l.flushes) > 0 || l.inbox.pending() {
		return l.poller.poll(events)
	}
	if len(l.timers) > 0 {
		due := l.timers[0].due
		d := due - l.clock()
		if d <= 0 {
			return l.poller.poll(events)
		}
		l.poller.setAlarm(due, d)
	}
	return l.poller.wait(events)
}

func (l *Loop) beginTurn() {
	l.at, l.ran, l.fired, l.resumable, l.flushRound, l.flushAt = 0, 0, 0, -1, 0, 0
}

func (l *Loop) clock() time.Duration { return time.Since(l.epoch) }

func (l *Loop) endTurn() {
	l.stats.Turns++
	l.stats.Events += uint64(len(l.events))
	d := l.clock() - l.now
	l.stats.Busy += d
	if d > l.stats.LongestTurn {
		l.stats.LongestTurn = d
	}
}

// keepHouse runs every TickInterval.
func (l *Loop) keepHouse() {
	for _, p := range l.pools {
		p.trim()
	}
	l.stats.publish(l.live)
	if l.tick != nil {
		l.tick()
	}
}

func (l *Loop) shutdown() {
	l.events = l.events[:0]
	for l.inbox.pending() {
		l.beginTurn()
		for !l.turn() {
		}
	}
	for fd := range l.table {
		e := &l.table[fd]
		if e.handler == nil {
			continue
		}
		reg := Registration{l, int32(fd), e.gen}
		l.abort(e.handler, ErrClosed)
		reg.Close()
	}
	l.beginTurn()
	for !l.turn() { // what the aborted asked for: last flushes
	}
	l.release()
}

func (l *Loop) release() {
	l.inbox.release()
	l.poller.close()
	l.stats.publish(l.live)
	close(l.done)
}
