// SPDX-License-Identifier: Apache-2.0

package load

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// Pairs describes connections between two processes of one machine, which are
// made by servers and clients as they mostly are: sockets that don't block, and
// an epoll loop.
type Pairs struct {
	// Address is that of a TCP socket, or the path of a Unix socket.
	Address string
	// Kind is "ping", messages that are answered by as much; "stream", writes
	// to a server that reads; or "connect", new connections of one ping each.
	Kind string
	// Size of a message, or a write.
	Size int
	// Count of connections at any time.
	Count int
	// CPUs is how many processors the client and the server have: 1 for both,
	// 2, one each, or 0 when the scheduler decides.
	CPUs int
	// Blocking has a single ping wait inside of read(2).
	Blocking bool
}

// headerSize: what is wanted, the size, and how many processors.
const headerSize = 6

func (p Pairs) header() []byte {
	op := byte(opEcho)
	if p.Kind == "stream" {
		op = opSink
	}
	return append(binary.LittleEndian.AppendUint32([]byte{op}, uint32(p.Size)), byte(p.CPUs))
}

// Run measures. Streams count bytes, the others round trips or connections.
func (p Pairs) Run(w Window) (Result, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	c := &pairs{Pairs: p, ends: make(map[int32]*pairEnd), message: make([]byte, headerSize+p.Size), buf: make([]byte, p.Size)}
	copy(c.message, p.header())
	cpus, err := CPUs()
	if err == nil && p.CPUs > 0 {
		err = stayOn(cpus[0])
	}
	if err != nil {
		return Result{}, err
	}
	if c.family, c.sa, err = sockaddrOf(p.Address); err != nil {
		return Result{}, err
	}
	if c.epfd, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return Result{}, fmt.Errorf("create epoll: %w", err)
	}
	defer c.close()
	for range p.Count {
		if err := c.open(); err != nil {
			return Result{}, err
		}
	}
	c.meter = newMeter(w, 4<<20)
	if p.Blocking {
		return c.pingBlocking()
	}
	return c.loop()
}

// pairs is the clients' side of all connections.
type pairs struct {
	Pairs
	family  int
	sa      unix.Sockaddr
	epfd    int
	ends    map[int32]*pairEnd
	message []byte // with the header
	buf     []byte
	meter   *meter
	inside  bool
	moved   uint64
	count   uint64
}

// pairEnd is one connection.
type pairEnd struct {
	began   time.Time // the message
	pending []byte    // not yet written
	have    int       // of the answer
}

func (c *pairs) close() {
	for fd := range c.ends {
		_ = unix.Close(int(fd))
	}
	_ = unix.Close(c.epfd)
}

func (c *pairs) open() error {
	typ := unix.SOCK_STREAM | unix.SOCK_CLOEXEC
	if !c.Blocking {
		typ |= unix.SOCK_NONBLOCK
	}
	began := time.Now()
	fd, err := unix.Socket(c.family, typ, 0)
	if err != nil {
		return fmt.Errorf("open socket: %w", err)
	}
	if c.family != unix.AF_UNIX {
		noDelay(fd)
	}
	c.ends[int32(fd)] = &pairEnd{began: began, pending: c.message}
	if err := unix.Connect(fd, c.sa); err != nil && err != unix.EINPROGRESS {
		return fmt.Errorf("connect to %s: %w", c.Address, err)
	}
	ev := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLET&0xffffffff, Fd: int32(fd)}
	if err := unix.EpollCtl(c.epfd, unix.EPOLL_CTL_ADD, fd, &ev); err != nil {
		return fmt.Errorf("watch descriptor: %w", err)
	}
	return nil
}

func (c *pairs) loop() (Result, error) {
	events := make([]unix.EpollEvent, c.Count)
	for {
		n, err := rawWait(c.epfd, events, 10_000)
		if err == nil && n == 0 {
			err = errors.New("wait for an answer: none in 10 s")
		}
		if err != nil {
			return Result{}, err
		}
		if c.over() {
			break
		}
		for _, ev := range events[:n] {
			if err := c.ready(ev.Fd); err != nil {
				return Result{}, err
			}
		}
	}
	return c.result()
}

// over says whether the window is.
func (c *pairs) over() (over bool) {
	c.inside, over = c.meter.tick(time.Now())
	return over && (c.count > 0 || c.Kind == "stream" && c.moved > 0)
}

func (c *pairs) result() (Result, error) {
	r, err := c.meter.result()
	r.Count, r.Bytes = c.count, c.moved
	return r, err
}

// burst is how much of a stream is written before others have their turn.
const burst = 1 << 20

func (c *pairs) ready(fd int32) error {
	e := c.ends[fd]
	for moved := 0; ; {
		n, err := c.write(fd, e)
		moved += n
		if err != nil {
			return err
		}
		if len(e.pending) > 0 {
			return nil // until there is room
		}
		if c.Kind != "stream" {
			break
		}
		e.pending = c.message[headerSize:]
		if moved >= burst {
			return c.again(fd)
		}
	}
	done, err := c.read(fd, e)
	if err != nil || !done {
		return err
	}
	if c.inside {
		c.meter.sample(time.Since(e.began))
		c.count++
	}
	if c.Kind == "connect" {
		delete(c.ends, fd)
		_ = unix.Close(int(fd))
		return c.open()
	}
	e.began, e.have, e.pending = time.Now(), 0, c.message[headerSize:]
	_, err = c.write(fd, e)
	return err
}

// again has epoll tell of a descriptor once more.
func (c *pairs) again(fd int32) error {
	ev := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLET&0xffffffff, Fd: fd}
	if err := unix.EpollCtl(c.epfd, unix.EPOLL_CTL_MOD, int(fd), &ev); err != nil {
		return fmt.Errorf("watch descriptor: %w", err)
	}
	return nil
}

func (c *pairs) write(fd int32, e *pairEnd) (moved int, err error) {
	for len(e.pending) > 0 {
		n, errno := rawWrite(int(fd), e.pending)
		if errno == unix.EAGAIN {
			return moved, nil
		}
		if errno != 0 {
			return moved, fmt.Errorf("connect, or write: %w", errno)
		}
		e.pending = e.pending[n:]
		moved += n
		if c.inside {
			c.moved += uint64(n)
		}
	}
	return moved, nil
}

// read says whether the answer is complete.
func (c *pairs) read(fd int32, e *pairEnd) (done bool, err error) {
	for e.have < c.Size {
		n, errno := rawRead(int(fd), c.buf[:c.Size-e.have])
		if errno == unix.EAGAIN {
			return false, nil
		}
		if errno != 0 || n == 0 {
			return false, fmt.Errorf("read %d bytes: %w", n, errno)
		}
		e.have += n
	}
	return true, nil
}

// pingBlocking waits where many programs do.
func (c *pairs) pingBlocking() (Result, error) {
	for fd, e := range c.ends { // the only one
		for {
			e.began = time.Now()
			if c.over() {
				return c.result()
			}
			if _, err := c.write(fd, e); err != nil {
				return Result{}, err
			}
			if err := readFull(int(fd), c.buf); err != nil {
				return Result{}, err
			}
			if c.inside {
				c.meter.sample(time.Since(e.began))
				c.count++
			}
			e.pending = c.message[headerSize:]
		}
	}
	return Result{}, errors.New("no connection")
}
