// SPDX-License-Identifier: Apache-2.0

package loop

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// inbox holds closures from other goroutines. An eventfd wakes the loop. It is
// registered edge-triggered and never read: each write raises a new edge, and
// the counter cannot reach its limit of 2^64-2 in a machine's life.
type inbox struct {
	fd int

	mu      sync.Mutex
	posted  []func()
	closed  bool
	started bool

	waiting atomic.Bool // something was posted and not yet taken
	taken   []func()    // the loop's part, from next on
	next    int
}

func (b *inbox) open(epoll int) error {
	fd, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		return fmt.Errorf("create eventfd: %w", err)
	}
	// The table has no handler for this descriptor, so delivery skips it: being
	// awake is all that the event is for.
	ev := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLET, Fd: int32(fd)}
	if err := unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, fd, &ev); err != nil {
		_ = unix.Close(fd)
		return fmt.Errorf("register eventfd: %w", err)
	}
	b.fd = fd
	return nil
}

// start reports whether the loop may run.
func (b *inbox) start() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed || b.started {
		return false
	}
	b.started = true
	return true
}

// close refuses further closures. It reports whether somebody else tidies up:
// the running loop, or an earlier Close.
func (b *inbox) close() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return true
	}
	b.closed = true
	b.wake()
	return b.started
}

// wake is called with mu held, which keeps the descriptor open meanwhile.
func (b *inbox) wake() {
	b.waiting.Store(true)
	one := [8]byte{1}
	_, _ = unix.Write(b.fd, one[:])
}

func (b *inbox) release() {
	b.mu.Lock()
	defer b.mu.Unlock()
	_ = unix.Close(b.fd)
	b.fd = -1
}

func (b *inbox) pending() bool { return b.next < len(b.taken) || b.waiting.Load() }

// take moves what was posted to the loop's part.
func (b *inbox) take() (closed bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if cap(b.taken) > 4*maxPosted {
		b.taken = nil // a burst does not stay in memory
	}
	b.posted, b.taken, b.next = b.taken[:0], b.posted, 0
	b.waiting.Store(false)
	return b.closed
}

// Post runs f on the loop. It never blocks. A closure that is accepted runs,
// even when the loop is closed meanwhile; ErrClosed means that f will not run.
func (l *Loop) Post(f func()) error {
	b := &l.inbox
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return ErrClosed
	}
	b.posted = append(b.posted, f)
	if len(b.posted) == 1 {
		b.wake()
	}
	return nil
}

// Do runs f on the loop and waits for it. On the loop itself it would wait for
// ever; call f there instead. When ctx ends first, f may still run later.
func (l *Loop) Do(ctx context.Context, f func()) error {
	ran := make(chan struct{})
	if err := l.Post(func() { defer close(ran); f() }); err != nil {
		return err
	}
	select {
	case <-ran:
		return nil
	case <-l.done:
		return ErrClosed
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (l *Loop) runPosted() {
	b := &l.inbox
	if b.next == len(b.taken) && b.waiting.Load() {
		l.stopping = b.take()
	}
	for b.next < len(b.taken) && l.ran < maxPosted {
		f := b.taken[b.next]
		b.taken[b.next] = nil
		b.next++
		l.ran++
		f()
	}
}
