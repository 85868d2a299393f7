// SPDX-License-Identifier: Apache-2.0

package tunnel

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/meshproxy/meshproxy/nodeproxy/loop"
	"github.com/meshproxy/meshproxy/nodeproxy/telemetry/reason"
)

// LineWrite is the most that one Line.Write takes. What a stalled line keeps is
// bounded by it: eight records write nearly as fast as sixteen.
const LineWrite = 8 * recordSize

// lineRecordOverhead is the most that the cipher suites of TLS 1.2 and 1.3 add
// to a record: header, explicit nonce, tag.
const lineRecordOverhead = 5 + 8 + 16

// lineReplies bounds what crypto/tls may answer by itself (KeyUpdate) while the
// peer takes nothing.
const lineReplies = 16 << 10

var (
	errTruncated = reason.Wrap(reason.TunnelReset, errors.New("peer ended the connection without close_notify"))
	errLineFlood = reason.Wrap(reason.LimitFlood, errors.New("peer asks for answers that it does not take"))
)

// Line is a TLS connection that carries one stream, as Consul's sidecars speak
// it. It belongs to its loop.
//
// A line that is handed out is paused and has no user: call Attach, then More.
// Nothing is buffered for the user. A line that the socket takes no more from
// keeps the rest of one Write.
type Line struct {
	carrier *Carrier
	reg     loop.Registration
	tls     *tls.Conn
	mem     *memory
	peer    Peer
	user    LineUser // nil when nobody wants to hear any more
	role    lineRole
	rest    []byte // ciphertext that the socket did not take; goes before what mem has
	lost    error  // why nothing can be sent; it ends when its input does
	since   time.Duration
	state   lineState
}

// LineUser is whom a Line serves. Its methods are called on the loop.
type LineUser interface {
	// Data brings plaintext, which is valid during the call. It reports whether
	// it wants more; if not, More asks for it.
	Data(p []byte) bool
	// End says that the peer has finished sending.
	End()
	// Writable says that Write may be called again.
	Writable()
	// Lost says that the line is no more, and why. It is the last call.
	Lost(err error)
}

// lineRole is told once that a line has ended.
type lineRole interface{ ended() }

// lineState is a set of facts about a line.
type lineState uint16

const (
	lineClient    lineState = 1 << iota // this end is TLS's client
	lineFresh                           // the first read is still to come
	lineReadable                        // the socket may have more
	lineUnsure                          // a FIN may have come: a short read doesn't prove that nothing is left
	linePaused                          // the user wants nothing now
	lineResuming                        // on the loop's ready list
	lineBlocked                         // the socket takes no more
	lineHeard                           // plaintext has come
	lineGotEnd                          // close_notify has come
	lineSentEnd                         // close_notify is sealed
	lineShut                            // and sent, with FIN
	lineFinishing                       // nobody takes input any more
	lineClosed
)

func (l *Line) is(s lineState) bool { return l.state&s != 0 }

// adoptLine moves a connection to the loop. On an error it is closed.
func (c *Carrier) adoptLine(s *secured, r lineRole, client bool) (*Line, error) {
	l := &Line{
		carrier: c, tls: s.tls, mem: s.mem, peer: s.peer, role: r,
		state: lineFresh | lineReadable | lineUnsure | linePaused,
	}
	if client {
		l.state |= lineClient
	}
	l.mem.pool = c.lineOut
	var err error
	if l.reg, err = c.loop.Register(s.fd, l); err != nil {
		_ = unix.Close(s.fd)
		return nil, fmt.Errorf("adopt line: %w", err)
	}
	c.lines[l] = struct{}{}
	return l, nil
}

// Attach makes u the line's user.
func (l *Line) Attach(u LineUser) { l.user = u }

// Peer is what the handshake proved. It is read-only and stays valid.
func (l *Line) Peer() *Peer { return &l.peer }

// Unsent is the number of bytes that wait for the socket.
func (l *Line) Unsent() int { return len(l.rest) + l.mem.unsent() }

// More asks for input, after the user had enough.
func (l *Line) More() {
	l.state &^= linePaused
	// Input may have come together with the handshake's last message, and be in
	// crypto/tls's buffer already, where no event tells of it.
	if l.is(lineReadable) {
		l.again()
	}
}

func (l *Line) again() {
	if !l.is(lineResuming | lineClosed) {
		l.state |= lineResuming
		l.carrier.loop.Again(l)
	}
}

// Ready implements loop.Handler.
func (l *Line) Ready(ev loop.Events) {
	if ev.Has(loop.Writable) && l.is(lineBlocked) && l.lost == nil {
		l.state &^= lineBlocked
		if l.flush() && l.user != nil && !l.is(lineSentEnd) {
			l.user.Writable()
		}
	}
	if ev.Has(loop.Input) && !l.is(lineClosed) {
		l.state |= lineReadable
		if ev.Has(loop.PeerClosed | loop.Hangup | loop.Failed) {
			l.state |= lineUnsure
		}
		l.read()
		if ev.Has(loop.Failed) && l.is(linePaused) && !l.is(lineClosed) {
			// Reading is stalled, but the error must not wait.
			if e := loop.SocketError(l.reg.FD()); e != 0 {
				l.fail(reason.Wrap(reason.TunnelReset, e))
			}
		}
	}
}

// Resume implements loop.Resumer: there was more to read than one turn allows.
func (l *Line) Resume() {
	l.state &^= lineResuming
	l.read()
}

// Write seals p, of LineWrite bytes at most, and sends it. False says that the
// socket takes no more: nothing may be written before Writable.
func (l *Line) Write(p []byte) bool {
	if l.is(lineClosed | lineSentEnd) {
		return true // it was lost meanwhile; the user has been told or will be
	}
	if _, err := l.tls.Write(p); err != nil {
		l.cannotSend(fmt.Errorf("write line: %w", err))
		return false
	}
	return l.flush()
}

// CloseWrite says that nothing more will be written: close_notify, then FIN.
func (l *Line) CloseWrite() {
	if l.is(lineClosed | lineSentEnd) {
		return
	}
	l.state |= lineSentEnd
	_ = l.tls.CloseWrite() // into memory
	l.flush()
}

// flush writes what waits. It reports whether the socket took all.
func (l *Line) flush() bool {
	switch {
	case l.is(lineBlocked | lineClosed):
		l.keep()
		return false
	case l.is(lineShut):
		l.mem.release() // crypto/tls answers what nobody will hear
		return true
	}
	e := l.sendRest()
	if e == 0 {
		e = l.mem.send(l.reg.FD())
	}
	switch {
	case e == unix.EAGAIN:
		l.state |= lineBlocked
		l.keep()
		return false
	case e != 0:
		l.cannotSend(fmt.Errorf("write line: %w", e))
		return false
	}
	if l.is(lineSentEnd) && !l.is(lineShut) {
		l.state |= lineShut
		loop.ShutdownWrite(l.reg.FD())
		l.settle()
	}
	return true
}

func (l *Line) sendRest() unix.Errno {
	for len(l.rest) > 0 {
		n, e := loop.Write(l.reg.FD(), l.rest)
		if e != 0 {
			return e
		}
		l.rest = l.rest[n:]
	}
	l.rest = nil
	return 0
}

// keep puts what the socket did not take into memory of its size, so that a
// stalled line doesn't hold a whole buffer of the loop.
func (l *Line) keep() {
	if l.mem.unsent() > 0 {
		l.rest = append(slices.Clip(l.rest), l.mem.sealed[l.mem.sent:]...)
		l.mem.release()
	}
}

// read takes one helping of ciphertext and passes on what it holds.
func (l *Line) read() {
	if !l.is(lineReadable) || l.is(linePaused|lineClosed) {
		return
	}
	scratch := l.carrier.loop.Scratch()
	cipher, plain := scratch[:LineWrite], scratch[LineWrite:]
	n, e := loop.Read(l.reg.FD(), cipher)
	switch {
	case l.lost != nil && n <= 0:
		l.fail(l.lost)
		return
	case e == unix.EAGAIN:
		l.state &^= lineReadable | lineUnsure
		if !l.is(lineFresh) {
			return
		}
	case e != 0:
		l.fail(reason.Wrap(reason.TunnelReset, fmt.Errorf("read line: %w", e)))
		return
	case n == 0 && l.is(lineFresh):
		// The handshake may have read all there was, the end that TLS has
		// included: that comes first. The socket's is still there after it.
		l.state &^= lineFresh
	case n == 0:
		l.state &^= lineReadable
		l.mem.eof = true
	case n < len(cipher) && !l.is(lineUnsure):
		l.state &^= lineReadable // the next arrival raises an edge
	}
	if l.is(lineGotEnd | lineFinishing) {
		l.settle() // nobody takes it any more
	} else {
		l.state &^= lineFresh
		l.mem.in = cipher[:max(n, 0)]
		l.decrypt(plain, l.mem.eof)
		l.mem.in = nil
	}
	if l.is(lineReadable) && !l.is(linePaused) {
		l.again()
	}
}

// decrypt passes on the plaintext of what was read, all of it at once. ended
// says that nothing was: the socket's end has come.
func (l *Line) decrypt(plain []byte, ended bool) {
	n, err := 0, error(nil)
	for err == nil {
		var k int
		k, err = l.tls.Read(plain[n:])
		n += k
	}
	if n > 0 && l.user != nil {
		l.state |= lineHeard
		if !l.user.Data(plain[:n]) {
			l.state |= linePaused
		}
	}
	if l.is(lineClosed) {
		return
	}
	if l.mem.unsent() > 0 && !l.flush() && l.Unsent() > LineWrite+lineReplies {
		l.fail(errLineFlood)
		return
	}
	switch {
	case err == error(errNoData):
	case err == io.EOF && ended:
		l.fail(errTruncated)
	case err == io.EOF:
		l.state |= lineGotEnd
		if l.user != nil {
			l.user.End()
		}
	default:
		l.end(reason.Wrap(l.blame(err), fmt.Errorf("read line: %w", err)))
	}
}

// blame finds the reason for an error of crypto/tls. In TLS 1.3 the server
// tells its opinion of the client's leaf, or that it denies the client as
// Consul's builtin proxy does, only after the client's handshake is over.
func (l *Line) blame(err error) reason.Reason {
	switch r := reason.Of(err); {
	case r == reason.PeerUntrusted && l.is(lineClient) && !l.is(lineHeard):
		return reason.PeerDenied
	case r == reason.Internal:
		return reason.TunnelReset
	default:
		return r
	}
}
