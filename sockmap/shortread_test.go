// SPDX-License-Identifier: Apache-2.0

package sockmap

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A reader with edge-triggered epoll may take a read of less than it asked for
// to be all that there is, and wait (epoll(7); nginx, Tokio and Netty do). What
// was redirected and what came by TCP behind it must therefore come with one
// read, or with another edge.

// TestShortRead: one read gives both.
func TestShortRead(t *testing.T) {
	w := newSplicing(t)
	for _, family := range []struct{ addr, at string }{{virtual4, direct4}, {virtual6, direct6}} {
		p := w.pair(family.addr, family.at)
		r := newShortReader(t, p.server)
		redirected, byTCP := randomBytes(1, 3000), randomBytes(2, 2000)
		if err := patiently.write(p.client, redirected); err != nil {
			t.Fatal(err)
		}
		if err := w.PauseSplicing("to turn to TCP"); err != nil {
			t.Fatal(err)
		}
		before, err := received(p.server)
		if err != nil {
			t.Fatal(err)
		}
		if err := patiently.write(p.client, byTCP); err != nil {
			t.Fatal(err)
		}
		if err := patiently.delivered(p.server, before+uint64(len(byTCP))); err != nil {
			t.Fatal(err)
		}
		if err := r.wait(); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 64<<10)
		if n, err := unix.Read(p.server, buf); err != nil || !bytes.Equal(buf[:max(n, 0)], append(redirected, byTCP...)) {
			t.Errorf("read %d bytes, %v", n, err)
		}
		if err := w.PauseSplicing(""); err != nil {
			t.Fatal(err)
		}
	}
}

// TestShortReads: senders that wait for an answer to each batch, of all sizes up
// to what the receiver's buffer can't hold, while splicing is turned off and on.
func TestShortReads(t *testing.T) {
	w := newSplicing(t)
	over, turned := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(turned)
		for {
			select {
			case <-over:
				return
			case <-time.After(time.Millisecond):
			}
			if err := errors.Join(w.PauseSplicing("to turn to TCP"), w.PauseSplicing("")); err != nil {
				t.Error(err)
				return
			}
		}
	}()
	var conversations sync.WaitGroup
	for i := range 12 {
		family := []struct{ addr, at string }{{virtual4, direct4}, {virtual6, direct6}, {mapped, direct4}}[i%3]
		p := w.pair(family.addr, family.at)
		from, to := p.client, p.server
		if i%2 == 1 {
			from, to = to, from
		}
		r := newShortReader(t, to)
		conversations.Go(func() {
			if err := batches(from, r, uint64(i)); err != nil {
				t.Errorf("%s, pair %d: %v", family.addr, i, err)
			}
		})
	}
	conversations.Wait()
	close(over)
	<-turned
	if tr := w.since(); tr.Redirected == 0 || tr.Fallbacks[FallbackPaused]+tr.Fallbacks[FallbackMemory] == 0 {
		t.Errorf("traffic %+v: nothing was mixed", tr)
	}
}

// TestShortReadOfOverflow: the batch is larger than the receiver's buffer, and
// nobody turns anything off.
func TestShortReadOfOverflow(t *testing.T) {
	w := newSplicing(t)
	for _, size := range []int{200_000, 500_000, 2_000_000} {
		t.Run(strconv.Itoa(size), func(t *testing.T) {
			p := w.pair(virtual4, direct4)
			r := newShortReader(t, p.server)
			for i := range 20 {
				if err := batch(p.client, r, randomBytes(uint64(i), size), 1+size/(1+i)); err != nil {
					t.Fatalf("batch %d: %v", i, err)
				}
			}
		})
	}
}

// batches sends batches of many sizes, in writes of many sizes.
func batches(from int, r *shortReader, seed uint64) error {
	random := rand.New(rand.NewPCG(seed, 3))
	for i := range 150 {
		message := randomBytes(seed+uint64(i), 1+random.IntN(1<<(4+random.IntN(16))))
		if err := batch(from, r, message, 1+random.IntN(len(message))); err != nil {
			return fmt.Errorf("batch %d of %d bytes: %w", i, len(message), err)
		}
	}
	// Nobody writes after the last one, and the end is an edge of its own.
	message := randomBytes(seed, 10_000)
	if err := errors.Join(patiently.write(from, message), unix.Shutdown(from, unix.SHUT_WR)); err != nil {
		return err
	}
	if err := r.expect(message); err != nil {
		return err
	}
	return r.end()
}

// batch sends a message in writes of a size, and waits for the answer.
func batch(from int, r *shortReader, message []byte, size int) error {
	failed := make(chan error, 1)
	go func() {
		for rest := message; len(rest) > 0; {
			n := min(size, len(rest))
			if err := patiently.write(from, rest[:n]); err != nil {
				failed <- err
				return
			}
			rest = rest[n:]
		}
		failed <- patiently.expect(from, []byte("answer"))
	}()
	err := r.expect(message)
	if err == nil {
		err = patiently.write(r.fd, []byte("answer"))
	}
	if err != nil {
		_ = unix.Shutdown(from, unix.SHUT_RDWR) // lets the sender go
	}
	return errors.Join(err, <-failed)
}

// shortReader reads until it gets less than it asked for, and then waits for
// the next edge.
type shortReader struct {
	fd, epoll int
	buf       []byte
	ready     bool
}

func newShortReader(t *testing.T, fd int) *shortReader {
	t.Helper()
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(ep) })
	ev := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLRDHUP | unix.EPOLLET&0xffffffff, Fd: int32(fd)}
	if err := unix.EpollCtl(ep, unix.EPOLL_CTL_ADD, fd, &ev); err != nil {
		t.Fatal(err)
	}
	return &shortReader{fd: fd, epoll: ep, buf: make([]byte, 128<<10)}
}

// wait waits for an edge.
func (r *shortReader) wait() error {
	deadline := time.Now().Add(time.Duration(patiently))
	for {
		events := make([]unix.EpollEvent, 1)
		n, err := unix.EpollWait(r.epoll, events, int(time.Until(deadline).Milliseconds()))
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return fmt.Errorf("wait: %w", err)
		case n == 0:
			return errors.New("no edge")
		default:
			r.ready = true
			return nil
		}
	}
}

// read reads what there is, at least a byte unless at the end.
func (r *shortReader) read() ([]byte, error) {
	for {
		if !r.ready {
			if err := r.wait(); err != nil {
				return nil, err
			}
		}
		n, err := unix.Read(r.fd, r.buf)
		r.ready = n == len(r.buf)
		if !errors.Is(err, unix.EAGAIN) {
			return r.buf[:max(n, 0)], err
		}
	}
}

func (r *shortReader) expect(message []byte) error {
	for at := 0; at < len(message); {
		got, err := r.read()
		if err != nil || len(got) == 0 {
			return errors.Join(fmt.Errorf("end after %d of %d bytes", at, len(message)), err)
		}
		if !bytes.HasPrefix(message[at:], got) {
			return fmt.Errorf("bytes differ at %d", at)
		}
		at += len(got)
	}
	return nil
}

func (r *shortReader) end() error {
	r.ready = true // EPOLLRDHUP may have come with the last of the data
	got, err := r.read()
	if len(got) > 0 {
		return fmt.Errorf("%d bytes at the end", len(got))
	}
	return err
}
