// SPDX-License-Identifier: Apache-2.0

package testnet

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

const (
	// stateRoot holds a directory per topology.
	stateRoot = "/run/meshproxy-testnet"
	// cgroupPrefix begins the name of a topology's cgroup.
	cgroupPrefix = "meshproxy-testnet-"
)

// owner is a process that has topologies. The start time (in clock ticks
// since boot) tells it from a later process with the same pid.
type owner struct {
	pid   int
	start uint64
}

// topologySequence tells the topologies of one process apart. It is the only
// package variable that changes: names must be unique in the whole process,
// whoever asks.
var topologySequence atomic.Uint64

func currentOwner() (owner, error) {
	pid := os.Getpid()
	start, err := startTime(pid)
	if err != nil {
		return owner{}, err
	}
	return owner{pid: pid, start: start}, nil
}

// name returns a new topology name of this owner.
func (o owner) name() string {
	return fmt.Sprintf("%d-%d-%d", o.pid, o.start, topologySequence.Add(1))
}

// parseOwner reads the owner back from a name.
func parseOwner(name string) (owner, bool) {
	parts := strings.Split(name, "-")
	if len(parts) != 3 {
		return owner{}, false
	}
	pid, err1 := strconv.Atoi(parts[0])
	start, err2 := strconv.ParseUint(parts[1], 10, 64)
	_, err3 := strconv.ParseUint(parts[2], 10, 64)
	return owner{pid: pid, start: start}, err1 == nil && err2 == nil && err3 == nil
}

// alive reports whether the owner still runs.
func (o owner) alive() bool {
	start, err := startTime(o.pid)
	return err == nil && start == o.start
}

// startTime reads field 22 of /proc/PID/stat (proc_pid_stat(5)). A zombie
// counts as gone: its topologies can't be in use any more.
func startTime(pid int) (uint64, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, fmt.Errorf("read start time: %w", err)
	}
	// The command name, field 2, may contain anything but ends at the last
	// parenthesis.
	_, rest, ok := cutLast(string(data), ") ")
	fields := strings.Fields(rest)
	if !ok || len(fields) < 20 {
		return 0, fmt.Errorf("read start time: malformed stat of pid %d", pid)
	}
	if fields[0] == "Z" || fields[0] == "X" {
		return 0, fmt.Errorf("read start time: pid %d: %w", pid, os.ErrProcessDone)
	}
	return strconv.ParseUint(fields[19], 10, 64)
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

// Sweep removes the topologies of owners that run no more. New calls it; a
// program that only wants to tidy up may do so too.
func Sweep() error {
	unlock, err := lockState()
	if err != nil {
		return err
	}
	defer unlock()
	root, err := cgroup2Mount()
	if err != nil {
		return err
	}
	names := map[string]bool{}
	entries, err := os.ReadDir(stateRoot)
	if err != nil {
		return fmt.Errorf("list topologies: %w", err)
	}
	for _, e := range entries {
		names[e.Name()] = true
	}
	groups, err := filepath.Glob(filepath.Join(root, cgroupPrefix+"*"))
	if err != nil {
		return fmt.Errorf("list topologies: %w", err)
	}
	for _, g := range groups {
		names[strings.TrimPrefix(filepath.Base(g), cgroupPrefix)] = true
	}
	var errs []error
	for name := range names {
		if o, ok := parseOwner(name); ok && !o.alive() {
			errs = append(errs, removeState(root, name))
		}
	}
	return errors.Join(errs...)
}

// removeState removes what a topology has outside of its namespaces: its
// processes, mounts, directory and cgroups. Namespaces and the links in them
// go with their last process and pin.
func removeState(cgroupRoot, name string) error {
	group := filepath.Join(cgroupRoot, cgroupPrefix+name)
	dir := filepath.Join(stateRoot, name)
	return errors.Join(
		killCgroup(group),
		unmountBelow(dir),
		os.RemoveAll(dir),
		removeCgroup(group),
	)
}

// lockState keeps two processes from sweeping, or one from sweeping what
// another is just making.
func lockState() (unlock func(), err error) {
	if err := os.MkdirAll(stateRoot, 0o755); err != nil {
		return nil, fmt.Errorf("make state directory: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(stateRoot, ".lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open state lock: %w", err)
	}
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if err != unix.EINTR {
			break
		}
	}
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("lock state: %w", err)
	}
	return func() { _ = f.Close() }, nil
}
