// SPDX-License-Identifier: Apache-2.0

package handover

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Offer is what the successor is told of the process that it follows.
type Offer struct {
	PID        int       `json:"pid"`
	Version    string    `json:"version"`
	Generation int       `json:"generation"`
	Started    time.Time `json:"started"`
	// Bypassed are the workloads that a command took out of the mesh.
	Bypassed []string `json:"bypassed,omitempty"`

	// Sockets are what the predecessor listens on, Files what else it
	// passes, by name. Either are the successor's.
	Sockets *Sockets            `json:"-"`
	Files   map[string]*os.File `json:"-"`
}

// Serving is what the predecessor is told when it is relieved.
type Serving struct {
	Version string `json:"version"`
	// Apart: the successor has state of its own in the kernel, with which the
	// predecessor's sockets have to be marked by Mark.
	Apart bool `json:"apart,omitempty"`
}

// Errors of an upgrade.
var (
	// ErrGone means that the other process has ended, or closed the
	// connection.
	ErrGone = errors.New("the other process has gone")
	// ErrTimeout means that it took too long.
	ErrTimeout = errors.New("the new process was not ready in time")
)

// Successor is the process that is to follow this one, as seen from here.
// Methods may be called from any goroutine.
type Successor struct {
	*process
	conn  conn
	stray Stray

	ready, serving chan struct{}
	lost           chan struct{} // closed when nothing more will come

	mu      sync.Mutex
	failed  error
	details Serving
	marks   map[uint64]chan error
	lastID  uint64
}

// Stray takes a connection that another process accepted on the listener of a
// network namespace; the descriptor is its own.
type Stray func(fd int, netns uint64, client netip.AddrPort)

// Start starts the program as the successor of this process. Connections that
// the successor accepts and that are this process's go to stray.
func Start(p Program, stray Stray) (*Successor, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("connect to successor: %w", err)
	}
	theirs := os.NewFile(uintptr(pair[1]), "handover")
	defer theirs.Close()
	s := &Successor{
		stray: stray, ready: make(chan struct{}), serving: make(chan struct{}), lost: make(chan struct{}),
		marks: make(map[uint64]chan error),
	}
	if s.conn, err = newConn(pair[0]); err != nil {
		return nil, err
	}
	if s.process, err = p.start(theirs); err != nil {
		s.conn.Close()
		return nil, err
	}
	go s.listen()
	return s, nil
}

// PID is the successor's.
func (s *Successor) PID() int { return s.pid }

// Gone is closed when the successor has ended.
func (s *Successor) Gone() <-chan struct{} { return s.gone }

// Offer passes duplicates of the sockets and files, which stay the caller's.
func (s *Successor) Offer(o Offer, sockets []Socket, files map[string]int) error {
	err := s.offer(o, sockets, files)
	if errors.Is(err, ErrGone) {
		<-s.lost // what it said before it went says why
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.failed
	}
	return err
}

func (s *Successor) offer(o Offer, sockets []Socket, files map[string]int) error {
	var names []string
	var fds []int
	for name, fd := range files {
		names, fds = append(names, name), append(fds, fd)
	}
	if err := s.conn.send(message{Kind: kindOffer, Offer: &o, Names: names}, fds...); err != nil {
		return err
	}
	for len(sockets) > 0 {
		n := min(len(sockets), maxDescriptors)
		names, fds = nil, nil
		for _, sock := range sockets[:n] {
			names, fds = append(names, sock.Scope), append(fds, sock.FD)
		}
		if err := s.conn.send(message{Kind: kindSockets, Names: names}, fds...); err != nil {
			return err
		}
		sockets = sockets[n:]
	}
	return s.conn.send(message{Kind: kindPrepare})
}

// AwaitReady waits until the successor has prepared all that can fail, and
// returns what Serving.Apart will be.
func (s *Successor) AwaitReady(ctx context.Context) (apart bool, err error) {
	if err := s.await(ctx, s.ready); err != nil {
		return false, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.details.Apart, nil
}

// Switch tells the successor to take over and waits until it serves.
func (s *Successor) Switch(ctx context.Context) (Serving, error) {
	if err := s.conn.send(message{Kind: kindSwitch}); err != nil {
		return Serving{}, err
	}
	if err := s.await(ctx, s.serving); err != nil {
		return Serving{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.details, nil
}

func (s *Successor) await(ctx context.Context, what <-chan struct{}) error {
	select {
	case <-what:
		return nil
	case <-s.lost:
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.failed
	case <-ctx.Done():
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return ErrTimeout
		}
		return ctx.Err()
	}
}

// Lead tells the successor that the service manager takes it for the main
// process from now on.
func (s *Successor) Lead() error { return s.conn.send(message{Kind: kindLead}) }

// Draining tells the successor how many connections this process still has.
func (s *Successor) Draining(connections int) error {
	return s.conn.send(message{Kind: kindDraining, Connections: connections})
}

// Mark has a socket of this process marked by the successor, to which the kernel
// listens by now; see Serving.Apart. client may be zero.
func (s *Successor) Mark(fd int, client netip.AddrPort) error {
	answer := make(chan error, 1)
	s.mu.Lock()
	s.lastID++
	id := s.lastID
	s.marks[id] = answer
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.marks, id)
		s.mu.Unlock()
	}()
	if err := s.conn.send(message{Kind: kindMark, ID: id, Client: client}, fd); err != nil {
		return err
	}
	timer := time.NewTimer(time.Second)
	defer timer.Stop()
	select {
	case err := <-answer:
		return err
	case <-s.lost:
		return ErrGone
	case <-timer.C:
		return ErrTimeout
	}
}

// Kill ends the successor and waits for that.
func (s *Successor) Kill() error { return s.kill() }

// Close closes the connection to the successor, which goes on alone.
func (s *Successor) Close() {
	s.conn.Close()
	<-s.lost
}

// listen handles what the successor says until it says no more.
func (s *Successor) listen() {
	for {
		m, fds, err := s.conn.receive()
		if err != nil {
			s.lose(err)
			return
		}
		if !s.handle(&m, fds) {
			closeAll(fds)
		}
		if m.Kind == kindFailed {
			s.lose(errors.New(m.Error))
			return
		}
	}
}

// handle reports whether it has taken over the descriptors.
func (s *Successor) handle(m *message, fds []int) bool {
	switch m.Kind {
	case kindReady, kindServing:
		if m.Serving != nil {
			s.mu.Lock()
			s.details = *m.Serving
			s.mu.Unlock()
		}
		if m.Kind == kindReady {
			closeOnce(s.ready)
		} else {
			closeOnce(s.serving)
		}
	case kindMarked:
		s.mu.Lock()
		answer := s.marks[m.ID]
		s.mu.Unlock()
		if answer == nil {
			return false
		}
		var err error
		if m.Error != "" {
			err = errors.New(m.Error)
		}
		answer <- err
	case kindStray:
		if len(fds) == 1 {
			s.stray(fds[0], m.NetNS, m.Client)
			return true
		}
	}
	return false
}

func (s *Successor) lose(err error) {
	s.mu.Lock()
	s.failed = err
	if isEnd(err) {
		s.failed = ErrGone
	}
	s.mu.Unlock()
	close(s.lost)
}

// closeOnce is for the one goroutine that closes c.
func closeOnce(c chan struct{}) {
	select {
	case <-c:
	default:
		close(c)
	}
}
