// SPDX-License-Identifier: Apache-2.0

// Package helper opens sockets in network namespaces for a node that may not
// enter them: entering takes CAP_SYS_ADMIN, and finding the namespace of
// another user's process CAP_SYS_PTRACE, which a process that talks to the
// network had better not have.
//
// The helper is a process of its own. It serves a unix socket (SOCK_SEQPACKET):
// each connection carries one request and its answer, descriptors go beside
// them (SCM_RIGHTS). It knows two requests: open the namespace of a process
// that is in a cgroup which the configuration enrols, and make sockets in a
// namespace that the client shows a descriptor of. What it hands out is neither
// bound nor connected; all else is the client's business.
//
// It trusts root and one user, as the kernel names them (SO_PEERCRED), and
// holds no state. It must not know of programs, listeners or the mesh.
package helper

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// The requests.
const (
	opOpen   = "open"
	opSocket = "socket"
)

const (
	// maxMessage bounds a request and an answer: cgroup paths have 4096 bytes
	// at most.
	maxMessage = 8 << 10
	// MaxSockets is how many sockets one request may ask for. The kernel
	// passes 253 descriptors at once (SCM_MAX_FD).
	MaxSockets = 64
)

type request struct {
	Op string `json:"op"`
	// PID and Cgroup are opOpen's.
	PID    int    `json:"pid,omitempty"`
	Cgroup string `json:"cgroup,omitempty"`
	// Domain, Type, Protocol and Count are opSocket's.
	Domain   int `json:"domain,omitempty"`
	Type     int `json:"type,omitempty"`
	Protocol int `json:"protocol,omitempty"`
	Count    int `json:"count,omitempty"`
}

type answer struct {
	Error string `json:"error,omitempty"`
	// Gone says that the process of the request has ended.
	Gone bool `json:"gone,omitempty"`
}

var (
	// ErrRefused means that the helper does not do what was asked.
	ErrRefused = errors.New("refused by the netns helper")
	errFormat  = errors.New("malformed message")
)

// send writes a message with descriptors beside it.
func send(fd int, message any, fds []int) error {
	text, err := json.Marshal(message)
	if err != nil {
		return fmt.Errorf("encode message: %w", err)
	}
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	if err := uninterrupted(func() error { return unix.Sendmsg(fd, text, rights, nil, unix.MSG_NOSIGNAL) }); err != nil {
		return fmt.Errorf("send message: %w", err)
	}
	return nil
}

// receive reads a message and the descriptors beside it, which the caller owns
// whether or not there is an error.
func receive(fd int, message any) (fds []int, err error) {
	text := make([]byte, maxMessage)
	rights := make([]byte, unix.CmsgSpace(4*(MaxSockets+1)))
	n, rn, flags, err := recvmsg(fd, text, rights)
	if err != nil {
		return nil, os.NewSyscallError("receive message", err)
	}
	fds, err = descriptors(rights[:rn])
	switch {
	case err != nil:
		return fds, err
	case flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0, n == 0:
		return fds, errFormat
	}
	if err := json.Unmarshal(text[:n], message); err != nil {
		return fds, fmt.Errorf("%w: %w", errFormat, err)
	}
	return fds, nil
}

func recvmsg(fd int, text, rights []byte) (n, rn, flags int, err error) {
	err = uninterrupted(func() (err error) {
		n, rn, flags, _, err = unix.Recvmsg(fd, text, rights, unix.MSG_CMSG_CLOEXEC)
		return err
	})
	return n, rn, flags, err
}

// uninterrupted makes a system call until no signal ends it: a socket's that has
// time-outs is not restarted (signal(7)), and the Go runtime sends itself signals.
func uninterrupted(call func() error) error {
	for {
		if err := call(); err != unix.EINTR {
			return err
		}
	}
}

func descriptors(rights []byte) (fds []int, err error) {
	messages, err := unix.ParseSocketControlMessage(rights)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errFormat, err)
	}
	for i := range messages {
		more, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			return fds, fmt.Errorf("%w: %w", errFormat, err)
		}
		fds = append(fds, more...)
	}
	return fds, nil
}

func closeAll(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
}
