// SPDX-License-Identifier: Apache-2.0

package load

import (
	"fmt"
	"net/netip"
	"runtime"

	"golang.org/x/sys/unix"
)

// server answers pings on one epoll loop; bulk streams get a thread each.
type server struct {
	epfd     int
	listener int
	state    []connState // by descriptor
	buf      []byte
}

type connState uint8

const (
	stateClosed connState = iota
	stateNew              // the first byte hasn't come
	stateEcho
)

// Serve serves for ever, or until something breaks. It calls ready when it
// listens.
func Serve(addr netip.AddrPort, ready func()) error {
	runtime.LockOSThread()
	s := &server{state: make([]connState, 1<<20), buf: make([]byte, 64<<10)}
	var err error
	if s.listener, err = listen(addr); err != nil {
		return err
	}
	if s.epfd, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return fmt.Errorf("create epoll: %w", err)
	}
	if err := s.watch(s.listener); err != nil {
		return err
	}
	ready()
	events := make([]unix.EpollEvent, 256)
	for {
		n, err := rawWait(s.epfd, events, -1)
		if err != nil {
			return err
		}
		for _, ev := range events[:n] {
			if int(ev.Fd) == s.listener {
				if err := s.accept(); err != nil {
					return err
				}
				continue
			}
			s.readable(int(ev.Fd))
		}
	}
}

func listen(addr netip.AddrPort) (int, error) {
	fd, err := listenAt(sockaddr(addr))
	if err != nil {
		return -1, fmt.Errorf("%s: %w", addr, err)
	}
	return fd, nil
}

func listenAt(family int, sa unix.Sockaddr) (int, error) {
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, fmt.Errorf("open socket: %w", err)
	}
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	if err := unix.Bind(fd, sa); err != nil {
		return -1, fmt.Errorf("bind: %w", err)
	}
	if err := unix.Listen(fd, 4096); err != nil {
		return -1, fmt.Errorf("listen: %w", err)
	}
	return fd, nil
}

func (s *server) watch(fd int) error {
	ev := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)}
	if err := unix.EpollCtl(s.epfd, unix.EPOLL_CTL_ADD, fd, &ev); err != nil {
		return fmt.Errorf("watch descriptor: %w", err)
	}
	return nil
}

// accept takes all that wait.
func (s *server) accept() error {
	for {
		fd, _, err := unix.Accept4(s.listener, unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
		switch err {
		case nil:
		case unix.EAGAIN:
			return nil
		case unix.EINTR, unix.ECONNABORTED:
			continue
		default:
			return fmt.Errorf("accept: %w", err)
		}
		noDelay(fd)
		s.state[fd] = stateNew
		if err := s.watch(fd); err != nil {
			return err
		}
	}
}

func (s *server) readable(fd int) {
	buf := s.buf
	if s.state[fd] == stateNew {
		// Only the byte that says what is wanted: the rest may belong to
		// the thread of a bulk stream.
		buf = buf[:1]
	}
	n, errno := rawRead(fd, buf)
	if errno == unix.EAGAIN {
		return
	}
	if errno != 0 || n == 0 {
		s.close(fd)
		return
	}
	if s.state[fd] == stateEcho {
		// A ping is too small for a partial write.
		if _, errno := rawWrite(fd, buf[:n]); errno != 0 {
			s.close(fd)
		}
		return
	}
	switch buf[0] {
	case opEcho:
		s.state[fd] = stateEcho
		s.readable(fd)
	case opSink:
		s.bulk(fd, patiently(unix.Read, unix.POLLIN))
	case opSource:
		s.bulk(fd, patiently(unix.Write, unix.POLLOUT))
	default:
		s.close(fd)
	}
}

func (s *server) close(fd int) {
	s.state[fd] = stateClosed
	_ = unix.Close(fd)
}

// bulk moves the connection to a thread of its own.
func (s *server) bulk(fd int, move func(int, []byte) (int, error)) {
	s.state[fd] = stateClosed
	_ = unix.EpollCtl(s.epfd, unix.EPOLL_CTL_DEL, fd, nil)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer unix.Close(fd)
		buf := make([]byte, bulkSize)
		for {
			n, err := move(fd, buf)
			if err == unix.EINTR {
				continue
			}
			if err != nil || n == 0 {
				return
			}
		}
	}()
}
