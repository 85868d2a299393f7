// SPDX-License-Identifier: Apache-2.0

package loop

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Events says what a descriptor is ready for.
type Events uint32

// The kinds of readiness.
const (
	Readable   Events = unix.EPOLLIN
	Writable   Events = unix.EPOLLOUT
	PeerClosed Events = unix.EPOLLRDHUP // the peer will send no more
	Hangup     Events = unix.EPOLLHUP   // both directions are shut
	Failed     Events = unix.EPOLLERR   // SO_ERROR says why
)

// Input is everything that a read would tell more about.
const Input = Readable | PeerClosed | Hangup | Failed

// Has reports whether any of want is among the events.
func (e Events) Has(want Events) bool { return e&want != 0 }

// Handler is called on the loop when its descriptor becomes ready.
type Handler interface{ Ready(Events) }

// Aborter is implemented by handlers, resumers and flushers that hold more than
// a descriptor. The loop calls Abort when it ends one by itself: with a
// *PanicError after a panic in its code, with ErrClosed when the loop closes.
// The descriptor is closed after the call.
type Aborter interface{ Abort(error) }

// entry is what the loop keeps per descriptor number. The generation grows
// whenever the number is given away: an event that was fetched before its
// descriptor was closed cannot reach the next owner of the same number.
type entry struct {
	handler Handler
	gen     uint32
	shared  bool // other descriptors refer to the same open file
}

// Registration is a descriptor in a loop. The zero value is closed. It is two
// words and may be copied; copies refer to the same descriptor.
type Registration struct {
	loop *Loop
	fd   int32
	gen  uint32
}

// Register gives fd, which must be non-blocking, to the loop: handler hears of
// readiness in both directions, edge-triggered, beginning with what is ready
// now. The loop owns fd from here on, unless an error is returned.
func (l *Loop) Register(fd int, handler Handler) (Registration, error) {
	return l.register(fd, handler,
		unix.EPOLLIN|unix.EPOLLOUT|unix.EPOLLRDHUP|unix.EPOLLET, false)
}

func (l *Loop) register(fd int, h Handler, mask uint32, shared bool) (Registration, error) {
	for fd >= len(l.table) {
		l.table = append(l.table, make([]entry, max(64, len(l.table)))...)
	}
	e := &l.table[fd]
	if e.handler != nil {
		return Registration{}, fmt.Errorf("register descriptor %d: %w", fd, ErrRegistered)
	}
	e.gen++
	ev := unix.EpollEvent{Events: mask, Fd: int32(fd), Pad: int32(e.gen)}
	if err := unix.EpollCtl(l.poller.epoll, unix.EPOLL_CTL_ADD, fd, &ev); err != nil {
		return Registration{}, fmt.Errorf("register descriptor %d: %w", fd, err)
	}
	e.handler, e.shared = h, shared
	l.live++
	return Registration{l, int32(fd), e.gen}, nil
}

// lookup finds whom an event is for; nil when that registration is gone.
func (l *Loop) lookup(ev *unix.EpollEvent) *entry {
	if uint32(ev.Fd) >= uint32(len(l.table)) {
		return nil
	}
	e := &l.table[ev.Fd]
	if e.handler == nil || e.gen != uint32(ev.Pad) {
		return nil
	}
	return e
}

// registration finds who owns a descriptor now.
func (l *Loop) registration(fd int) Registration {
	if fd >= len(l.table) {
		return Registration{}
	}
	return Registration{l, int32(fd), l.table[fd].gen}
}

// mute stops the events without giving up the descriptor.
func (r Registration) mute() {
	if r.Open() {
		_ = unix.EpollCtl(r.loop.poller.epoll, unix.EPOLL_CTL_DEL, int(r.fd), nil)
	}
}

func (r Registration) unmute(mask uint32) error {
	if !r.Open() {
		return nil
	}
	ev := unix.EpollEvent{Events: mask, Fd: r.fd, Pad: int32(r.gen)}
	return unix.EpollCtl(r.loop.poller.epoll, unix.EPOLL_CTL_ADD, int(r.fd), &ev)
}

// Open reports whether the loop still owns the descriptor.
func (r Registration) Open() bool {
	return r.loop != nil && r.loop.table[r.fd].gen == r.gen && r.loop.table[r.fd].handler != nil
}

// FD returns the descriptor, -1 when it is closed.
func (r Registration) FD() int {
	if !r.Open() {
		return -1
	}
	return int(r.fd)
}

// SetHandler makes h hear of the descriptor's readiness from now on. What the
// former handler has heard is not repeated.
func (r Registration) SetHandler(h Handler) {
	if r.Open() {
		r.loop.table[r.fd].handler = h
	}
}

// Close closes the descriptor. Its handler is not called again. Closing twice
// does nothing.
func (r Registration) Close() {
	if fd := r.detach(); fd >= 0 {
		_ = unix.Close(fd)
	}
}

// Release takes the descriptor out of the loop without closing it; the caller
// owns it. It returns -1 when the registration is closed.
func (r Registration) Release() int {
	if r.Open() {
		r.loop.table[r.fd].shared = true // closing will not remove it from epoll
	}
	return r.detach()
}

func (r Registration) detach() int {
	if !r.Open() {
		return -1
	}
	e := &r.loop.table[r.fd]
	if e.shared {
		// epoll forgets a descriptor by itself only when the last one that
		// refers to the open file is closed (epoll(7)).
		_ = unix.EpollCtl(r.loop.poller.epoll, unix.EPOLL_CTL_DEL, int(r.fd), nil)
	}
	e.handler, e.shared = nil, false
	e.gen++
	r.loop.live--
	return int(r.fd)
}
