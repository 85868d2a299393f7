// SPDX-License-Identifier: Apache-2.0

package helper

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/meshproxy/meshproxy/sockmap/cgroup"
	"github.com/meshproxy/meshproxy/sockmap/netns"
)

// open opens the network namespace of a process, provided that it is in the
// cgroup that the client believes it to be in, and that this one is enrolled.
// All is read through one descriptor of /proc/PID, which means one process even
// when its pid is given to another meanwhile.
func (s *Server) open(pid int, at string) (int, error) {
	if path.Clean(at) != at || !path.IsAbs(at) || at == "/" {
		return -1, fmt.Errorf("no cgroup %q", at)
	}
	proc, err := unix.Open("/proc/"+strconv.Itoa(pid), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, vanished(err)
	}
	defer unix.Close(proc)
	actual, err := cgroup.OfProc(proc)
	if err != nil {
		return -1, vanished(err)
	}
	if actual != at && !strings.HasPrefix(actual, at+"/") {
		return -1, fmt.Errorf("process %d is in cgroup %s, not in %s", pid, actual, at)
	}
	// The directory is the process's user's, or root's where the process is not
	// to be looked at (proc_pid(5)).
	var st unix.Stat_t
	if err := unix.Fstat(proc, &st); err != nil {
		return -1, vanished(err)
	}
	if err := s.o.Allow(at, st.Uid); err != nil {
		return -1, err
	}
	fd, err := unix.Openat(proc, "ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, vanished(err)
	}
	return fd, nil
}

func vanished(err error) error {
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) || errors.Is(err, cgroup.ErrGone) {
		return netns.ErrGone
	}
	return fmt.Errorf("look at process: %w", err)
}

// waker waits for clients and for the end of a context.
type waker struct {
	event int
	stop  func() bool
}

func wakeUp(ctx context.Context) (*waker, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("make eventfd: %w", err)
	}
	w := &waker{event: fd}
	w.stop = context.AfterFunc(ctx, func() { _, _ = unix.Write(fd, []byte{1, 0, 0, 0, 0, 0, 0, 0}) })
	return w, nil
}

// wait reports whether a client waits at fd; if not, it is time to end.
func (w *waker) wait(fd int, idle time.Duration) (bool, error) {
	timeout := -1
	if idle > 0 {
		timeout = int(idle.Milliseconds())
	}
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}, {Fd: int32(w.event), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(fds, timeout)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return false, fmt.Errorf("wait for requests: %w", err)
		}
		return n > 0 && fds[1].Revents == 0, nil
	}
}

func (w *waker) close() {
	if w.stop() {
		_ = unix.Close(w.event)
	}
	// Otherwise the process is ending, and the write may be under way.
}
