// SPDX-License-Identifier: Apache-2.0

// Package supervisor plays the part of systemd for one service: its notification
// socket (sd_notify(3)) with NotifyAccess=main, and its descriptor store. Tests
// use it where there is no systemd; those in virtual machines use the real one.
//
// It must not know what the service does.
package supervisor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Supervisor watches one service, whose processes come and go.
type Supervisor struct {
	conn *net.UnixConn
	path string
	done chan struct{}

	mu     sync.Mutex
	main   int
	ready  int // how often it said so
	status string
	stored []stored
	// ignored are messages of processes that are not the main one.
	ignored []string
}

type stored struct {
	name string
	file *os.File
	// same is what tells descriptors of one socket from others: device and
	// inode in sockfs or wherever.
	dev, inode uint64
}

// New makes a supervisor whose socket lies in dir. Close ends it.
func New(dir string) (*Supervisor, error) {
	s := &Supervisor{path: filepath.Join(dir, "notify"), done: make(chan struct{})}
	var err error
	s.conn, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: s.path, Net: "unixgram"})
	if err != nil {
		return nil, fmt.Errorf("open notification socket: %w", err)
	}
	raw, err := s.conn.SyscallConn()
	if err == nil {
		ctlErr := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PASSCRED, 1) })
		err = errors.Join(err, ctlErr)
	}
	if err != nil {
		s.conn.Close()
		return nil, fmt.Errorf("ask for credentials: %w", err)
	}
	go s.receive()
	return s, nil
}

// Close ends the supervisor and closes what is stored.
func (s *Supervisor) Close() {
	s.conn.Close()
	<-s.done
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range s.stored {
		d.file.Close()
	}
}

// wrapper sets LISTEN_PID to the pid that the program will have.
const wrapper = `LISTEN_PID=$$ exec "$@"`

// Command is what to start the service with.
type Command struct {
	// Before are arguments that come before those of the program.
	Before, Env []string
	// Files become descriptors 3 and following. The store's own would be closed
	// as soon as the service discards them; these are open until Close.
	Files []*os.File
}

// Close closes the files; the service, once started, has its own.
func (c *Command) Close() {
	for _, f := range c.Files {
		f.Close()
	}
}

// Command returns what to start the service with; the caller closes it. The
// process that speaks first then is the main one.
func (s *Supervisor) Command() (*Command, error) {
	s.catchUp()
	s.mu.Lock()
	defer s.mu.Unlock()
	c := &Command{Before: []string{"/bin/sh", "-c", wrapper, "sh"}}
	var names []string
	for _, d := range s.stored {
		fd, err := unix.FcntlInt(d.file.Fd(), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			c.Close()
			return nil, fmt.Errorf("duplicate descriptor %s: %w", d.name, err)
		}
		names, c.Files = append(names, d.name), append(c.Files, os.NewFile(uintptr(fd), d.name))
	}
	s.main = 0
	c.Env = []string{
		"NOTIFY_SOCKET=" + s.path, "FDSTORE=512",
		"LISTEN_FDS=" + strconv.Itoa(len(c.Files)), "LISTEN_FDNAMES=" + strings.Join(names, ":"),
	}
	return c, nil
}

// Main is the main process, as the service has it.
func (s *Supervisor) Main() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.main
}

// Ready is how often the service has said that it is ready.
func (s *Supervisor) Ready() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ready
}

// Status is the text that the service has said last.
func (s *Supervisor) Status() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.status
}

// Stored are the names of the descriptors in the store, with their numbers.
func (s *Supervisor) Stored() map[string]int {
	s.catchUp()
	s.mu.Lock()
	defer s.mu.Unlock()
	names := make(map[string]int)
	for _, d := range s.stored {
		names[d.name]++
	}
	return names
}

// Ignored are messages of processes that were not the main one.
func (s *Supervisor) Ignored() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.ignored)
}

// Reap waits for the end of a main process that this process did not start
// itself; the service made it a child of this process, as it would be systemd's.
func (s *Supervisor) Reap(ctx context.Context, pid int) (unix.WaitStatus, error) {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		var status unix.WaitStatus
		got, err := unix.Wait4(pid, &status, unix.WNOHANG, nil)
		if err != nil {
			return 0, fmt.Errorf("wait for process %d: %w", pid, err)
		}
		if got == pid {
			return status, nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return 0, fmt.Errorf("wait for process %d: %w", pid, ctx.Err())
		}
	}
}

// barrier is what sd_notify_barrier(3) sends, with a descriptor that is closed once
// all messages before have been received.
const barrier = "BARRIER=1"

// catchUp waits until what was sent so far has been received: the service may have
// ended since.
func (s *Supervisor) catchUp() {
	r, w, err := os.Pipe()
	if err != nil {
		return
	}
	defer r.Close()
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: s.path, Net: "unixgram"})
	if err == nil {
		_, _, err = conn.WriteMsgUnix([]byte(barrier), unix.UnixRights(int(w.Fd())), nil)
		conn.Close()
	}
	w.Close()
	if err == nil {
		_, _ = r.Read(make([]byte, 1))
	}
}

func (s *Supervisor) receive() {
	defer close(s.done)
	text, control := make([]byte, 4096), make([]byte, 4096)
	for {
		n, cn, _, _, err := s.conn.ReadMsgUnix(text, control)
		if err != nil {
			return
		}
		pid, files := parse(control[:cn])
		if !s.handle(pid, string(text[:n]), files) {
			for _, f := range files {
				f.Close()
			}
		}
	}
}

func parse(control []byte) (pid int, files []*os.File) {
	parts, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return 0, nil
	}
	for i := range parts {
		if cred, err := unix.ParseUnixCredentials(&parts[i]); err == nil {
			pid = int(cred.Pid)
		}
		if fds, err := unix.ParseUnixRights(&parts[i]); err == nil {
			for _, fd := range fds {
				files = append(files, os.NewFile(uintptr(fd), "stored"))
			}
		}
	}
	return pid, files
}

// handle reports whether it keeps the files.
func (s *Supervisor) handle(pid int, text string, files []*os.File) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if text == barrier {
		return false
	}
	if s.main == 0 {
		s.main = pid
	}
	if pid != s.main {
		s.ignored = append(s.ignored, fmt.Sprintf("%d: %s", pid, text))
		return false
	}
	fields := make(map[string]string)
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		fields[key] = value
	}
	if fields["READY"] == "1" {
		s.ready++
	}
	if v, ok := fields["STATUS"]; ok {
		s.status = v
	}
	if v, err := strconv.Atoi(fields["MAINPID"]); err == nil {
		s.main = v
	}
	if fields["FDSTOREREMOVE"] == "1" {
		s.stored = slices.DeleteFunc(s.stored, func(d stored) bool {
			if d.name == fields["FDNAME"] {
				d.file.Close()
			}
			return d.name == fields["FDNAME"]
		})
	}
	if fields["FDSTORE"] == "1" {
		for _, f := range files {
			s.store(fields["FDNAME"], f)
		}
		return true
	}
	return false
}

// store keeps a file unless it has that one already, as systemd does.
func (s *Supervisor) store(name string, f *os.File) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		f.Close()
		return
	}
	d := stored{name, f, uint64(st.Dev), st.Ino}
	if slices.ContainsFunc(s.stored, func(o stored) bool { return o.dev == d.dev && o.inode == d.inode }) {
		f.Close()
		return
	}
	s.stored = append(s.stored, d)
}
