// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"context"
	"crypto/sha256"
	_ "embed" // the agent's unit
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// suite is the release of the root file system, and of the systemd in it.
const suite = "bookworm"

// basePackages are in every root file system: what a server has that somebody
// administers, and bpftool, which says what is left in the kernel.
var basePackages = []string{
	"systemd", "systemd-sysv", "dbus", "udev", "kmod", "iproute2", "iputils-ping", "procps", "psmisc",
	"ca-certificates", "curl", "bpftool",
}

// masked units do nothing that a test would miss, and take time at boot.
var masked = []string{
	"serial-getty@ttyS0.service", "getty@tty1.service", "getty.target", "console-getty.service",
	"apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer",
	"e2scrub_reap.service", "fstrim.timer", "systemd-update-utmp.service",
	"systemd-update-utmp-runlevel.service", "systemd-pstore.service", "systemd-random-seed.service",
	"systemd-machine-id-commit.service",
	"modprobe@configfs.service", "modprobe@dm_mod.service", "modprobe@drm.service", "modprobe@fuse.service",
	"modprobe@loop.service", "systemd-logind.service",
	// The clock is the host's, and nobody answers in a test's network.
	"systemd-timesyncd.service",
}

//go:embed guest/agent.service
var agentUnit string

// rootImage returns the root file system with the base packages and these.
func rootImage(ctx context.Context, packages []string) (string, error) {
	all := slices.Concat(basePackages, packages)
	slices.Sort(all)
	sum := sha256.Sum256([]byte(strings.Join(slices.Compact(all), " ")))
	cache, err := cacheDir()
	if err != nil {
		return "", err
	}
	debs := filepath.Join(cache, "debs-"+suite)
	if err := os.MkdirAll(debs, 0o755); err != nil {
		return "", fmt.Errorf("make directory: %w", err)
	}
	dir, err := cached("root-"+suite+"-"+hex.EncodeToString(sum[:6]), func(dir string) error {
		root := filepath.Join(dir, "root")
		if err := dpkgConfig(root); err != nil {
			return err
		}
		err := command(ctx, "debootstrap", "--variant=minbase", "--cache-dir="+debs,
			"--include="+strings.Join(slices.Compact(all), ","), suite, root, mirror()+"/debian")
		if err != nil {
			return err
		}
		if err := configureRoot(root); err != nil {
			return err
		}
		// Tests fill it: 1 GB is room enough, and little to fill.
		if err := makeFS(ctx, filepath.Join(dir, "root.ext4"), "1500M", root); err != nil {
			return err
		}
		return os.RemoveAll(root)
	})
	return filepath.Join(dir, "root.ext4"), err
}

// dpkgConfig has dpkg leave writing to disk to the kernel, here and in the
// machine: it takes most of the time otherwise.
func dpkgConfig(root string) error {
	dir := filepath.Join(root, "etc/dpkg/dpkg.cfg.d")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make directory: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "vm"), []byte("force-unsafe-io\n"), 0o644); err != nil {
		return fmt.Errorf("write file: %w", err)
	}
	return nil
}

// configureRoot makes a machine of what debootstrap has unpacked.
func configureRoot(root string) error {
	for _, glob := range []string{"var/cache/apt/*", "var/lib/apt/lists/*", "usr/share/doc/*", "usr/share/man/*", "usr/share/locale/*"} {
		paths, err := filepath.Glob(filepath.Join(root, glob))
		if err != nil {
			return fmt.Errorf("list files: %w", err)
		}
		for _, p := range paths {
			if err := os.RemoveAll(p); err != nil {
				return fmt.Errorf("remove file: %w", err)
			}
		}
	}
	units := filepath.Join(root, "etc/systemd/system")
	wants := filepath.Join(units, "sysinit.target.wants")
	network := filepath.Join(units, "multi-user.target.wants")
	for _, dir := range []string{wants, network} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("make directory: %w", err)
		}
	}
	for path, text := range map[string]string{
		"etc/fstab": "", "etc/resolv.conf": "nameserver 192.0.2.53\n",
		"etc/systemd/system/vm-agent.service": agentUnit,
		"etc/modules-load.d/vm.conf":          "virtio_console\nvirtio_net\n",
	} {
		if err := os.WriteFile(filepath.Join(root, path), []byte(text), 0o644); err != nil {
			return fmt.Errorf("write file: %w", err)
		}
	}
	links := map[string]string{
		filepath.Join(wants, "vm-agent.service"):           "../vm-agent.service",
		filepath.Join(network, "systemd-networkd.service"): "/lib/systemd/system/systemd-networkd.service",
	}
	for _, unit := range masked {
		links[filepath.Join(units, unit)] = "/dev/null"
	}
	for link, target := range links {
		if err := os.Symlink(target, link); err != nil {
			return fmt.Errorf("configure units: %w", err)
		}
	}
	return nil
}
