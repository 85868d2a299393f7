// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// DefaultKernel is that of the root file system's own release.
const DefaultKernel = "6.1"

// mirror is where packages come from.
func mirror() string {
	if m := os.Getenv("MESHPROXY_VM_MIRROR"); m != "" {
		return strings.TrimSuffix(m, "/")
	}
	return "http://deb.debian.org"
}

// kernels are the archives that have a kernel, as lines of sources.list without
// the mirror.
var kernels = map[string][]string{
	"5.10": {"debian bullseye", "debian-security bullseye-security"},
	"6.1":  {"debian bookworm", "debian-security bookworm-security"},
	"6.12": {"debian trixie", "debian-security trixie-security"},
	// What backports had last year is there no more: it moves on, as testing does.
	"7.2": {"debian trixie-backports", "debian forky"},
}

// flavour are the kernels for clouds, which are smaller and differ in drivers only.
const flavour = "-cloud-amd64"

// kernelDir returns the directory with vmlinuz, initrd and modules.ext4.
func kernelDir(ctx context.Context, version string) (string, error) {
	sources, ok := kernels[version]
	if !ok {
		return "", fmt.Errorf("find kernel %q: there are 5.10, 6.1, 6.12 and 7.2", version)
	}
	return cached("kernel-"+version, func(dir string) error {
		packages := filepath.Join(dir, "packages")
		if err := downloadKernel(ctx, version, filepath.Join(dir, "apt"), sources, packages); err != nil {
			return err
		}
		root := filepath.Join(dir, "root")
		debs, err := filepath.Glob(filepath.Join(packages, "*.deb"))
		if err != nil {
			return fmt.Errorf("list packages: %w", err)
		}
		for _, deb := range debs {
			if err := command(ctx, "dpkg-deb", "-x", deb, root); err != nil {
				return err
			}
		}
		if err := splitKernel(ctx, root, dir); err != nil {
			return err
		}
		for _, rest := range []string{packages, root, filepath.Join(dir, "apt")} {
			if err := os.RemoveAll(rest); err != nil {
				return fmt.Errorf("tidy up: %w", err)
			}
		}
		return nil
	})
}

// downloadKernel fetches the packages of a kernel by an apt of its own, which
// knows these archives only and checks their signatures.
func downloadKernel(ctx context.Context, version, apt string, sources []string, into string) error {
	for _, d := range []string{into, apt + "/state/lists/partial", apt + "/cache/archives/partial", apt + "/etc/preferences.d"} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return fmt.Errorf("make directory: %w", err)
		}
	}
	var list strings.Builder
	for _, s := range sources {
		archive, suite, _ := strings.Cut(s, " ")
		fmt.Fprintf(&list, "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] %s/%s %s main\n", mirror(), archive, suite)
	}
	if err := os.WriteFile(apt+"/etc/sources.list", []byte(list.String()), 0o644); err != nil {
		return fmt.Errorf("write sources: %w", err)
	}
	options := []string{
		"-q", "-o", "Dir::State=" + apt + "/state", "-o", "Dir::Cache=" + apt + "/cache", "-o", "Dir::Etc=" + apt + "/etc",
		"-o", "Dir::Etc::sourcelist=" + apt + "/etc/sources.list", "-o", "Dir::Etc::sourceparts=/dev/null",
		"-o", "Dir::State::status=/dev/null", "-o", "APT::Architecture=amd64", "-o", "APT::Sandbox::User=root",
	}
	if err := command(ctx, "apt-get", append(options, "update")...); err != nil {
		return err
	}
	found, err := output(ctx, "apt-cache", append(options, "search", "--names-only", `^linux-(image|binary|modules)-[0-9].*`+flavour+"$")...)
	if err != nil {
		return err
	}
	names, err := newest(version, found)
	if err != nil {
		return fmt.Errorf("find kernel in %v: %w", sources, err)
	}
	_, err = output(ctx, "sh", append([]string{"-c", `cd "$0" && exec apt-get "$@"`, into}, append(append(options, "download"), names...)...)...)
	return err
}

// newest picks the packages of the newest kernel of this version from a list
// as apt-cache prints it. Archives have several for some time, and the
// metapackages of some lead to a later version than the one that is wanted.
// Kernels from 6.19 on are split into image, binary and modules.
func newest(version, list string) ([]string, error) {
	packages := make(map[string][]string) // by release
	var latest []int
	var release string
	for line := range strings.Lines(list) {
		name, _, _ := strings.Cut(strings.TrimSpace(line), " ")
		parts := strings.SplitN(name, "-", 3)
		if len(parts) < 3 || !strings.HasPrefix(parts[2], version+".") {
			continue
		}
		packages[parts[2]] = append(packages[parts[2]], name)
		numbers := numbersIn(strings.TrimSuffix(parts[2], flavour))
		if slices.Compare(numbers, latest) > 0 {
			latest, release = numbers, parts[2]
		}
	}
	if release == "" {
		return nil, fmt.Errorf("there is no %s", version)
	}
	return packages[release], nil
}

// numbersIn are the numbers in a release such as 6.12.115+deb13.1.
func numbersIn(release string) []int {
	var numbers []int
	for _, digits := range strings.FieldsFunc(release, func(r rune) bool { return r < '0' || r > '9' }) {
		n, err := strconv.Atoi(digits)
		if err != nil {
			break // more digits than an int has
		}
		numbers = append(numbers, n)
	}
	return numbers
}

// splitKernel takes from an unpacked kernel what booting needs.
func splitKernel(ctx context.Context, root, dir string) error {
	// usr/lib is where merged-usr packages have them.
	if _, err := os.Stat(filepath.Join(root, "lib/modules")); err != nil {
		if err := os.MkdirAll(filepath.Join(root, "lib"), 0o755); err != nil {
			return fmt.Errorf("keep modules: %w", err)
		}
		if err := os.Rename(filepath.Join(root, "usr/lib/modules"), filepath.Join(root, "lib/modules")); err != nil {
			return fmt.Errorf("keep modules: %w", err)
		}
	}
	image, release, err := findImage(root)
	if err != nil {
		return err
	}
	if err := os.Rename(image, filepath.Join(dir, "vmlinuz")); err != nil {
		return fmt.Errorf("keep kernel: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "release"), []byte(release+"\n"), 0o644); err != nil {
		return fmt.Errorf("keep release: %w", err)
	}
	if err := command(ctx, "depmod", "-b", root, release); err != nil {
		return err
	}
	if err := makeInitrd(ctx, root, release, filepath.Join(dir, "initrd")); err != nil {
		return err
	}
	return makeFS(ctx, filepath.Join(dir, "modules.ext4"), "256M", filepath.Join(root, "lib/modules", release))
}

// findImage returns the kernel's path and release. Debian's are in /boot, those
// from 7.0 on beside their modules.
func findImage(root string) (image, release string, err error) {
	const inBoot = "boot/vmlinuz-"
	for _, pattern := range []string{inBoot + "*", "lib/modules/*/vmlinuz"} {
		images, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			return "", "", fmt.Errorf("find kernel: %w", err)
		}
		if len(images) != 1 {
			continue
		}
		if release, ok := strings.CutPrefix(images[0], filepath.Join(root, inBoot)); ok {
			return images[0], release, nil
		}
		return images[0], filepath.Base(filepath.Dir(images[0])), nil
	}
	return "", "", errors.New("find kernel: the packages have none")
}

// makeFS makes a file system with the contents of a directory. The size costs
// nothing until it is used.
func makeFS(ctx context.Context, path, size, from string) error {
	return command(ctx, "mkfs.ext4", "-q", "-F", "-m", "0", "-E", "lazy_itable_init=0,lazy_journal_init=0", "-d", from, path, size)
}
