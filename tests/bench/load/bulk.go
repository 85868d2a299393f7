// SPDX-License-Identifier: Apache-2.0

package load

import (
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Bulk measures how much streams move: up is from the client to the server.
// What counts is the client's side of it, after the buffers on the way have
// filled.
func Bulk(addr netip.AddrPort, streams int, up bool, w Window) (Result, error) {
	b := &bulk{up: up, over: make(chan struct{})}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer b.end()
	for range streams {
		fd, err := dial(addr)
		if err != nil {
			return Result{}, err
		}
		wg.Go(func() { b.stream(fd) })
	}
	m := newMeter(w, 0)
	if err := b.sleep(w.Warm); err != nil {
		return Result{}, err
	}
	m.tick(m.opens.Add(time.Second)) // opens the window now
	before := b.moved.Load()
	moved := uint64(0)
	for moved == 0 {
		if err := b.sleep(w.Length); err != nil {
			return Result{}, err
		}
		moved = b.moved.Load() - before
	}
	r, err := m.result()
	r.Bytes = moved
	return r, err
}

type bulk struct {
	up    bool
	moved atomic.Uint64
	over  chan struct{}
	once  sync.Once

	mu  sync.Mutex
	err error
	fds []int
}

// sleep waits, unless a stream breaks.
func (b *bulk) sleep(d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-b.over:
		b.mu.Lock()
		defer b.mu.Unlock()
		return b.err
	}
}

// end makes all streams end, whatever they wait for.
func (b *bulk) end() {
	b.once.Do(func() { close(b.over) })
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, fd := range b.fds {
		_ = unix.Shutdown(fd, unix.SHUT_RDWR)
	}
}

func (b *bulk) stream(fd int) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	b.mu.Lock()
	b.fds = append(b.fds, fd)
	b.mu.Unlock()
	err := b.move(fd)
	b.mu.Lock()
	if b.err == nil {
		b.err = err
	}
	// end must not shut down a descriptor of somebody else.
	for i, other := range b.fds {
		if other == fd {
			b.fds = append(b.fds[:i], b.fds[i+1:]...)
			break
		}
	}
	_ = unix.Close(fd)
	b.mu.Unlock()
	b.once.Do(func() { close(b.over) })
}

func (b *bulk) move(fd int) error {
	op, move := byte(opSource), patiently(unix.Read, unix.POLLIN)
	if b.up {
		op, move = opSink, patiently(unix.Write, unix.POLLOUT)
	}
	if _, err := unix.Write(fd, []byte{op}); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	buf := make([]byte, bulkSize)
	for {
		select {
		case <-b.over:
			return nil
		default:
		}
		n, err := move(fd, buf)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return fmt.Errorf("move bulk data: %w", err)
		case n == 0:
			return errors.New("move bulk data: the server ended the stream")
		}
		b.moved.Add(uint64(n))
	}
}

// patiently makes move wait for a non-blocking socket.
func patiently(move func(int, []byte) (int, error), events int16) func(int, []byte) (int, error) {
	return func(fd int, p []byte) (int, error) {
		for {
			n, err := move(fd, p)
			if err != unix.EAGAIN {
				return n, err
			}
			if err := await(fd, events); err != nil {
				return 0, err
			}
		}
	}
}
