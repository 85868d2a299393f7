// SPDX-License-Identifier: Apache-2.0

package handover

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Predecessor is the process that this one is to follow, as seen from here.
// Methods may be called from any goroutine.
type Predecessor struct {
	conn conn
	mark atomic.Pointer[func(fd int, client netip.AddrPort) error]

	prepare, turn, lead chan struct{}
	lost                chan struct{} // closed when it has ended
	open                atomic.Int64

	// Of the offer: written before prepare is closed.
	offer   Offer
	sockets []Socket
}

// FromEnvironment returns the predecessor of this process, nil if it has none.
func FromEnvironment() (*Predecessor, error) {
	fd, err := inherited()
	if fd < 0 || err != nil {
		return nil, err
	}
	c, err := newConn(fd)
	if err != nil {
		return nil, err
	}
	p := &Predecessor{
		conn: c, prepare: make(chan struct{}), turn: make(chan struct{}), lead: make(chan struct{}),
		lost: make(chan struct{}), offer: Offer{Files: make(map[string]*os.File)},
	}
	go p.listen()
	return p, nil
}

// Receive waits for the whole offer.
func (p *Predecessor) Receive(ctx context.Context) (Offer, error) {
	if err := p.await(ctx, p.prepare); err != nil {
		return Offer{}, fmt.Errorf("receive what the old process hands over: %w", err)
	}
	var err error
	p.offer.Sockets, err = NewSockets(p.sockets)
	return p.offer, err
}

// Ready says that all is prepared that can fail, and waits until the predecessor
// accepts nothing any more.
func (p *Predecessor) Ready(ctx context.Context, s Serving) error {
	if err := p.conn.send(message{Kind: kindReady, Serving: &s}); err != nil {
		return err
	}
	if err := p.await(ctx, p.turn); err != nil {
		return fmt.Errorf("wait for the old process: %w", err)
	}
	return nil
}

// Serve relieves the predecessor: this process accepts. It waits until the
// service manager knows. mark marks sockets of the predecessor.
func (p *Predecessor) Serve(ctx context.Context, s Serving, mark func(fd int, client netip.AddrPort) error) error {
	p.mark.Store(&mark)
	if err := p.conn.send(message{Kind: kindServing, Serving: &s}); err != nil {
		return err
	}
	if err := p.await(ctx, p.lead); err != nil {
		return fmt.Errorf("wait for the old process to give way: %w", err)
	}
	return nil
}

// Fail tells the predecessor why this process ends.
func (p *Predecessor) Fail(why error) {
	_ = p.conn.send(message{Kind: kindFailed, Error: why.Error()})
}

// Stray gives a connection that this process accepted back to the predecessor,
// which knows it. fd stays the caller's.
func (p *Predecessor) Stray(fd int, netns uint64, client netip.AddrPort) error {
	return p.conn.send(message{Kind: kindStray, NetNS: netns, Client: client}, fd)
}

// PID is the predecessor's.
func (p *Predecessor) PID() int { return p.offer.PID }

// Connections is how many the predecessor still has open.
func (p *Predecessor) Connections() int { return int(p.open.Load()) }

// Gone is closed when the predecessor has ended.
func (p *Predecessor) Gone() <-chan struct{} { return p.lost }

// Close ends the connection; the predecessor, if it is there, goes on alone.
func (p *Predecessor) Close() {
	p.conn.Close()
	<-p.lost
}

func (p *Predecessor) await(ctx context.Context, what <-chan struct{}) error {
	select {
	case <-what:
		return nil
	case <-p.lost:
		return ErrGone
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (p *Predecessor) listen() {
	defer close(p.lost)
	for {
		m, fds, err := p.conn.receive()
		if err != nil {
			return
		}
		if !p.handle(&m, fds) {
			closeAll(fds)
		}
	}
}

// handle reports whether it has taken over the descriptors.
func (p *Predecessor) handle(m *message, fds []int) bool {
	switch m.Kind {
	case kindOffer:
		if m.Offer == nil || len(m.Names) != len(fds) {
			return false
		}
		files := p.offer.Files
		p.offer = *m.Offer
		p.offer.Files = files
		for i, name := range m.Names {
			files[name] = os.NewFile(uintptr(fds[i]), name)
		}
		return true
	case kindSockets:
		if len(m.Names) != len(fds) {
			return false
		}
		for i, scope := range m.Names {
			p.sockets = append(p.sockets, Socket{Scope: scope, FD: fds[i]})
		}
		return true
	case kindPrepare:
		closeOnce(p.prepare)
	case kindSwitch:
		closeOnce(p.turn)
	case kindLead:
		closeOnce(p.lead)
	case kindDraining:
		p.open.Store(int64(m.Connections))
	case kindMark:
		p.answer(m, fds)
	}
	return false
}

// answer marks a socket of the predecessor's, whose loop waits for it.
func (p *Predecessor) answer(m *message, fds []int) {
	reply := message{Kind: kindMarked, ID: m.ID}
	mark := p.mark.Load()
	switch {
	case mark == nil || len(fds) != 1:
		reply.Error = "nothing to mark"
	default:
		if err := (*mark)(fds[0], m.Client); err != nil {
			reply.Error = err.Error()
		}
	}
	_ = p.conn.send(reply)
}

// isEnd: the other process closed its end, or was killed.
func isEnd(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) || errors.Is(err, unix.ECONNRESET)
}
