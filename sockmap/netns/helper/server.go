// SPDX-License-Identifier: Apache-2.0

package helper

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/meshproxy/meshproxy/sockmap/netns"
)

// Options are what a Server is made of.
type Options struct {
	// User may ask, besides root.
	User uint32
	// Allow returns nil where the namespace may be opened of a process of that
	// user, in the cgroup at that path within the hierarchy.
	Allow func(cgroup string, uid uint32) error
	// Idle is how long Serve waits for a request before it returns; zero is
	// for ever.
	Idle   time.Duration
	Logger *slog.Logger
}

// Server answers requests.
type Server struct {
	o        Options
	patience time.Duration
}

// NewServer returns a server that has not started yet.
func NewServer(o Options) *Server { return &Server{o: o, patience: clientPatience} }

// clientPatience is how long a client may take to say what it wants, maxClients
// how many are served at once: one node asks, little and seldom.
const (
	clientPatience = time.Second
	maxClients     = 16
)

// Listen returns a listening socket at path. systemd makes it where it
// activates the helper.
func Listen(path string, mode os.FileMode) (int, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("make socket: %w", err)
	}
	err = unix.Bind(fd, &unix.SockaddrUnix{Name: path})
	if err == nil {
		err = os.Chmod(path, mode)
	}
	if err == nil {
		err = unix.Listen(fd, unix.SOMAXCONN)
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("listen on %s: %w", path, err)
	}
	return fd, nil
}

// Serve answers requests on the listening socket fd, which stays the caller's,
// until ctx is done or nobody has asked for long.
func (s *Server) Serve(ctx context.Context, fd int) error {
	if err := unix.SetNonblock(fd, true); err != nil {
		return fmt.Errorf("prepare listener: %w", err)
	}
	wake, err := wakeUp(ctx)
	if err != nil {
		return err
	}
	defer wake.close()
	var serving sync.WaitGroup
	defer serving.Wait()
	room := make(chan struct{}, maxClients)
	for {
		switch asked, err := wake.wait(fd, s.o.Idle); {
		case err != nil:
			return err
		case !asked:
			return nil
		}
		conn, _, err := unix.Accept4(fd, unix.SOCK_CLOEXEC)
		if err != nil {
			if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) || errors.Is(err, unix.ECONNABORTED) {
				continue
			}
			return fmt.Errorf("accept: %w", err)
		}
		room <- struct{}{}
		serving.Go(func() {
			defer func() { <-room }()
			defer unix.Close(conn)
			s.serve(conn)
		})
	}
}

func (s *Server) serve(conn int) {
	if err := s.authorize(conn); err != nil {
		s.o.Logger.Warn("refused", "error", err)
		return
	}
	limit := unix.NsecToTimeval(int64(s.patience))
	_ = unix.SetsockoptTimeval(conn, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit)
	_ = unix.SetsockoptTimeval(conn, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &limit)
	var r request
	given, err := receive(conn, &r)
	defer closeAll(given)
	var made []int
	if err == nil {
		made, err = s.do(&r, given)
	}
	defer closeAll(made)
	var a answer
	switch {
	case errors.Is(err, netns.ErrGone):
		a.Gone = true
	case err != nil:
		a.Error = err.Error()
		s.o.Logger.Warn("refused", "request", r.Op, "pid", r.PID, "cgroup", r.Cgroup, "error", err)
	}
	if err := send(conn, &a, made); err != nil {
		s.o.Logger.Debug("answer", "error", err)
	}
}

// authorize looks at who has connected. The socket's mode says so too; this
// holds after someone changed the mode.
func (s *Server) authorize(conn int) error {
	cred, err := unix.GetsockoptUcred(conn, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return fmt.Errorf("read peer credentials: %w", err)
	}
	return s.judge(cred.Uid)
}

func (s *Server) judge(uid uint32) error {
	if uid != 0 && uid != s.o.User {
		return fmt.Errorf("user %d may not ask", uid)
	}
	return nil
}

func (s *Server) do(r *request, given []int) ([]int, error) {
	switch r.Op {
	case opOpen:
		fd, err := s.open(r.PID, r.Cgroup)
		if err != nil {
			return nil, err
		}
		return []int{fd}, nil
	case opSocket:
		if len(given) != 1 {
			return nil, errFormat
		}
		return sockets(given[0], r)
	default:
		return nil, fmt.Errorf("unknown request %q", r.Op)
	}
}

// sockets makes sockets of the kinds that a node needs, and no others: a raw
// or packet socket would show what the namespace has no business to show.
func sockets(ns int, r *request) (fds []int, err error) {
	if !known(r.Domain, r.Type, r.Protocol) {
		return nil, fmt.Errorf("no sockets of domain %d, type %d, protocol %d", r.Domain, r.Type, r.Protocol)
	}
	if r.Count < 1 || r.Count > MaxSockets {
		return nil, fmt.Errorf("no %d sockets at once, want 1 to %d", r.Count, MaxSockets)
	}
	err = netns.Do(ns, func() error {
		for range r.Count {
			fd, err := unix.Socket(r.Domain, r.Type|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, r.Protocol)
			if err != nil {
				return fmt.Errorf("make socket: %w", err)
			}
			fds = append(fds, fd)
		}
		return nil
	})
	if err != nil {
		closeAll(fds)
		return nil, err
	}
	return fds, nil
}

func known(domain, typ, protocol int) bool {
	switch domain {
	case unix.AF_INET, unix.AF_INET6:
		return protocol == 0 && (typ == unix.SOCK_STREAM || typ == unix.SOCK_DGRAM)
	case unix.AF_UNIX: // tells the namespace's cookie
		return protocol == 0 && typ == unix.SOCK_DGRAM
	case unix.AF_NETLINK: // lists listeners and addresses, closes connections
		return typ == unix.SOCK_RAW && (protocol == unix.NETLINK_INET_DIAG || protocol == unix.NETLINK_ROUTE)
	default:
		return false
	}
}
