// SPDX-License-Identifier: Apache-2.0

package node

import (
	"log/slog"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/meshproxy/meshproxy/sockmap/netns"
	"github.com/meshproxy/meshproxy/sockmap/netns/helper"
)

// stocked is the helper's way into network namespaces, with sockets for the
// connections to come kept in stock: a loop that connects to an application
// must not wait for another process. Only a stock that runs out does.
type stocked struct {
	*helper.Client
	log *slog.Logger

	mu     sync.Mutex
	stocks map[stockKey]*stock
	orders sync.WaitGroup
}

type stockKey struct{ inode, family uint64 }

// stock is TCP sockets of one namespace and family. It holds as many as the
// last rush took, within bounds: they are descriptors, and memory.
type stock struct {
	fds      []int
	size     int
	ordering bool
}

const (
	minStock = 4
	maxStock = helper.MaxSockets
)

func newStocked(c *helper.Client, log *slog.Logger) *stocked {
	return &stocked{Client: c, log: log, stocks: make(map[stockKey]*stock)}
}

// Socket implements netns.Opener.
func (s *stocked) Socket(fd, domain, typ, protocol int) (int, error) {
	if fd == netns.Own || typ != unix.SOCK_STREAM || protocol != 0 {
		return s.Client.Socket(fd, domain, typ, protocol)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return -1, err
	}
	key := stockKey{st.Ino, uint64(domain)}
	if sock, ok := s.take(key, fd); ok {
		return sock, nil
	}
	return s.Client.Socket(fd, domain, typ, protocol)
}

// take takes a socket from the stock, and orders more where it runs low.
func (s *stocked) take(key stockKey, fd int) (sock int, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.stocks[key]
	if st == nil {
		st = &stock{size: minStock}
		s.stocks[key] = st
	}
	if n := len(st.fds); n > 0 {
		sock, ok = st.fds[n-1], true
		st.fds = st.fds[:n-1]
	} else if !st.ordering {
		st.size = min(2*st.size, maxStock)
	}
	if len(st.fds) < st.size/2 && !st.ordering {
		if own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0); err == nil {
			st.ordering = true
			count := st.size - len(st.fds)
			s.orders.Go(func() { s.order(key, st, own, count) })
		}
	}
	return sock, ok
}

// order fetches sockets. A helper that does not answer is met again by who needs
// a socket and finds none.
func (s *stocked) order(key stockKey, st *stock, fd, count int) {
	defer unix.Close(fd)
	fds, err := s.Sockets(fd, int(key.family), unix.SOCK_STREAM, 0, count)
	if err != nil {
		s.log.Debug("stock sockets of network namespace", "error", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	st.ordering = false
	if s.stocks[key] != st { // forgotten meanwhile
		closeDescriptors(fds)
		return
	}
	st.fds = append(st.fds, fds...)
}

// forget gives up the stock of a namespace, which would keep it alive.
func (s *stocked) forget(inode uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for key, st := range s.stocks {
		if key.inode == inode {
			closeDescriptors(st.fds)
			delete(s.stocks, key)
		}
	}
}

// wait waits for what is still under way, after all is forgotten.
func (s *stocked) wait() { s.orders.Wait() }

func closeDescriptors(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
}
