// SPDX-License-Identifier: Apache-2.0

package helper

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/meshproxy/meshproxy/sockmap/netns"
)

// patience is how long an answer may take. A helper that systemd has to start
// first takes some ten milliseconds; the caller may be an event loop.
const patience = 500 * time.Millisecond

// Client is the way into network namespaces by a helper. It opens a connection
// for each request, so that a helper that ends or is replaced is nothing to
// notice.
type Client struct {
	path     string
	patience time.Duration
}

var _ netns.Opener = (*Client)(nil)

// NewClient returns a client of the helper that listens on a path. Whether one
// does shows with the first request.
func NewClient(path string) *Client { return &Client{path: path, patience: patience} }

// Socket implements netns.Opener.
func (c *Client) Socket(fd, domain, typ, protocol int) (int, error) {
	if fd == netns.Own {
		return netns.Socket(fd, domain, typ, protocol)
	}
	fds, err := c.Sockets(fd, domain, typ, protocol, 1)
	if err != nil {
		return -1, err
	}
	return fds[0], nil
}

// Sockets makes count sockets of a kind at once.
func (c *Client) Sockets(fd, domain, typ, protocol, count int) ([]int, error) {
	r := request{Op: opSocket, Domain: domain, Type: typ, Protocol: protocol, Count: count}
	fds, err := c.ask(&r, []int{fd}, count)
	if err != nil {
		return nil, fmt.Errorf("make socket in network namespace: %w", err)
	}
	return fds, nil
}

// OfPID implements netns.Opener. Where the process is in the caller's own
// namespace, the helper isn't asked: a node without containers never starts it.
func (c *Client) OfPID(pid int, cgroup string) (*netns.Handle, error) {
	if netns.Here(pid) {
		return netns.OfThread()
	}
	fds, err := c.ask(&request{Op: opOpen, PID: pid, Cgroup: cgroup}, nil, 1)
	if err != nil {
		return nil, fmt.Errorf("open network namespace of process %d: %w", pid, err)
	}
	return netns.FromFD(fds[0])
}

// ask sends a request and takes as many descriptors as the answer must have.
func (c *Client) ask(r *request, with []int, want int) ([]int, error) {
	conn, err := dial(c.path, c.patience)
	if err != nil {
		return nil, err
	}
	defer unix.Close(conn)
	if err := send(conn, r, with); err != nil {
		return nil, err
	}
	var a answer
	fds, err := receive(conn, &a)
	switch {
	case errors.Is(err, unix.EAGAIN):
		err = fmt.Errorf("netns helper at %s has not answered within %v", c.path, c.patience)
	case err == nil && a.Gone:
		err = netns.ErrGone
	case err == nil && a.Error != "":
		err = fmt.Errorf("%w: %s", ErrRefused, a.Error)
	case err == nil && len(fds) != want:
		err = errFormat
	}
	if err != nil {
		closeAll(fds)
		return nil, err
	}
	return fds, nil
}

func dial(path string, patience time.Duration) (int, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("make socket: %w", err)
	}
	limit := unix.NsecToTimeval(int64(patience))
	for _, option := range []int{unix.SO_RCVTIMEO, unix.SO_SNDTIMEO} {
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, option, &limit); err != nil {
			_ = unix.Close(fd)
			return -1, fmt.Errorf("set timeout: %w", err)
		}
	}
	if err := uninterrupted(func() error { return unix.Connect(fd, &unix.SockaddrUnix{Name: path}) }); err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("connect to netns helper at %s: %w", path, err)
	}
	return fd, nil
}
