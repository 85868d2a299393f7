// SPDX-License-Identifier: Apache-2.0

package l4

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/meshproxy/meshproxy/nodeproxy/loop"
	"github.com/meshproxy/meshproxy/nodeproxy/telemetry/reason"
)

// pair carries bytes between two sockets: source and destination.
type pair struct {
	set   *Relays
	sess  Session
	limit *Limit
	ends  [2]end

	idle   uint32
	active uint32
	index  int32
	dead   bool
}

// end is one socket of a pair. What it sends goes to the other.
type end struct {
	pair  *pair
	reg   loop.Registration
	queue *queue // from the other end, not yet taken by this socket
	hop   *hop
	state state // readable, unsure, resuming, blocked, gotEnd (it sent FIN), shut (it was sent FIN)
}

const (
	source      = 0
	destination = 1
)

// join makes a pair of two connected sockets.
func (s *Relays) join(r *Route, src loop.Registration, srcState state, dst loop.Registration, dstState state) *pair {
	p := &pair{set: s, sess: r.Session, limit: r.Limit, idle: s.idle(r), active: s.now}
	enlist(&s.members, p)
	p.ends[source] = end{pair: p, reg: src, state: srcState}
	p.ends[destination] = end{pair: p, reg: dst, state: dstState}
	return p
}

func (p *pair) start() {
	for i := range p.ends {
		e := &p.ends[i]
		if e.hop != nil {
			e.state |= unsure // of what came before there was a pair
			e.hop.leave()     // nothing was written yet: it needs not wait
		}
		e.reg.SetHandler(e)
	}
	p.ends[source].pull()
	if !p.dead {
		p.ends[destination].pull()
	}
}

func (e *end) is(s state) bool { return e.state&s != 0 }

func (e *end) other() *end {
	if e == &e.pair.ends[source] {
		return &e.pair.ends[destination]
	}
	return &e.pair.ends[source]
}

// Ready implements loop.Handler.
func (e *end) Ready(ev loop.Events) {
	if e.pair.dead {
		return
	}
	if ev.Has(loop.Writable) && e.is(blocked) {
		e.state &^= blocked
		e.drain()
	}
	if ev.Has(loop.Input) && !e.pair.dead {
		if e.hop.mayBeMixed(e.state) {
			e.state |= unsure
		}
		e.state |= readable
		if ev.Has(loop.PeerClosed | loop.Hangup | loop.Failed) {
			e.state |= unsure
		}
		e.pull()
		if ev.Has(loop.Failed) && !e.pair.dead {
			if errno := loop.SocketError(e.reg.FD()); errno != 0 {
				e.failed(errno)
			}
		}
	}
}

// Resume implements loop.Resumer.
func (e *end) Resume() {
	e.state &^= resuming
	if !e.pair.dead {
		e.pull()
	}
}

func (e *end) again() {
	if !e.is(resuming) {
		e.state |= resuming
		e.pair.set.loop.Again(e)
	}
}

// pull reads one helping from this socket and passes it to the other. It waits
// while the other has something left over.
func (e *end) pull() {
	to := e.other()
	if !e.is(readable) || e.is(gotEnd) || to.queue != nil {
		return
	}
	buf := e.pair.set.loop.Scratch()
	buf = buf[:min(len(buf), pairRead)]
	n, errno := loop.Read(e.reg.FD(), buf)
	switch {
	case errno == unix.EAGAIN:
		e.state &^= readable | unsure
		return
	case errno != 0:
		e.failed(fmt.Errorf("read: %w", errno))
		return
	case n == 0:
		e.state = e.state&^readable | gotEnd
		to.endOutput()
		return
	}
	e.count(n)
	if n == len(buf) || e.is(unsure) {
		e.again()
	} else {
		e.state &^= readable
	}
	to.push(buf[:n])
}

func (e *end) count(n int) {
	p := e.pair
	p.active = p.set.now
	if e == &p.ends[source] {
		p.sess.Sent(n)
	} else {
		p.sess.Received(n)
	}
}

// push writes to this socket, and keeps what it doesn't take.
func (e *end) push(b []byte) {
	n, errno := 0, unix.EAGAIN
	if !e.is(blocked) {
		n, errno = loop.Write(e.reg.FD(), b)
	}
	switch {
	case errno == unix.EAGAIN:
		n = 0
	case errno != 0:
		e.failed(fmt.Errorf("write: %w", errno))
		return
	}
	if n == len(b) {
		return
	}
	e.state |= blocked
	e.queue = newQueue(e.pair.set.loop.Chunks(), e.pair.limit)
	if !e.queue.add(b[n:]) {
		e.pair.kill(ErrMemory)
	}
}

func (e *end) drain() {
	if e.queue != nil {
		_, errno := e.queue.writeTo(e.reg.FD(), e.pair.set.vec)
		switch {
		case errno == unix.EAGAIN:
			e.state |= blocked
			return
		case errno != 0:
			e.failed(fmt.Errorf("write: %w", errno))
			return
		}
		e.queue = nil
	}
	if from := e.other(); from.is(gotEnd) {
		e.endOutput()
	} else {
		from.pull()
	}
}

// endOutput passes the other socket's FIN on, once all before it has gone.
func (e *end) endOutput() {
	if e.queue != nil || e.is(shut) {
		return
	}
	e.state |= shut
	if e.other().is(shut) {
		e.pair.close(reason.None, "")
		return
	}
	loop.ShutdownWrite(e.reg.FD())
}

// failed passes the reset of this socket on to the other.
func (e *end) failed(err error) {
	if p := e.pair; !p.dead {
		loop.ResetOnClose(e.other().reg.FD())
		p.close(reason.Reset, err.Error())
	}
}

// Abort implements loop.Aborter.
func (e *end) Abort(err error) { e.pair.kill(ended(err)) }

func (p *pair) close(why reason.Reason, detail string) {
	p.dead = true
	for i := range p.ends {
		p.ends[i].hop.forget()
		p.ends[i].reg.Close()
		p.ends[i].queue.release()
		p.ends[i].queue = nil
	}
	strike(&p.set.members, p)
	p.limit.leave()
	p.sess.Closed(why, detail)
}

func (p *pair) session() Session { return p.sess }
func (p *pair) place() *int32    { return &p.index }

func (p *pair) look(now uint32) {
	if p.idle != 0 && now-p.active >= p.idle {
		p.kill(errIdle)
	}
}

func (p *pair) kill(err error) {
	if p.dead {
		return
	}
	for i := range p.ends {
		loop.ResetOnClose(p.ends[i].reg.FD())
	}
	p.close(reason.Of(err), err.Error())
}
