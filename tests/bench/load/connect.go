// SPDX-License-Identifier: Apache-2.0

package load

import (
	"fmt"
	"net/netip"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// Connect measures new connections: connect, a ping and its answer, close;
// parallel of them at any time.
func Connect(addr netip.AddrPort, parallel int, w Window) (Result, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	c, err := newConnector(addr)
	if err != nil {
		return Result{}, err
	}
	defer c.close()
	for range parallel {
		if err := c.open(); err != nil {
			return Result{}, err
		}
	}
	m := newMeter(w, 1<<20)
	events := make([]unix.EpollEvent, parallel)
	var count uint64
	for {
		n, err := rawWait(c.epfd, events, 1000)
		if err != nil {
			return Result{}, err
		}
		inside, over := m.tick(time.Now())
		if over && count > 0 {
			break
		}
		for _, ev := range events[:n] {
			took, done, err := c.ready(int(ev.Fd))
			if err != nil {
				return Result{}, err
			}
			if !done {
				continue
			}
			if inside {
				m.sample(took)
				count++
			}
			c.finish(int(ev.Fd))
			if err := c.open(); err != nil {
				return Result{}, err
			}
		}
	}
	r, err := m.result()
	r.Count = count
	return r, err
}

// Idle opens count connections, 64 at a time, each with one ping and its
// answer, and returns a function that closes them.
func Idle(addr netip.AddrPort, count int) (closeAll func(), err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	c, err := newConnector(addr)
	if err != nil {
		return nil, err
	}
	parallel := min(64, count)
	for range parallel {
		if err := c.open(); err != nil {
			c.close()
			return nil, err
		}
	}
	events := make([]unix.EpollEvent, parallel)
	for opened, answered := parallel, 0; answered < count; {
		n, err := rawWait(c.epfd, events, 30_000)
		if err == nil && n == 0 {
			err = fmt.Errorf("open idle connections: no answer; %d are open", answered)
		}
		if err != nil {
			c.close()
			return nil, err
		}
		for _, ev := range events[:n] {
			_, done, err := c.ready(int(ev.Fd))
			if err == nil && done {
				answered++
				if opened < count {
					opened++
					err = c.open()
				}
			}
			if err != nil {
				c.close()
				return nil, fmt.Errorf("%w; %d connections are open", err, answered)
			}
		}
	}
	return c.close, nil
}

// connector has connections that are being made.
type connector struct {
	family int
	sa     unix.Sockaddr
	epfd   int
	conns  map[int]*connecting
	first  []byte
	buf    []byte
}

type connecting struct {
	began time.Time
	sent  bool
	have  int
}

func newConnector(addr netip.AddrPort) (*connector, error) {
	c := &connector{conns: map[int]*connecting{}, first: make([]byte, 1+messageSize), buf: make([]byte, messageSize)}
	c.first[0] = opEcho
	c.family, c.sa = sockaddr(addr)
	var err error
	if c.epfd, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, fmt.Errorf("create epoll: %w", err)
	}
	return c, nil
}

func (c *connector) close() {
	for fd := range c.conns {
		_ = unix.Close(fd)
	}
	_ = unix.Close(c.epfd)
}

// open begins a connection.
func (c *connector) open() error {
	began := time.Now()
	fd, err := unix.Socket(c.family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("open socket: %w", err)
	}
	noDelay(fd)
	if err := unix.Connect(fd, c.sa); err != nil && err != unix.EINPROGRESS {
		_ = unix.Close(fd)
		return fmt.Errorf("connect: %w", err)
	}
	ev := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLET&0xffffffff, Fd: int32(fd)}
	if err := unix.EpollCtl(c.epfd, unix.EPOLL_CTL_ADD, fd, &ev); err != nil {
		_ = unix.Close(fd)
		return fmt.Errorf("watch descriptor: %w", err)
	}
	c.conns[fd] = &connecting{began: began}
	return nil
}

// ready goes on with a connection; done means that it has its answer, which
// took the time since it was begun.
func (c *connector) ready(fd int) (took time.Duration, done bool, err error) {
	conn := c.conns[fd]
	if !conn.sent {
		if n, errno := rawWrite(fd, c.first); errno == unix.EAGAIN {
			return 0, false, nil
		} else if errno != 0 || n < len(c.first) {
			return 0, false, fmt.Errorf("connect, or write %d bytes: %w", n, errno)
		}
		conn.sent = true
	}
	for conn.have < messageSize {
		n, errno := rawRead(fd, c.buf[:messageSize-conn.have])
		if errno == unix.EAGAIN {
			return 0, false, nil
		}
		if errno != 0 || n == 0 {
			return 0, false, fmt.Errorf("connect, or read %d bytes: %w", n, errno)
		}
		conn.have += n
		if conn.have == messageSize {
			return time.Since(conn.began), true, nil
		}
	}
	// An event after the answer: an idle connection was closed by the other
	// side.
	if n, errno := rawRead(fd, c.buf); errno != unix.EAGAIN {
		return 0, false, fmt.Errorf("idle connection ended: read %d bytes: %w", n, errno)
	}
	return 0, false, nil
}

func (c *connector) finish(fd int) {
	delete(c.conns, fd)
	_ = unix.Close(fd)
}
