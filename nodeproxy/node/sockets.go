// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/meshproxy/meshproxy/nodeproxy/handover"
)

// nodeScope is the scope of sockets that are the node's own and no namespace's.
const nodeScope = "node"

// meshScope is the scope of the listeners that other nodes dial.
const meshScope = "mesh"

// netnsScope is the scope of the sockets of a network namespace.
func netnsScope(cookie uint64) string { return netnsScopes + strconv.FormatUint(cookie, 10) }

const netnsScopes = "netns-"

// lineScope is the scope of a workload's own port for lines.
func lineScope(port uint16) string { return lineScopes + strconv.Itoa(int(port)) }

const lineScopes = "line-"

// sockets opens everything that the node listens on: takes it over from an
// earlier process where it can, so that no connection that waits in an accept
// queue is lost. It keeps a descriptor of each for the process that follows.
type sockets struct {
	inherited *handover.Sockets

	mu     sync.Mutex
	open   []handover.Socket
	closed bool
	// opened and gone, if not nil, hear of what is opened and closed.
	opened func(handover.Socket)
	gone   func(scope string)
}

// listenTCP opens a listener in the node's own namespace.
func (s *sockets) listenTCP(ctx context.Context, scope, address string, mark control) (*net.TCPListener, error) {
	return s.keepTCP(scope, address, mark, func() (*net.TCPListener, error) { return listenTCP(ctx, address, mark) })
}

// keepTCP returns an inherited listener, or what anew opens.
func (s *sockets) keepTCP(scope, address string, mark control, anew func() (*net.TCPListener, error)) (*net.TCPListener, error) {
	had, err := s.inherited.Listener(scope, "tcp", address)
	if err != nil {
		return nil, err
	}
	ln, ok := had.(*net.TCPListener)
	if !ok {
		if ln, err = anew(); err != nil {
			return nil, err
		}
	}
	return keep(s, scope, ln, mark)
}

// keepUDP is keepTCP for datagrams.
func (s *sockets) keepUDP(scope, address string, mark control, anew func() (net.PacketConn, error)) (net.PacketConn, error) {
	pc, err := s.inherited.PacketConn(scope, address)
	if pc == nil && err == nil {
		pc, err = anew()
	}
	if err != nil {
		return nil, fmt.Errorf("listen for DNS: %w", err)
	}
	return keep(s, scope, pc, mark)
}

// listen has the shape of admin.Options.Listen.
func (s *sockets) listen(network, address string, anew func() (net.Listener, error)) (net.Listener, error) {
	ln, err := s.inherited.Listener(nodeScope, network, address)
	if ln != nil && network == "unix" {
		if _, statErr := os.Lstat(address); statErr != nil {
			// Nobody finds it there any more.
			_ = ln.Close()
			ln = nil
		}
	}
	if ln == nil && err == nil {
		ln, err = anew()
	}
	if err != nil {
		return nil, err
	}
	c, ok := ln.(interface {
		net.Listener
		syscall.Conn
	})
	if !ok {
		return ln, nil
	}
	return keep[net.Listener](s, nodeScope, c, nil)
}

// keep notes a socket and marks it: one that is inherited has no mark in state
// of another layout. On an error it is closed.
func keep[C interface{ Close() error }](s *sockets, scope string, c C, mark control) (_ C, err error) {
	raw, err := any(c).(syscall.Conn).SyscallConn()
	if err == nil && mark != nil {
		err = mark("", "", raw)
	}
	var dup int
	if err == nil {
		err = withFD(any(c).(syscall.Conn), func(fd int) (err error) { dup, err = handover.Duplicate(fd); return err })
	}
	if err != nil {
		_ = c.Close()
		return c, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		_ = unix.Close(dup)
		_ = c.Close()
		return c, net.ErrClosed
	}
	sock := handover.Socket{Scope: scope, FD: dup}
	s.open = append(s.open, sock)
	if s.opened != nil {
		s.opened(sock)
	}
	return c, nil
}

// follow calls opened for each socket, those that are open already too, and gone
// for each scope that is closed.
func (s *sockets) follow(opened func(handover.Socket), gone func(scope string)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.opened, s.gone = opened, gone
	for _, sock := range s.open {
		opened(sock)
	}
}

// closeInherited closes what was not taken up and returns its scopes.
func (s *sockets) closeInherited() []string {
	scopes := s.inherited.Scopes()
	s.inherited.Close()
	return scopes
}

// all calls f with what is open; the descriptors stay open meanwhile.
func (s *sockets) all(f func([]handover.Socket) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return f(slices.Clone(s.open))
}

// forget closes the kept sockets of a scope.
func (s *sockets) forget(scope string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open = slices.DeleteFunc(s.open, func(sock handover.Socket) bool {
		if sock.Scope == scope {
			_ = unix.Close(sock.FD)
		}
		return sock.Scope == scope
	})
	if s.gone != nil {
		s.gone(scope)
	}
}

// forgetMesh closes what was kept of the listeners that other nodes dial: none
// of them shall wait for a process that takes nothing new.
func (s *sockets) forgetMesh() {
	var scopes []string
	s.mu.Lock()
	for _, sock := range s.open {
		if sock.Scope == meshScope || strings.HasPrefix(sock.Scope, lineScopes) {
			scopes = append(scopes, sock.Scope)
		}
	}
	s.mu.Unlock()
	slices.Sort(scopes)
	for _, scope := range slices.Compact(scopes) {
		s.forget(scope)
	}
}

// close closes everything that was kept or not taken up.
func (s *sockets) close() {
	s.inherited.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for _, sock := range s.open {
		_ = unix.Close(sock.FD)
	}
	s.open = nil
}

// withFD calls f with the descriptor of a listener, which stays the
// listener's.
func withFD(c syscall.Conn, f func(fd int) error) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	if err := raw.Control(func(fd uintptr) { inner = f(int(fd)) }); err != nil {
		return err
	}
	return inner
}
