// SPDX-License-Identifier: Apache-2.0

package load

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// sockaddrOf takes the path of a Unix socket as well.
func sockaddrOf(address string) (family int, sa unix.Sockaddr, err error) {
	if strings.HasPrefix(address, "/") {
		return unix.AF_UNIX, &unix.SockaddrUnix{Name: address}, nil
	}
	a, err := netip.ParseAddrPort(address)
	if err != nil {
		return 0, nil, fmt.Errorf("parse address: %w", err)
	}
	family, sa = sockaddr(a)
	return family, sa, nil
}

// pairServer answers on one epoll loop.
type pairServer struct {
	epfd      int
	listeners map[int]bool
	conns     map[int]*pairConn
	buf       []byte
	cpus      []int // that it may run on
	on        int   // how many are its own and the client's, see Pairs.CPUs
}

type pairConn struct {
	header  []byte
	stream  bool
	size    int
	cpus    int
	have    int
	pending []byte // not yet written
}

// ServePairs is the other side of Pairs, for ever, or until something breaks.
// It calls ready when it listens.
func ServePairs(addresses []string, ready func()) error {
	runtime.LockOSThread()
	s := &pairServer{listeners: make(map[int]bool), conns: make(map[int]*pairConn), buf: make([]byte, 256<<10)}
	var err error
	if s.cpus, err = CPUs(); err != nil {
		return err
	}
	if s.epfd, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return fmt.Errorf("create epoll: %w", err)
	}
	for _, address := range addresses {
		family, sa, err := sockaddrOf(address)
		if err != nil {
			return err
		}
		fd, err := listenAt(family, sa)
		if err != nil {
			return fmt.Errorf("%s: %w", address, err)
		}
		s.listeners[fd] = true
		if err := s.watch(fd, unix.EPOLLIN); err != nil {
			return err
		}
	}
	ready()
	events := make([]unix.EpollEvent, 256)
	for {
		n, err := rawWait(s.epfd, events, -1)
		if err != nil {
			return err
		}
		for _, ev := range events[:n] {
			fd := int(ev.Fd)
			move := s.ready
			if s.listeners[fd] {
				move = s.accept
			}
			if err := move(fd); err != nil {
				return err
			}
		}
	}
}

func (s *pairServer) watch(fd int, events uint32) error {
	ev := unix.EpollEvent{Events: events, Fd: int32(fd)}
	if err := unix.EpollCtl(s.epfd, unix.EPOLL_CTL_ADD, fd, &ev); err != nil {
		return fmt.Errorf("watch descriptor: %w", err)
	}
	return nil
}

// accept takes all that wait.
func (s *pairServer) accept(listener int) error {
	for {
		fd, _, err := unix.Accept4(listener, unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
		switch err {
		case nil:
		case unix.EAGAIN:
			return nil
		case unix.EINTR, unix.ECONNABORTED:
			continue
		default:
			return fmt.Errorf("accept: %w", err)
		}
		noDelay(fd) // a Unix socket has no such option
		s.conns[fd] = &pairConn{}
		if err := s.watch(fd, unix.EPOLLIN|unix.EPOLLOUT|unix.EPOLLET&0xffffffff); err != nil {
			return err
		}
	}
}

// ready reads and answers until nothing is left, as edges ask for, but for
// streams, of which others must have their turn.
func (s *pairServer) ready(fd int) error {
	c := s.conns[fd]
	for moved := 0; s.flush(fd, c); {
		n, errno := rawRead(fd, s.buf)
		if errno == unix.EAGAIN {
			return nil
		}
		if errno != 0 || n == 0 {
			break
		}
		c.take(s.buf[:n])
		if err := s.place(c.cpus); err != nil {
			return err
		}
		if moved += n; c.stream && moved >= burst {
			ev := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLET&0xffffffff, Fd: int32(fd)}
			_ = unix.EpollCtl(s.epfd, unix.EPOLL_CTL_MOD, fd, &ev)
			return nil
		}
	}
	if len(c.pending) > 0 {
		return nil // until there is room
	}
	delete(s.conns, fd)
	_ = unix.Close(fd)
	return nil
}

// place has the server run where a client wants it; the client is on the first
// processor.
func (s *pairServer) place(cpus int) error {
	if cpus == s.on {
		return nil
	}
	s.on = cpus
	if cpus == 0 {
		return stayOn(s.cpus...)
	}
	return stayOn(s.cpus[(cpus-1)%len(s.cpus)])
}

// take looks at what was read; the answer to a message is as long as it.
func (c *pairConn) take(p []byte) {
	if c.size == 0 {
		n := min(headerSize-len(c.header), len(p))
		c.header, p = append(c.header, p[:n]...), p[n:]
		if len(c.header) < headerSize {
			return
		}
		c.stream, c.size = c.header[0] == opSink, int(binary.LittleEndian.Uint32(c.header[1:]))
		c.cpus = int(c.header[headerSize-1])
	}
	if c.have += len(p); !c.stream && c.have >= c.size {
		c.have -= c.size
		c.pending = answers[:c.size]
	}
}

// answers is what all of them are made of.
var answers = make([]byte, 1<<20)

// flush writes what is pending. It reports whether that is all.
func (s *pairServer) flush(fd int, c *pairConn) bool {
	for len(c.pending) > 0 {
		n, errno := rawWrite(fd, c.pending)
		if errno == unix.EAGAIN {
			return false
		}
		if errno != 0 {
			c.pending = nil
			return false
		}
		c.pending = c.pending[n:]
	}
	return true
}
