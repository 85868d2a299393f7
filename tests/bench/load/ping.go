// SPDX-License-Identifier: Apache-2.0

package load

import (
	"fmt"
	"net/netip"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// Ping measures round trips of one message at a time over each of conns
// connections.
func Ping(addr netip.AddrPort, conns int, w Window) (Result, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	fds := make([]int, conns)
	for i := range fds {
		fd, err := dialEcho(addr)
		if err != nil {
			return Result{}, err
		}
		defer unix.Close(fd)
		fds[i] = fd
	}
	if conns == 1 {
		return pingOne(fds[0], w)
	}
	return pingMany(fds, w)
}

func pingOne(fd int, w Window) (Result, error) {
	m := newMeter(w, 4<<20)
	buf := make([]byte, messageSize)
	var count uint64
	for {
		begin := time.Now()
		inside, over := m.tick(begin)
		if over && count > 0 {
			break
		}
		if _, errno := rawWrite(fd, buf); errno != 0 {
			return Result{}, fmt.Errorf("write: %w", errno)
		}
		// The answer is never there yet; who waits for many sockets would not try.
		if err := await(fd, unix.POLLIN); err != nil {
			return Result{}, err
		}
		if err := readFull(fd, buf); err != nil {
			return Result{}, err
		}
		if inside {
			m.sample(time.Since(begin))
			count++
		}
	}
	r, err := m.result()
	r.Count = count
	return r, err
}

// pinger is one of many connections.
type pinger struct {
	sent time.Time
	have int // bytes of the answer so far
}

func pingMany(fds []int, w Window) (Result, error) {
	epfd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return Result{}, fmt.Errorf("create epoll: %w", err)
	}
	defer unix.Close(epfd)
	m := newMeter(w, 8<<20)
	pingers := make(map[int]*pinger, len(fds))
	buf := make([]byte, messageSize)
	for _, fd := range fds {
		ev := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)}
		if err := unix.EpollCtl(epfd, unix.EPOLL_CTL_ADD, fd, &ev); err != nil {
			return Result{}, fmt.Errorf("watch descriptor: %w", err)
		}
		pingers[fd] = &pinger{sent: time.Now()}
		if _, errno := rawWrite(fd, buf); errno != 0 {
			return Result{}, fmt.Errorf("write: %w", errno)
		}
	}
	events := make([]unix.EpollEvent, len(fds))
	var count uint64
	for {
		n, err := rawWait(epfd, events, -1)
		if err != nil {
			return Result{}, err
		}
		inside, over := m.tick(time.Now())
		if over && count > 0 {
			break
		}
		for _, ev := range events[:n] {
			fd := int(ev.Fd)
			p := pingers[fd]
			got, errno := rawRead(fd, buf[:messageSize-p.have])
			if errno == unix.EAGAIN {
				continue
			}
			if errno != 0 || got == 0 {
				return Result{}, fmt.Errorf("read %d bytes: %w", got, errno)
			}
			if p.have += got; p.have < messageSize {
				continue
			}
			now := time.Now()
			if inside {
				m.sample(now.Sub(p.sent))
				count++
			}
			p.have, p.sent = 0, now
			if _, errno := rawWrite(fd, buf); errno != 0 {
				return Result{}, fmt.Errorf("write: %w", errno)
			}
		}
	}
	r, err := m.result()
	r.Count = count
	return r, err
}
