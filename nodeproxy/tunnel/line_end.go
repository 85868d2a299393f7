// SPDX-License-Identifier: Apache-2.0

package tunnel

import (
	"errors"
	"time"

	"github.com/meshproxy/meshproxy/nodeproxy/loop"
	"github.com/meshproxy/meshproxy/nodeproxy/telemetry/reason"
)

// How a line ends.

// Finish lets the line go in an orderly way: what waits, close_notify and FIN
// are sent, then the peer's end is awaited for a while. The user hears nothing
// more.
func (l *Line) Finish() {
	l.user = nil
	if l.is(lineClosed) {
		return
	}
	l.state |= lineFinishing
	l.state &^= linePaused
	l.since = l.carrier.loop.Now()
	l.CloseWrite()
	l.settle()
	if l.is(lineReadable) {
		l.again()
	}
}

// settle closes a line that nothing is left to do for. Closing with input
// unread would send RST, which may overtake the last output at the peer.
func (l *Line) settle() {
	if l.is(lineFinishing) && !l.is(lineClosed) && l.is(lineShut) && (l.is(lineGotEnd) || l.mem.eof) {
		l.close()
	}
}

// Reset ends the line at once, with RST. The user hears nothing more.
func (l *Line) Reset() {
	l.user = nil
	if !l.is(lineClosed) {
		loop.ResetOnClose(l.reg.FD())
		l.close()
	}
}

// cannotSend: the peer takes no more, because it has gone. What it sent before
// is still to be read and tells more: an alert about this end's leaf, say. Not
// now: this may be called while input is decrypted.
func (l *Line) cannotSend(err error) {
	l.state |= lineBlocked | lineReadable | lineUnsure
	if l.lost == nil {
		l.lost = reason.Wrap(reason.TunnelReset, err)
	}
	if l.is(linePaused) {
		l.lostWhilePaused()
		return
	}
	l.again()
}

// lostWhilePaused: nothing more will be read, since the user has no room.
func (l *Line) lostWhilePaused() { _ = l.carrier.loop.Post(func() { l.fail(l.lost) }) }

// fail ends the line at once, with RST: the peer must not take what it got for
// all there is.
func (l *Line) fail(err error) {
	if !l.is(lineClosed) {
		loop.ResetOnClose(l.reg.FD())
		l.end(err)
	}
}

// end ends the line at once and tells its user.
func (l *Line) end(err error) {
	l.close()
	if u := l.user; u != nil {
		l.user = nil
		u.Lost(err)
	}
}

func (l *Line) close() {
	if l.is(lineClosed) {
		return
	}
	l.state |= lineClosed
	l.reg.Close()
	l.mem.release()
	l.rest = nil
	delete(l.carrier.lines, l)
	if l.role != nil {
		l.role.ended()
	}
}

// Abort implements loop.Aborter.
func (l *Line) Abort(err error) {
	r := reason.Internal
	if errors.Is(err, loop.ErrClosed) {
		r = reason.Draining
	}
	l.fail(reason.Wrap(r, err))
}

// lookAround finds out whether the line is too old, or takes too long to end.
func (l *Line) lookAround(now time.Duration, day time.Time) {
	life := &l.carrier.options.Lifetime
	switch {
	case l.is(lineFinishing):
		if now-l.since > lingerLimit && (l.is(lineShut) || now-l.since > userTimeout) {
			l.close()
		}
	case life.CloseExpired && day.After(l.peer.Expires.Add(life.Grace)):
		l.fail(errExpired)
	}
}
