// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"

	"github.com/meshproxy/meshproxy/sockmap/cgroup"
	"github.com/meshproxy/meshproxy/sockmap/internal/capability"
)

// wantFiles is how many descriptors a busy node needs: two for a connection
// that leaves by a tunnel and, at both ends of a relay, one each.
const wantFiles = 65536

func kernelChecks() []check {
	return []check{
		{
			name: "kernel", required: true, minKernel: "5.10",
			consequence: "The programs need features that came up to Linux 5.10; nothing is captured.",
			look:        kernelVersion,
		},
		{
			name: "BTF", required: true, minKernel: "5.4",
			consequence: "Without CONFIG_DEBUG_INFO_BTF the programs can't be fitted to this kernel; nothing is captured.",
			look: func() (string, error) {
				_, err := btf.LoadKernelSpec()
				if errors.Is(err, os.ErrNotExist) {
					err = absence{err}
				}
				return "", err
			},
		},
	}
}

func kernelVersion() (string, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "", fmt.Errorf("read kernel version: %w", err)
	}
	release := unix.ByteSliceToString(u.Release[:])
	major, minor, ok := parseRelease(release)
	if !ok {
		return release, errors.New("kernel version is not understood")
	}
	if major < 5 || (major == 5 && minor < 10) {
		return release, absent("kernel is too old")
	}
	return release, nil
}

// parseRelease reads "6.18.44-fc-v445" or "5.10-rc1".
func parseRelease(release string) (major, minor int, ok bool) {
	first, rest, _ := strings.Cut(release, ".")
	end := strings.IndexFunc(rest, func(c rune) bool { return c < '0' || c > '9' })
	if end < 0 {
		end = len(rest)
	}
	major, err1 := strconv.Atoi(first)
	minor, err2 := strconv.Atoi(rest[:end])
	return major, minor, err1 == nil && err2 == nil
}

func hostChecks(o Options) []check {
	return []check{
		{
			name: "cgroup2", required: true,
			consequence: "Workloads are told apart by their cgroup; nothing is captured. Mount cgroup2, or boot with systemd.unified_cgroup_hierarchy=1.",
			look:        func() (string, error) { return lookAtCgroups(o.CgroupRoot) },
		},
		{
			name: "bpffs", required: true,
			consequence: "The capture can't outlive the proxy, and is not set up. Mount it: mount -t bpf bpf " + o.BPFFS,
			look:        func() (string, error) { return lookAtBPFFS(o.BPFFS) },
		},
		{
			name:        "RLIMIT_NOFILE",
			consequence: fmt.Sprintf("With fewer than %d descriptors, a busy node refuses connections. The systemd unit sets LimitNOFILE.", wantFiles),
			look: func() (string, error) {
				var l unix.Rlimit
				if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
					return "", fmt.Errorf("read limit: %w", err)
				}
				detail := fmt.Sprintf("%d of at most %d", l.Cur, l.Max)
				// Go raises the soft limit to the hard one at start.
				if l.Max < wantFiles {
					return detail, noted("limit is low")
				}
				return detail, nil
			},
		},
	}
}

func lookAtCgroups(configured string) (string, error) {
	m, err := cgroup.FindMount()
	if errors.Is(err, cgroup.ErrNoHierarchy) {
		return "", absence{err}
	}
	if err != nil {
		return "", err
	}
	detail := m.Dir
	if m.Hybrid {
		detail += " (hybrid)"
	}
	if configured != "" {
		path, err := cgroup.Within(configured)
		if errors.Is(err, cgroup.ErrNotCgroup2) || errors.Is(err, cgroup.ErrGone) {
			return detail, absence{err}
		}
		if err != nil {
			return detail, err
		}
		detail += ", captured below " + path
	}
	return detail, nil
}

func lookAtBPFFS(dir string) (string, error) {
	var st unix.Statfs_t
	// A service may be shown only what is its own (systemd's BindPaths=).
	own := filepath.Join(dir, "meshproxy")
	if err := unix.Statfs(own, &st); err == nil && uint32(st.Type) == unix.BPF_FS_MAGIC {
		dir = own
	}
	err := unix.Statfs(dir, &st)
	if errors.Is(err, unix.ENOENT) {
		return "", absence{fmt.Errorf("find %s: %w", dir, err)}
	}
	if err != nil {
		return "", fmt.Errorf("look at %s: %w", dir, err)
	}
	if uint32(st.Type) == unix.SYSFS_MAGIC {
		has, err := capability.Effective()
		if err == nil && has.Has(capability.SysAdmin) {
			return dir, noted("not mounted yet; run mounts it")
		}
	}
	if uint32(st.Type) != unix.BPF_FS_MAGIC {
		return "", absent(dir + " is no bpf file system")
	}
	if err := unix.Access(dir, unix.W_OK); err != nil {
		return "", fmt.Errorf("write to %s: %w", dir, err)
	}
	return dir, nil
}
