// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Processes returns the processes that are in the namespace of fd, unsorted.
// It reads all of /proc and so is nothing for a hot path.
//
// Besides the processes it may return ErrHidden: there may be more of them, and
// an empty list does not mean that nobody is there.
//
// A namespace without processes lives on while somebody holds it: a Handle, a
// socket, or a bind mount, see Mounted. Who keeps listeners in namespaces must
// ask from time to time, or they keep dead containers' interfaces alive.
func Processes(fd int) ([]int, error) {
	dev, inode, err := identity(fd)
	if err != nil {
		return nil, fmt.Errorf("list processes of network namespace: %w", err)
	}
	proc, err := os.Open("/proc")
	if err != nil {
		return nil, fmt.Errorf("list processes of network namespace: %w", err)
	}
	defer proc.Close()
	names, err := proc.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("list processes of network namespace: %w", err)
	}
	var pids []int
	hidden := 0
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		var st unix.Stat_t
		err = unix.Stat("/proc/"+name+"/ns/net", &st)
		switch {
		case err == nil && uint64(st.Dev) == dev && st.Ino == inode:
			pids = append(pids, pid)
		case err == nil, errors.Is(err, unix.ENOENT), errors.Is(err, unix.ESRCH):
		default:
			hidden++
		}
	}
	if hidden > 0 {
		return pids, fmt.Errorf("list processes of network namespace: %w: %d", ErrHidden, hidden)
	}
	return pids, nil
}

// Mounted reports whether the namespace of fd has a bind mount in this mount
// namespace: "ip netns" and container engines keep namespaces alive so before
// the first process enters and after the last one has left.
func Mounted(fd int) (bool, error) {
	_, inode, err := identity(fd)
	if err != nil {
		return false, fmt.Errorf("find mount of network namespace: %w", err)
	}
	content, err := os.ReadFile("/proc/thread-self/mountinfo")
	if err != nil {
		return false, fmt.Errorf("find mount of network namespace: %w", err)
	}
	// 331 25 0:4 net:[4026532266] /run/netns/x rw shared:1 - nsfs nsfs rw
	return strings.Contains(string(content), fmt.Sprintf(" net:[%d] ", inode)), nil
}
