// SPDX-License-Identifier: Apache-2.0

package l4

import (
	"errors"
	"fmt"

	"golang.org/x/net/http2/hpack"
	"golang.org/x/sys/unix"

	"github.com/meshproxy/meshproxy/nodeproxy/loop"
	"github.com/meshproxy/meshproxy/nodeproxy/telemetry/reason"
	"github.com/meshproxy/meshproxy/nodeproxy/tunnel"
	"github.com/meshproxy/meshproxy/nodeproxy/tunnel/h2"
)

// relay carries bytes between an application's socket and a stream. There is
// one per proxied connection, and most are idle: a field is paid for ten
// thousand times.
type relay struct {
	set    *Relays
	reg    loop.Registration
	stream *h2.Stream
	via    tunnel.Tunnel
	sess   Session
	limit  *Limit
	queue  *queue // payload that the socket did not take; nil without any
	hop    *hop

	idle   uint32 // in ticks, 0 for ever
	active uint32 // when something moved last
	index  int32
	state  state
}

// state is a set of facts about a relay.
type state uint16

const (
	inbound   state = 1 << iota // the stream is the source
	readable                    // the socket may have more
	unsure                      // a FIN may have come: a short read doesn't prove that nothing is left
	resuming                    // on the loop's ready list
	blocked                     // the socket takes no more
	sentEnd                     // the application's FIN is passed on
	gotEnd                      // the stream's end has come
	shut                        // and is passed on
	streaming                   // the last helping was large
	dead
)

func (r *relay) is(s state) bool { return r.state&s != 0 }

// heard is what a socket's former handler was told, as a state for the next.
func heard(ev loop.Events) (s state) {
	if ev.Has(loop.Input) {
		s |= readable
	}
	if ev.Has(loop.PeerClosed | loop.Hangup | loop.Failed) {
		s |= unsure
	}
	return s
}

// establish turns a connection whose both ends stand into a relay.
func (s *Relays) establish(r *relay) {
	r.set, r.active = s, s.now
	if r.hop != nil {
		r.hop.resume = r.resumeWriting
		r.state |= unsure // of what came before there was a relay
	}
	enlist(&s.members, r)
	r.reg.SetHandler(r)
	r.stream.SetSink(r)
	// Not now: the call comes from inside a tunnel, which a panic would end.
	r.again()
}

// ---- from the application to the tunnel

// Ready implements loop.Handler.
func (r *relay) Ready(ev loop.Events) {
	if r.is(dead) {
		return
	}
	if ev.Has(loop.Writable) && r.is(blocked) {
		r.state &^= blocked
		r.drain()
	}
	if ev.Has(loop.Input) && !r.is(dead) {
		if r.hop.mayBeMixed(r.state) {
			r.state |= unsure
		}
		r.state |= readable
		if ev.Has(loop.PeerClosed | loop.Hangup | loop.Failed) {
			r.state |= unsure
		}
		r.pull()
		if ev.Has(loop.Failed) && !r.is(dead) {
			r.lost() // reading is stalled, but the error must not wait
		}
	}
}

// Resume implements loop.Resumer.
func (r *relay) Resume() {
	r.state &^= resuming
	if r.is(dead) {
		return
	}
	if (r.queue != nil || r.is(gotEnd)) && !r.is(blocked|shut) && !r.hop.blocks() {
		r.drain() // what came before the relay stood
	}
	if !r.is(dead) {
		r.pull()
	}
}

func (r *relay) again() {
	if !r.is(resuming | dead) {
		r.state |= resuming
		r.set.loop.Again(r)
	}
}

// pull reads one helping of the application's data to where it will be
// encrypted: no more than the batch and the windows have room for.
func (r *relay) pull() {
	if !r.is(readable) || r.is(sentEnd|dead) {
		return
	}
	want := small
	if r.is(streaming) {
		want = 1 << 30
	}
	slots := r.stream.Reserve(want, r.set.slots[:0])
	if len(slots) == 0 {
		return // Writable calls again
	}
	n, room, e := r.set.read(r.reg.FD(), slots)
	r.stream.Commit(max(n, 0))
	switch {
	case e == unix.EAGAIN:
		r.state &^= readable | unsure
	case e != 0:
		r.appFailed(fmt.Errorf("read: %w", e))
	case n == 0:
		r.state &^= readable
		r.state |= sentEnd
		r.stream.CloseWrite()
		r.finish()
	default:
		r.count(n, r.is(inbound))
		r.hop.moved(n)
		if n >= small {
			r.state |= streaming
		} else {
			r.state &^= streaming
		}
		if n == room || r.is(unsure) {
			r.again()
		} else {
			// Less than there was room for: the socket is empty, and the next
			// arrival raises an edge.
			r.state &^= readable
		}
	}
}

// small is how much is read of a stream whose last helping was smaller. It takes
// one slot as a rule, and so the cheapest of system calls.
const small = 8 << 10

// read reads into slots, which have room for so much.
func (s *Relays) read(fd int, slots [][]byte) (n, room int, e unix.Errno) {
	if len(slots) == 1 {
		n, e = loop.Read(fd, slots[0])
		return n, len(slots[0]), e
	}
	s.vec = s.vec[:0]
	for _, slot := range slots {
		s.vec = append(s.vec, loop.Iovec(slot))
		room += len(slot)
	}
	n, e = loop.Readv(fd, s.vec)
	return n, room, e
}

// lost is called when the socket has failed and nothing more can be read now.
func (r *relay) lost() {
	if e := loop.SocketError(r.reg.FD()); e != 0 {
		r.appFailed(e)
	}
}

// count accounts for bytes that moved.
func (r *relay) count(n int, back bool) {
	r.active = r.set.now
	if back {
		r.sess.Received(n)
	} else {
		r.sess.Sent(n)
	}
}

// ---- from the tunnel to the application

// Data implements h2.Sink.
func (r *relay) Data(s *h2.Stream, p []byte) {
	switch {
	case r.is(dead | shut):
		s.Consumed(len(p))
	case r.queue != nil || r.is(blocked) || r.hop.blocks():
		r.enqueue(p)
	default:
		r.set.gather.add(r, p)
	}
}

// write passes on what was gathered, v, of n bytes together.
func (r *relay) write(v []unix.Iovec, n int) {
	if r.is(dead) {
		return
	}
	defer r.set.loop.Contain(r) // the tunnel is in the middle of others' data
	var done int
	var e unix.Errno
	if !r.hop.blocks() { // since this was gathered
		done, e = writePieces(r.reg.FD(), v)
	}
	switch {
	case e == unix.EAGAIN || r.hop.refuses(e):
		done = 0
	case e != 0:
		r.appFailed(fmt.Errorf("write: %w", e))
		return
	}
	if done > 0 {
		r.moved(done)
	}
	if done == n {
		return
	}
	r.state |= blocked
	for i := range v {
		piece := bytesOf(&v[i])
		if done >= len(piece) {
			done -= len(piece)
			continue
		}
		if !r.enqueue(piece[done:]) {
			return
		}
		done = 0
	}
	if r.hop != nil && e != unix.EAGAIN {
		r.state &^= blocked // nobody will say that the rest finds room
		r.drain()
	}
}

func writePieces(fd int, v []unix.Iovec) (int, unix.Errno) {
	if len(v) == 1 {
		return loop.Write(fd, bytesOf(&v[0]))
	}
	return loop.Writev(fd, v)
}

func (r *relay) moved(n int) {
	r.stream.Consumed(n)
	r.count(n, !r.is(inbound))
	r.hop.wrote()
	r.hop.moved(n)
}

// resumeWriting is called when the application has read what it was given
// directly.
func (r *relay) resumeWriting() {
	if !r.is(dead | blocked) {
		r.drain()
	}
}

func (r *relay) enqueue(p []byte) bool {
	if r.queue == nil {
		r.queue = newQueue(r.set.loop.Chunks(), r.limit)
	}
	if r.queue.add(p) {
		return true
	}
	r.kill(ErrMemory)
	return false
}

// drain writes the queue. Each write may be the one after which the hop has to
// wait.
func (r *relay) drain() {
	for r.queue != nil && !r.hop.blocks() {
		n, e := r.queue.writeSome(r.reg.FD(), r.set.vec)
		if n > 0 {
			r.moved(n)
		}
		switch {
		case r.is(dead):
			return
		case e == unix.EAGAIN:
			r.state |= blocked
			return
		case r.hop.refuses(e):
			r.again()
			return
		case e != 0:
			r.appFailed(fmt.Errorf("write: %w", e))
			return
		case len(r.queue.chunks) == 0:
			r.queue = nil
		}
	}
	r.finish()
}

// End implements h2.Sink: the other side has finished sending.
func (r *relay) End(*h2.Stream) {
	defer r.set.loop.Contain(r)
	r.set.gather.emit(r)
	r.state |= gotEnd
	r.finish()
}

// finish passes the stream's end on when all before it is, and closes when both
// directions are done.
func (r *relay) finish() {
	if r.is(dead) || r.queue != nil || r.is(blocked) || r.hop.blocks() {
		return
	}
	if r.is(gotEnd) && !r.is(shut) {
		r.state |= shut
		if !r.is(sentEnd) {
			loop.ShutdownWrite(r.reg.FD())
		}
	}
	if r.is(shut) && r.is(sentEnd) {
		r.close(reason.None, "")
	}
}

// Writable implements h2.Sink.
func (r *relay) Writable(*h2.Stream) { r.again() }

// Response implements h2.Sink; the answer came before the relay did.
func (r *relay) Response(*h2.Stream, int, []hpack.HeaderField) {}

// ---- the end

// appFailed passes a reset of the application's connection on.
func (r *relay) appFailed(err error) {
	if r.is(dead) {
		return
	}
	r.stream.Reset(h2.ConnectError)
	r.close(reason.Reset, err.Error())
}

// Reset implements h2.Sink: it passes a reset of the stream on.
func (r *relay) Reset(_ *h2.Stream, err h2.StreamError) {
	if r.is(dead) {
		return
	}
	defer r.set.loop.Contain(r)
	if err.Code == h2.NoError && r.is(gotEnd) {
		// The other side is complete and wants no more (RFC 9113, section 8.1).
		// What waits for the application still goes there.
		r.state |= sentEnd
		r.finish()
		return
	}
	why, detail := streamReason(r.via, err)
	loop.ResetOnClose(r.reg.FD())
	r.close(why, detail)
}

// streamReason finds out why a stream was reset.
func streamReason(via tunnel.Tunnel, err h2.StreamError) (reason.Reason, string) {
	if lost := via.Err(); lost != nil && !err.Remote {
		return reason.Of(lost), lost.Error()
	}
	switch err.Code {
	case h2.ConnectError, h2.Cancel, h2.NoError:
		if err.Remote {
			return reason.Reset, "reset by the other end"
		}
	case h2.ProtocolError, h2.FlowControlError, h2.FrameSizeError, h2.StreamClosed:
		return reason.ProtocolError, err.Error()
	case h2.EnhanceYourCalm:
		return reason.LimitMemory, err.Error()
	}
	return reason.TunnelReset, err.Error()
}

func (r *relay) close(why reason.Reason, detail string) {
	r.state |= dead
	r.set.gather.forget(r)
	r.hop.forget()
	r.reg.Close()
	r.queue.release()
	r.queue = nil
	strike(&r.set.members, r)
	r.limit.leave()
	r.sess.Closed(why, detail)
}

func (r *relay) session() Session { return r.sess }
func (r *relay) place() *int32    { return &r.index }

func (r *relay) look(now uint32) {
	if r.idle != 0 && now-r.active >= r.idle {
		r.kill(errIdle)
	}
}

func (r *relay) kill(err error) {
	if r.is(dead) {
		return
	}
	code := h2.Cancel
	if errors.Is(err, ErrMemory) {
		code = h2.EnhanceYourCalm
	}
	r.stream.Reset(code)
	loop.ResetOnClose(r.reg.FD())
	r.close(reason.Of(err), err.Error())
}

// Abort implements loop.Aborter.
func (r *relay) Abort(err error) { r.kill(ended(err)) }
