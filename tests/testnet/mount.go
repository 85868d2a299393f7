// SPDX-License-Identifier: Apache-2.0

package testnet

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// mount is a line of mountinfo (proc_pid_mountinfo(5)).
type mount struct {
	root   string // of the mount within its file system
	point  string
	fstype string
}

// mountPoints reads mountinfo in the order in which things were mounted.
func mountPoints() ([]mount, error) {
	data, err := os.ReadFile("/proc/thread-self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("read mounts: %w", err)
	}
	return parseMountInfo(string(data)), nil
}

func parseMountInfo(text string) []mount {
	// Spaces and the like are written as octal escapes.
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	var mounts []mount
	for line := range strings.Lines(text) {
		head, tail, ok := strings.Cut(line, " - ")
		fields, rest := strings.Fields(head), strings.Fields(tail)
		if !ok || len(fields) < 6 || len(rest) < 1 {
			continue
		}
		mounts = append(mounts, mount{
			root:   unescape.Replace(fields[3]),
			point:  unescape.Replace(fields[4]),
			fstype: rest[0],
		})
	}
	return mounts
}

// mountState gives a topology a tmpfs of its own. Private propagation matters
// where systemd made "/" shared: pins and bpffs mounts below it then stay out
// of every other mount namespace, so that unmounting them here ends them.
func mountState(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make state directory: %w", err)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=755"); err != nil {
		return fmt.Errorf("mount state directory: %w", err)
	}
	if err := unix.Mount("", dir, "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("make state directory private: %w", err)
	}
	return nil
}

// mountBPF mounts a bpffs of its own at dir.
func mountBPF(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make bpffs directory: %w", err)
	}
	if err := unix.Mount("bpf", dir, "bpf", 0, "mode=700"); err != nil {
		return fmt.Errorf("mount bpffs: %w", err)
	}
	return nil
}

// bindFile mounts the file source over target, which must exist.
func bindFile(source, target string) error {
	if err := unix.Mount(source, target, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind %s to %s: %w", source, target, err)
	}
	return nil
}

// unmountBelow unmounts dir and everything below it, the latest mount first.
func unmountBelow(dir string) error {
	mounts, err := mountPoints()
	if err != nil {
		return err
	}
	var errs []error
	for i := len(mounts) - 1; i >= 0; i-- {
		p := mounts[i].point
		if p != dir && !strings.HasPrefix(p, dir+string(filepath.Separator)) {
			continue
		}
		if err := unix.Unmount(p, unix.MNT_DETACH); err != nil {
			errs = append(errs, fmt.Errorf("unmount %s: %w", p, err))
		}
	}
	return errors.Join(errs...)
}
