// SPDX-License-Identifier: Apache-2.0

package sockmap

import (
	"errors"
	"fmt"
	"log/slog"

	"golang.org/x/sys/unix"
)

// mountBPFFS mounts a bpf file system where none is yet and the kernel has made
// a directory for it: in sysfs, /sys/fs/bpf. systemd mounts it at boot; other
// inits and minimal images do not. Any other directory may hide something, and
// is the administrator's to mount.
func mountBPFFS(path string, log *slog.Logger) error {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil || st.Type != unix.SYSFS_MAGIC {
		return nil // openPlace says what is wrong, if anything
	}
	err := unix.Mount("bpf", path, "bpf", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=700")
	switch {
	case errors.Is(err, unix.EBUSY): // somebody was faster
		return nil
	case err != nil:
		return fmt.Errorf("mount bpf file system at %s, by hand: mount -t bpf bpf %s: %w", path, path, err)
	}
	log.Info("mounted bpf file system", "path", path)
	return nil
}
