// SPDX-License-Identifier: Apache-2.0

package testnet

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// ErrNoCgroup2 means that no cgroup2 hierarchy is mounted.
var ErrNoCgroup2 = errors.New("no cgroup2 mount in mountinfo")

// cgroup2Mount returns where cgroup2 is mounted: /sys/fs/cgroup on most
// machines, /sys/fs/cgroup/unified in a hybrid hierarchy.
func cgroup2Mount() (string, error) {
	mounts, err := mountPoints()
	if err != nil {
		return "", err
	}
	for _, m := range mounts {
		if m.fstype == "cgroup2" && m.root == "/" {
			return m.point, nil
		}
	}
	return "", ErrNoCgroup2
}

// killCgroup kills every process of the cgroup and below it, and waits until
// they are gone.
func killCgroup(path string) error {
	deadline := time.Now().Add(killPatience)
	for {
		err := writeExisting(filepath.Join(path, "cgroup.kill"), "1")
		if errors.Is(err, fs.ErrNotExist) {
			err = killProcesses(path)
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("kill cgroup: %w", err)
		}
		// Again, where one by one was not enough.
		empty, err := waitEmpty(path, time.Second)
		if empty || err != nil {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("empty cgroup %s: processes are left", path)
		}
	}
}

// writeExisting is os.WriteFile without O_CREATE, for which a kernel that lacks the
// file says EACCES.
func writeExisting(path, text string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}

// killPatience is how long processes may take to die.
const killPatience = time.Minute

// killProcesses does what cgroup.kill does since Linux 5.14, save for processes
// that come meanwhile.
func killProcesses(path string) error {
	if _, err := os.Stat(path); err != nil {
		return err
	}
	var errs []error
	_ = filepath.WalkDir(path, func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.Name() == "cgroup.procs" {
			err = killListed(p)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENODEV) { // a cgroup that is gone
			errs = append(errs, err)
		}
		return nil // the others are to be killed all the same
	})
	return errors.Join(errs...)
}

// killListed kills the processes that a file lists.
func killListed(file string) error {
	pids, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	for field := range strings.FieldsSeq(string(pids)) {
		pid, err := strconv.Atoi(field)
		if err != nil {
			return fmt.Errorf("read %s: %w", file, err)
		}
		if err := unix.Kill(pid, unix.SIGKILL); err != nil && err != unix.ESRCH {
			return fmt.Errorf("kill %d: %w", pid, err)
		}
	}
	return nil
}

// waitEmpty waits until cgroup.events says that no process is left, and reports
// whether it did. The kernel raises POLLPRI on that file when it changes.
func waitEmpty(path string, limit time.Duration) (bool, error) {
	f, err := os.Open(filepath.Join(path, "cgroup.events"))
	if err != nil {
		return false, fmt.Errorf("watch cgroup: %w", err)
	}
	defer f.Close()
	deadline := time.Now().Add(limit)
	buf := make([]byte, 256)
	for {
		n, err := f.ReadAt(buf, 0)
		if n == 0 {
			return false, fmt.Errorf("watch cgroup: %w", err)
		}
		if strings.Contains(string(buf[:n]), "populated 0") {
			return true, nil
		}
		left := time.Until(deadline)
		if left <= 0 {
			return false, nil
		}
		fds := []unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLPRI}}
		if _, err := unix.Poll(fds, int(left.Milliseconds())+1); err != nil && err != unix.EINTR {
			return false, fmt.Errorf("watch cgroup: %w", err)
		}
	}
}

// removeCgroup removes an empty cgroup and those below it, the deepest first.
func removeCgroup(path string) error {
	var dirs []string
	err := filepath.WalkDir(path, func(p string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil && d.IsDir() {
			dirs = append(dirs, p)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("list cgroups: %w", err)
	}
	var errs []error
	for i := len(dirs) - 1; i >= 0; i-- {
		if err := unix.Rmdir(dirs[i]); err != nil && err != unix.ENOENT {
			errs = append(errs, fmt.Errorf("remove cgroup %s: %w", dirs[i], err))
		}
	}
	return errors.Join(errs...)
}

// CPUTime returns the processor time that the cgroup and those below it have
// used so far, to the microsecond, those processes included that are gone.
func CPUTime(cgroup string) (time.Duration, error) {
	data, err := os.ReadFile(filepath.Join(cgroup, "cpu.stat"))
	if err != nil {
		return 0, fmt.Errorf("read cpu time: %w", err)
	}
	for line := range strings.Lines(string(data)) {
		if v, ok := strings.CutPrefix(strings.TrimSpace(line), "usage_usec "); ok {
			usec, err := strconv.ParseInt(v, 10, 64)
			if err != nil {
				return 0, fmt.Errorf("read cpu time: %w", err)
			}
			return time.Duration(usec) * time.Microsecond, nil
		}
	}
	return 0, fmt.Errorf("read cpu time: no usage_usec in %s", cgroup)
}
