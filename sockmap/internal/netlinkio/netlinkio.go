// SPDX-License-Identifier: Apache-2.0

// Package netlinkio asks the kernel over a netlink socket that somebody else
// has made: in another network namespace, a process may be given sockets where
// it can't make them. It must not know what is asked.
package netlinkio

import (
	"encoding/binary"
	"errors"
	"fmt"
	"syscall"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// patience bounds how long the kernel may take for one part of an answer. It
// answers while it handles the request, so only a lost answer takes longer.
const patience = 10 // seconds

// receiveBuffer holds what the kernel puts into one datagram at most
// (NLMSG_GOODSIZE, and 32 KiB for dumps to readers with large buffers).
const receiveBuffer = 64 << 10

// Prepare makes a netlink socket ready for Execute.
func Prepare(fd int) error {
	if err := unix.SetNonblock(fd, false); err != nil {
		return fmt.Errorf("prepare netlink socket: %w", err)
	}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: patience}); err != nil {
		return fmt.Errorf("set timeout of netlink socket: %w", err)
	}
	return nil
}

// Execute sends a request and calls fn with the body of each message of the
// answer, until fn returns false. The caller sees to it that one request is
// under way at a time. The kernel's refusal is returned as its unix.Errno.
func Execute(fd int, req *nl.NetlinkRequest, fn func([]byte) bool) error {
	if err := unix.Sendto(fd, req.Serialize(), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("send netlink request: %w", err)
	}
	buf := make([]byte, receiveBuffer)
	wanted := true
	for {
		n, _, err := unix.Recvfrom(fd, buf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("receive netlink answer: %w", err)
		}
		messages, err := syscall.ParseNetlinkMessage(buf[:n])
		if err != nil {
			return fmt.Errorf("parse netlink answer: %w", err)
		}
		for _, m := range messages {
			if m.Header.Seq != req.Seq {
				continue // of a request before, which was given up
			}
			switch m.Header.Type {
			case unix.NLMSG_DONE, unix.NLMSG_ERROR:
				return outcome(m.Data)
			}
			// What follows is read even when nobody wants it: it would be
			// taken for the next answer's.
			if wanted && !fn(m.Data) {
				wanted = false
			}
			if m.Header.Flags&unix.NLM_F_MULTI == 0 {
				return nil
			}
		}
	}
}

// outcome reads the error that ends an answer; 0 is none, and a short message
// has none.
func outcome(b []byte) error {
	if len(b) < 4 {
		return nil
	}
	if code := int32(binary.NativeEndian.Uint32(b)); code != 0 {
		return unix.Errno(-code)
	}
	return nil
}
