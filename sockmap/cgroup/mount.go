// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const mountInfo = "/proc/self/mountinfo"

// Mount is where a cgroup v2 hierarchy is mounted.
type Mount struct {
	// Dir is the mount point.
	Dir string
	// Root is the path within the hierarchy of the cgroup found at Dir: "/"
	// but for bind mounts of a subtree. Inside a cgroup namespace the kernel
	// shows it relative to the namespace's root.
	Root string
	// Hybrid says that version 1 controllers are mounted as well, so that
	// processes have other cgroups besides the one of this hierarchy.
	Hybrid bool
}

// Root returns the directory of the cgroup v2 hierarchy's root: usually
// /sys/fs/cgroup, or /sys/fs/cgroup/unified where systemd runs the hybrid
// hierarchy.
func Root() (string, error) {
	m, err := FindMount()
	return m.Dir, err
}

// FindMount finds the mount of the cgroup v2 hierarchy. It prefers a mount of
// the whole hierarchy over one of a subtree, and returns ErrNoHierarchy when
// there is neither.
func FindMount() (Mount, error) {
	mounts, err := mounts()
	if err != nil {
		return Mount{}, err
	}
	best := -1
	for i, m := range mounts {
		// A mount may lie hidden under a later one at the same place.
		if check(m.Dir) != nil {
			continue
		}
		if best < 0 || (m.Root == "/" && mounts[best].Root != "/") {
			best = i
		}
	}
	if best < 0 {
		return Mount{}, ErrNoHierarchy
	}
	return mounts[best], nil
}

// Within returns the path within the hierarchy of the cgroup at dir, which
// must be absolute.
func Within(dir string) (string, error) {
	if !filepath.IsAbs(dir) {
		return "", fmt.Errorf("locate cgroup %s: not an absolute path", dir)
	}
	dir = filepath.Clean(dir)
	if err := check(dir); err != nil {
		return "", fmt.Errorf("locate cgroup %s: %w", dir, err)
	}
	mounts, err := mounts()
	if err != nil {
		return "", err
	}
	// The innermost mount is the one that dir lies in; of several at one
	// place the last is on top.
	best := Mount{}
	for _, m := range mounts {
		if _, ok := relative(m.Dir, dir); ok && len(m.Dir) >= len(best.Dir) {
			best = m
		}
	}
	if best.Dir == "" {
		return "", fmt.Errorf("locate cgroup %s: %w", dir, ErrNoHierarchy)
	}
	rel, _ := relative(best.Dir, dir)
	return join(best.Root, rel), nil
}

// check returns ErrNotCgroup2 unless dir is a cgroup v2 directory.
func check(dir string) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return vanished(err)
	}
	if int64(st.Type) != unix.CGROUP2_SUPER_MAGIC {
		return ErrNotCgroup2
	}
	return nil
}

// relative returns dir relative to the directory base, without a leading
// slash.
func relative(base, dir string) (string, bool) {
	if dir == base {
		return "", true
	}
	if base != "/" {
		base += "/"
	}
	return strings.CutPrefix(dir, base)
}

// join appends the relative path rel to a path within the hierarchy.
func join(path, rel string) string {
	switch {
	case rel == "":
		return path
	case path == "/":
		return "/" + rel
	default:
		return path + "/" + rel
	}
}

// vanished turns the errors that the kernel gives for a cgroup that has been
// removed into ErrGone. ENODEV comes from files opened before the removal.
func vanished(err error) error {
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) ||
		errors.Is(err, unix.ESTALE) || errors.Is(err, unix.ESRCH) {
		return ErrGone
	}
	return err
}

func mounts() ([]Mount, error) {
	f, err := os.Open(mountInfo)
	if err != nil {
		return nil, fmt.Errorf("find cgroup2 mount: %w", err)
	}
	defer f.Close()
	return parseMounts(f)
}

// parseMounts reads the cgroup v2 mounts from a mountinfo file, see
// proc_pid_mountinfo(5):
//
//	36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue
//
// Any number of optional fields stands before the lone hyphen.
func parseMounts(r io.Reader) ([]Mount, error) {
	var found []Mount
	hybrid := false
	lines := bufio.NewScanner(r)
	// Overlay mounts list all their layers in one line.
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		front, back, ok := strings.Cut(lines.Text(), " - ")
		if !ok {
			continue
		}
		fields := strings.Fields(front)
		fstype, _, _ := strings.Cut(back, " ")
		if len(fields) < 5 {
			continue
		}
		switch fstype {
		case "cgroup":
			hybrid = true
		case "cgroup2":
			found = append(found, Mount{Dir: unescape(fields[4]), Root: unescape(fields[3])})
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("read mountinfo: %w", err)
	}
	for i := range found {
		found[i].Hybrid = hybrid
	}
	return found, nil
}

// unescape undoes the octal escapes of space, tab, newline and backslash in
// mountinfo.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if c, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(c))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
