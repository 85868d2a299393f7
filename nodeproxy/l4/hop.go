// SPDX-License-Identifier: Apache-2.0

package l4

import (
	"time"

	"golang.org/x/sys/unix"

	"github.com/meshproxy/meshproxy/nodeproxy/loop"
)

// Hops is the kernel's direct way between the sockets of applications and the
// proxy's own ends of their connections. What goes by it is read and written with
// the same system calls, with three differences that this package sees to: data
// that came directly is read by other calls than what came by TCP; a write never
// blocks, so that somebody has to wait until the application has read; and it
// gains nothing for bulk streams.
type Hops interface {
	// Mixed changes before data of some application begins to come both ways.
	Mixed() uint32
	// Wanted changes when some hop should leave; the one that was written to last
	// may be it.
	Wanted() uint32
	// ShouldLeave says whether it is.
	ShouldLeave(HopKey) bool
	// Leave makes a connection ordinary TCP, in steps: while waiting is true
	// nothing may be written; done is true after the last.
	Leave(HopKey) (waiting, done bool)
}

// HopKey names a hop: by the cookie of the socket that dialled, which is the
// application's or (Dialled) the proxy's own. The zero HopKey is none.
type HopKey struct {
	Client  uint64
	Dialled bool
}

const (
	// A hop leaves when so many helpings in a row, of either direction, were bulk.
	bulkHelpings = 8
	bulkHelping  = 32 << 10

	// How long the application is given to read, at first and at last.
	firstLook = 500 * time.Microsecond
	lastLook  = 32 * time.Millisecond
	// How often a hop that nobody waits for is looked at before the proxy's end
	// is left where it is, which costs no more than time.
	looks = 10
)

// hop is one that is in use. Nil is none.
type hop struct {
	set  *Relays
	key  HopKey
	bulk uint8
	// leaving is set for good; waiting while nothing may be written; done when
	// the proxy's end is out.
	leaving, waiting, done bool
	left                   int // looks
	timer                  *loop.Timer
	resume                 func() // when it needs not wait any more
}

// hopTo makes the hop of a connection, if there are hops.
func (s *Relays) hopTo(k HopKey) *hop {
	if s.options.Hops == nil || k == (HopKey{}) {
		return nil
	}
	return &hop{set: s, key: k}
}

// hopOf makes the hop of a socket that is connected to a target.
func (s *Relays) hopOf(t *Target, reg loop.Registration) *hop {
	if s.options.Hops == nil || t.Hop == nil {
		return nil
	}
	return s.hopTo(t.Hop(reg.FD()))
}

// moved looks at a helping that was read or written.
func (h *hop) moved(n int) {
	switch {
	case h == nil || h.leaving:
	case n < bulkHelping:
		h.bulk = 0
	default:
		if h.bulk++; h.bulk >= bulkHelpings {
			h.leave()
		}
	}
}

// wrote looks at what was written.
func (h *hop) wrote() {
	if h == nil || h.leaving {
		return
	}
	if w := h.set.options.Hops.Wanted(); w != h.set.hopsWanted {
		h.set.hopsWanted = w
		if h.set.options.Hops.ShouldLeave(h.key) {
			h.leave()
		}
	}
}

// refuses says whether a write failed because there was no memory to hand it on
// directly; it may be tried again by TCP.
func (h *hop) refuses(e unix.Errno) bool {
	if h == nil || h.leaving || e != unix.ENOMEM {
		return false
	}
	h.leave()
	return true
}

// blocks says that nothing may be written now.
func (h *hop) blocks() bool { return h != nil && h.waiting }

// leave makes the connection ordinary TCP.
func (h *hop) leave() {
	if h == nil || h.leaving {
		return
	}
	h.leaving, h.left = true, looks
	h.step(firstLook)
}

func (h *hop) step(pause time.Duration) {
	waiting, done := h.set.options.Hops.Leave(h.key)
	was := h.waiting
	h.waiting, h.done = waiting, done
	if !waiting {
		h.left--
	}
	if !done && h.left > 0 {
		h.timer = h.set.loop.After(pause, func() { h.step(min(2*pause, lastLook)) })
	}
	if was && !waiting && h.resume != nil {
		h.resume()
	}
}

// forget ends it with its connection.
func (h *hop) forget() {
	if h != nil {
		h.timer.Stop()
		h.leaving, h.waiting = true, false
	}
}

// mayBeMixed says whether the readiness that a socket hears of now may stand for
// data that came both ways: a short read does not prove then that nothing is
// left. s is what is known of the socket. A hop that is out is TCP alone; while a
// stream is read its edges come all the time, and each would cost a read more.
func (h *hop) mayBeMixed(s state) bool {
	return h != nil && !h.done && (s&readable != 0 || h.leaving || h.set.mixed())
}

// mixing knows whether data of some application may have begun to come both ways
// lately. Then a short read does not prove that nothing is left: the edges of
// both may have been one.
//
// The edge of what came directly was raised before Hops.Mixed changed. When the
// change is seen that edge has been delivered, or comes with the next turn, or
// with a later one if that has no place for all.
type mixing struct {
	turn    time.Duration // that is and seen are about
	seen    uint32
	is      bool
	lasting bool // the next turn is concerned as well
}

func (m *mixing) look(counter uint32, full bool) {
	changed := counter != m.seen
	m.seen = counter
	m.is = changed || m.lasting
	m.lasting = changed || m.lasting && full
}

func (s *Relays) mixed() bool {
	if now := s.loop.Now(); now != s.mixing.turn {
		s.mixing.turn = now
		s.mixing.look(s.options.Hops.Mixed(), s.loop.Full())
	}
	return s.mixing.is
}
