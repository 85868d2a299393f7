// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// fileIDKernfs is FILEID_KERNFS, the type of a file handle that holds nothing
// but the 64-bit id of a kernfs node (Linux 5.5, commit 33c5ac9175195c).
const fileIDKernfs = 0xfe

// ID returns the id of the cgroup at dir, which is what
// bpf_get_current_cgroup_id and INET_DIAG_CGROUP_ID give: the inode number.
func ID(dir string) (uint64, error) {
	if err := check(dir); err != nil {
		return 0, fmt.Errorf("read id of cgroup %s: %w", dir, err)
	}
	id, err := inode(dir)
	if err != nil {
		return 0, fmt.Errorf("read id of cgroup %s: %w", dir, err)
	}
	return id, nil
}

func inode(dir string) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		return 0, vanished(err)
	}
	return st.Ino, nil
}

// Path returns the path within the hierarchy of the cgroup with that id, or
// ErrGone when there is none (any more). It costs a few system calls with
// CAP_DAC_READ_SEARCH, and a walk over the hierarchy without.
func Path(id uint64) (string, error) {
	m, err := FindMount()
	if err != nil {
		return "", fmt.Errorf("find path of cgroup %d: %w", id, err)
	}
	dir, err := openByID(m.Dir, id)
	if errors.Is(err, unix.EPERM) {
		return findByWalk(m.Dir, id)
	}
	if err != nil {
		return "", fmt.Errorf("find path of cgroup %d: %w", id, err)
	}
	return Within(dir)
}

// openByID returns the directory of the cgroup with that id.
func openByID(root string, id uint64) (string, error) {
	mount, err := unix.Open(root, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", vanished(err)
	}
	defer unix.Close(mount)

	handle := unix.NewFileHandle(fileIDKernfs, binary.NativeEndian.AppendUint64(nil, id))
	fd, err := unix.OpenByHandleAt(mount, handle, unix.O_PATH|unix.O_CLOEXEC)
	if err != nil {
		return "", vanished(err)
	}
	defer unix.Close(fd)
	dir, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
	if err != nil {
		return "", err
	}
	// A cgroup that was removed meanwhile reads as "… (deleted)", and a
	// living one may be called that; a file within a cgroup has an id too.
	if found, err := ID(dir); err != nil || found != id {
		return "", ErrGone
	}
	if st, err := os.Lstat(dir); err != nil || !st.IsDir() {
		return "", ErrGone
	}
	return filepath.Clean(dir), nil
}

func findByWalk(root string, id uint64) (string, error) {
	found := ""
	err := Walk(root, func(path string, candidate uint64) error {
		if candidate == id {
			found = path
			return errStop
		}
		return nil
	})
	if err != nil && !errors.Is(err, errStop) {
		return "", err
	}
	if found == "" {
		return "", fmt.Errorf("find path of cgroup %d: %w", id, ErrGone)
	}
	return found, nil
}

var errStop = errors.New("stop the walk")
