// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Self returns the path within the hierarchy of this process's own cgroup.
// Inside a cgroup namespace it is relative to the namespace's root.
func Self() (string, error) {
	return readProc("/proc/self/cgroup")
}

// OfPID returns the path within the hierarchy of a process's cgroup, or
// ErrGone when the process does not exist or its cgroup has been removed.
func OfPID(pid int) (string, error) {
	return readProc("/proc/" + strconv.Itoa(pid) + "/cgroup")
}

// OfProc is OfPID for a process by a descriptor of its directory in /proc,
// which keeps meaning that process.
func OfProc(dir int) (string, error) {
	fd, err := unix.Openat(dir, "cgroup", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", fmt.Errorf("read cgroup of process: %w", vanished(err))
	}
	f := os.NewFile(uintptr(fd), "cgroup")
	defer f.Close()
	content, err := io.ReadAll(f)
	if err != nil {
		return "", fmt.Errorf("read cgroup of process: %w", vanished(err))
	}
	return parseProc(content)
}

func readProc(file string) (string, error) {
	content, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("read cgroup of process: %w", vanished(err))
	}
	path, err := parseProc(content)
	if err != nil {
		return "", fmt.Errorf("read %s: %w", file, err)
	}
	return path, nil
}

// parseProc finds the line of the v2 hierarchy in a /proc/PID/cgroup file, see
// cgroups(7): its hierarchy number is 0 and its list of controllers empty.
func parseProc(content []byte) (string, error) {
	for line := range bytes.Lines(content) {
		path, ok := strings.CutPrefix(strings.TrimSuffix(string(line), "\n"), "0::")
		if !ok {
			continue
		}
		// A zombie's cgroup may have been removed. That a living cgroup is
		// called so is left out of account: neither systemd nor the container
		// engines put blanks into names.
		if strings.HasSuffix(path, " (deleted)") {
			return "", ErrGone
		}
		return path, nil
	}
	return "", ErrNoHierarchy
}

// PIDs returns the processes of the cgroup at dir and of all cgroups below it,
// sorted, as this process's pid namespace numbers them. Processes of other pid
// namespaces, cgroups that vanish, and a dir that is gone contribute nothing.
func PIDs(dir string) ([]int, error) {
	var pids []int
	if err := collect(dir, &pids); err != nil {
		return nil, fmt.Errorf("list processes of cgroup %s: %w", dir, err)
	}
	slices.Sort(pids)
	// A process that moves during the walk is seen twice.
	return slices.Compact(pids), nil
}

func collect(dir string, pids *[]int) error {
	content, err := os.ReadFile(dir + "/cgroup.procs")
	switch {
	case err == nil:
		for _, field := range strings.Fields(string(content)) {
			// 0 stands for a process outside this pid namespace.
			if pid, err := strconv.Atoi(field); err == nil && pid > 0 {
				*pids = append(*pids, pid)
			}
		}
	case errors.Is(vanished(err), ErrGone):
		return nil
	case errors.Is(err, unix.EOPNOTSUPP):
		// A threaded cgroup: its processes are listed by its threaded
		// domain, which is an ancestor.
	default:
		return err
	}
	names, err := children(dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := collect(dir+"/"+name, pids); err != nil {
			return err
		}
	}
	return nil
}
