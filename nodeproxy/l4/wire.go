// SPDX-License-Identifier: Apache-2.0

package l4

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/meshproxy/meshproxy/nodeproxy/loop"
	"github.com/meshproxy/meshproxy/nodeproxy/telemetry/reason"
	"github.com/meshproxy/meshproxy/nodeproxy/tunnel"
)

// wire carries bytes between an application's socket and a line: a TLS
// connection for this one stream.
type wire struct {
	set   *Relays
	reg   loop.Registration
	line  *tunnel.Line
	sess  Session
	limit *Limit
	queue *queue // payload that the socket did not take; nil without any
	hop   *hop

	idle   uint32 // in ticks, 0 for ever
	active uint32 // when something moved last
	held   int32  // bytes that wait in the line, as the limit knows
	index  int32
	state  state
}

// stalled: the line takes no more.
const stalled = dead << 1

func (w *wire) is(s state) bool { return w.state&s != 0 }

// connect turns a connection whose both ends stand into a wire.
func (s *Relays) connect(w *wire) {
	w.set, w.active = s, s.now
	if w.hop != nil {
		w.state |= unsure // of what came before there was a wire
		w.hop.leave()     // nothing was written yet: it needs not wait
	}
	enlist(&s.members, w)
	w.reg.SetHandler(w)
	w.line.Attach(w)
	w.line.More()
	w.again()
}

// ---- from the application to the line

// Ready implements loop.Handler.
func (w *wire) Ready(ev loop.Events) {
	if w.is(dead) {
		return
	}
	if ev.Has(loop.Writable) && w.is(blocked) {
		w.state &^= blocked
		w.drain()
	}
	if ev.Has(loop.Input) && !w.is(dead) {
		if w.hop.mayBeMixed(w.state) {
			w.state |= unsure
		}
		w.state |= heard(ev)
		w.pull()
		if ev.Has(loop.Failed) && !w.is(dead) {
			w.lost() // reading is stalled, but the error must not wait
		}
	}
}

// Resume implements loop.Resumer.
func (w *wire) Resume() {
	w.state &^= resuming
	w.pull()
}

func (w *wire) again() {
	if !w.is(resuming | dead) {
		w.state |= resuming
		w.set.loop.Again(w)
	}
}

// pull reads one helping of the application's data and seals it.
func (w *wire) pull() {
	if !w.is(readable) || w.is(sentEnd|stalled|dead) {
		return
	}
	buf := w.set.loop.Scratch()[:tunnel.LineWrite]
	n, e := loop.Read(w.reg.FD(), buf)
	switch {
	case e == unix.EAGAIN:
		w.state &^= readable | unsure
	case e != 0:
		w.appFailed(fmt.Errorf("read: %w", e))
	case n == 0:
		w.state &^= readable
		w.state |= sentEnd
		w.line.CloseWrite()
		w.finish()
	default:
		w.count(n, w.is(inbound))
		if n == len(buf) || w.is(unsure) {
			w.again()
		} else {
			w.state &^= readable
		}
		if !w.line.Write(buf[:n]) {
			w.stall()
		}
	}
}

// stall waits for the line, which keeps what it could not send.
func (w *wire) stall() {
	w.state |= stalled
	n := w.line.Unsent()
	if !w.limit.buffer(n) {
		w.kill(ErrMemory)
		return
	}
	w.held = int32(n)
}

// Writable implements tunnel.LineUser.
func (w *wire) Writable() {
	w.giveBack()
	w.state &^= stalled
	w.again()
}

func (w *wire) giveBack() {
	w.limit.buffer(-int(w.held))
	w.held = 0
}

// lost is called when the socket has failed and nothing more can be read now.
func (w *wire) lost() {
	if e := loop.SocketError(w.reg.FD()); e != 0 {
		w.appFailed(e)
	}
}

// count accounts for bytes that moved.
func (w *wire) count(n int, back bool) {
	w.active = w.set.now
	if back {
		w.sess.Received(n)
	} else {
		w.sess.Sent(n)
	}
}

// ---- from the line to the application

// Data implements tunnel.LineUser.
func (w *wire) Data(p []byte) bool {
	if w.is(dead | shut) {
		return true
	}
	n, e := 0, unix.EAGAIN
	if !w.is(blocked) {
		n, e = loop.Write(w.reg.FD(), p)
	}
	switch {
	case e == unix.EAGAIN:
		n = 0
	case e != 0:
		w.appFailed(fmt.Errorf("write: %w", e))
		return false
	}
	if n > 0 {
		w.count(n, !w.is(inbound))
	}
	if n == len(p) {
		return true
	}
	w.state |= blocked
	w.queue = newQueue(w.set.loop.Chunks(), w.limit)
	if !w.queue.add(p[n:]) {
		w.kill(ErrMemory)
	}
	return false
}

// drain writes the queue, and then asks for more.
func (w *wire) drain() {
	if w.queue != nil {
		n, e := w.queue.writeTo(w.reg.FD(), w.set.vec)
		if n > 0 {
			w.count(n, !w.is(inbound))
		}
		switch {
		case e == unix.EAGAIN:
			w.state |= blocked
			return
		case e != 0:
			w.appFailed(fmt.Errorf("write: %w", e))
			return
		}
		w.queue = nil
		w.line.More()
	}
	w.finish()
}

// End implements tunnel.LineUser: the other side has finished sending.
func (w *wire) End() {
	w.state |= gotEnd
	w.finish()
}

// finish passes the line's end on when all before it is, and closes when both
// directions are done.
func (w *wire) finish() {
	if w.is(dead) || w.queue != nil || w.is(blocked) {
		return
	}
	if w.is(gotEnd) && !w.is(shut) {
		w.state |= shut
		if !w.is(sentEnd) {
			loop.ShutdownWrite(w.reg.FD())
		}
	}
	if w.is(shut) && w.is(sentEnd) {
		w.line.Finish() // what waits in it still goes
		w.close(reason.None, "")
	}
}

// ---- the end

// appFailed passes a reset of the application's connection on.
func (w *wire) appFailed(err error) {
	if !w.is(dead) {
		w.line.Reset()
		w.close(reason.Reset, err.Error())
	}
}

// Lost implements tunnel.LineUser: it passes the loss of the line on.
func (w *wire) Lost(err error) {
	if w.is(dead) {
		return
	}
	why := reason.Of(err)
	if errors.Is(err, unix.ECONNRESET) {
		why = reason.Reset // by the other end, as far as one can tell
	}
	loop.ResetOnClose(w.reg.FD())
	w.close(why, err.Error())
}

func (w *wire) close(why reason.Reason, detail string) {
	w.state |= dead
	w.hop.forget()
	w.reg.Close()
	w.queue.release()
	w.queue = nil
	w.giveBack()
	strike(&w.set.members, w)
	w.limit.leave()
	w.sess.Closed(why, detail)
}

func (w *wire) session() Session { return w.sess }
func (w *wire) place() *int32    { return &w.index }

func (w *wire) look(now uint32) {
	if w.idle != 0 && now-w.active >= w.idle {
		w.kill(errIdle)
	}
}

func (w *wire) kill(err error) {
	if w.is(dead) {
		return
	}
	w.line.Reset()
	loop.ResetOnClose(w.reg.FD())
	w.close(reason.Of(err), err.Error())
}

// Abort implements loop.Aborter.
func (w *wire) Abort(err error) { w.kill(ended(err)) }
