// SPDX-License-Identifier: Apache-2.0

package sockmap

import (
	"bytes"
	"errors"
	"fmt"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// patient is how long somebody waits for a socket.
type patient time.Duration

// received is how much TCP has ever delivered to a socket.
func received(fd int) (uint64, error) {
	info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		return 0, fmt.Errorf("read TCP's state: %w", err)
	}
	return info.Bytes_received, nil
}

// delivered waits until TCP has delivered so much; over loopback that has mostly
// happened when the sender's write(2) returns.
func (limit patient) delivered(fd int, want uint64) error {
	for deadline := time.Now().Add(time.Duration(limit)); ; runtime.Gosched() {
		n, err := received(fd)
		if err != nil || n >= want {
			return err
		}
		if time.Now().After(deadline) {
			return unix.ETIMEDOUT
		}
	}
}

// expect reads exactly message.
func (limit patient) expect(fd int, message []byte) error {
	got := make([]byte, len(message))
	for at := 0; at < len(got); {
		n, err := limit.read(fd, got[at:])
		if err != nil {
			return fmt.Errorf("read after %d of %d bytes: %w", at, len(got), err)
		}
		if n == 0 {
			return fmt.Errorf("end of stream after %d of %d bytes", at, len(got))
		}
		at += n
	}
	if !bytes.Equal(got, message) {
		return errors.New("bytes differ")
	}
	return nil
}

// read waits before it reads.
func (limit patient) read(fd int, p []byte) (int, error) {
	for {
		n, err := unix.Read(fd, p)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if !errors.Is(err, unix.EAGAIN) {
			return max(n, 0), err
		}
		if err := limit.await(fd, unix.POLLIN); err != nil {
			return 0, err
		}
	}
}

// write writes all of p.
func (limit patient) write(fd int, p []byte) error {
	for len(p) > 0 {
		n, err := unix.Write(fd, p)
		switch {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EAGAIN):
			if err := limit.await(fd, unix.POLLOUT); err != nil {
				return err
			}
		case err != nil:
			return err
		default:
			p = p[n:]
		}
	}
	return nil
}

// await waits until a socket is ready.
func (limit patient) await(fd int, events int16) error {
	deadline := time.Now().Add(time.Duration(limit))
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: events}}, max(int(time.Until(deadline).Milliseconds()), 0))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err == nil && n == 0 {
			return unix.ETIMEDOUT
		}
		return err
	}
}
