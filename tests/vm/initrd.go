// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"bytes"
	"compress/gzip"
	"context"
	_ "embed" // what runs first in a machine
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

//go:embed guest/init
var initScript string

// bootModules are what it takes to see the disks; udev loads the rest.
var bootModules = []string{"virtio_pci", "virtio_blk", "crc32c_generic", "ext4"}

// makeInitrd writes the initial file system of a kernel that lies unpacked
// below root.
func makeInitrd(ctx context.Context, root, release, path string) error {
	var archive cpio
	for _, dir := range []string{"bin", "modules", "proc", "sys", "dev", "new"} {
		archive.add(dir, 0o040755, nil)
	}
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		return fmt.Errorf("find busybox: %w", err)
	}
	program, err := os.ReadFile(busybox)
	if err != nil {
		return fmt.Errorf("read busybox: %w", err)
	}
	archive.add("bin/busybox", 0o100755, program)
	archive.add("init", 0o100755, []byte(initScript))
	var order strings.Builder
	seen := map[string]bool{}
	for _, module := range bootModules {
		// A module that is built in, or gone, has no file.
		files, err := output(ctx, "modprobe", "-d", root, "-S", release, "--show-depends", module)
		if err != nil {
			continue
		}
		for line := range strings.Lines(files) {
			fields := strings.Fields(line)
			if len(fields) < 2 || fields[0] != "insmod" || seen[fields[1]] {
				continue
			}
			seen[fields[1]] = true
			name, data, err := readModule(ctx, fields[1])
			if err != nil {
				return err
			}
			archive.add("modules/"+name, 0o100644, data)
			fmt.Fprintln(&order, name)
		}
	}
	if order.Len() == 0 {
		return fmt.Errorf("find modules of %s: there are none", release)
	}
	archive.add("modules/order", 0o100644, []byte(order.String()))
	return archive.write(path)
}

// readModule returns a module as busybox's insmod takes it: not compressed.
func readModule(ctx context.Context, path string) (name string, data []byte, err error) {
	name = filepath.Base(path)
	for suffix, tool := range map[string]string{".xz": "xz", ".zst": "zstd"} {
		if strings.HasSuffix(name, suffix) {
			data, err := exec.CommandContext(ctx, tool, "-dcq", path).Output()
			if err != nil {
				return "", nil, fmt.Errorf("unpack %s: %w", name, err)
			}
			return strings.TrimSuffix(name, suffix), data, nil
		}
	}
	data, err = os.ReadFile(path)
	if err != nil {
		return "", nil, fmt.Errorf("read module: %w", err)
	}
	return name, data, nil
}

// cpio writes the archive that a kernel unpacks: the "newc" format of
// Documentation/driver-api/early-userspace/buffer-format.rst.
type cpio struct {
	buf   bytes.Buffer
	inode int
}

func (c *cpio) add(name string, mode uint32, data []byte) {
	c.inode++
	fmt.Fprintf(&c.buf, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		c.inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0, name)
	c.pad()
	c.buf.Write(data)
	c.pad()
}

func (c *cpio) pad() {
	for c.buf.Len()%4 != 0 {
		c.buf.WriteByte(0)
	}
}

func (c *cpio) write(path string) error {
	c.add("TRAILER!!!", 0, nil)
	var packed bytes.Buffer
	z, err := gzip.NewWriterLevel(&packed, gzip.BestSpeed)
	if err != nil {
		return fmt.Errorf("pack initrd: %w", err)
	}
	if _, err := z.Write(c.buf.Bytes()); err != nil {
		return fmt.Errorf("pack initrd: %w", err)
	}
	if err := z.Close(); err != nil {
		return fmt.Errorf("pack initrd: %w", err)
	}
	if err := os.WriteFile(path, packed.Bytes(), 0o644); err != nil {
		return fmt.Errorf("write initrd: %w", err)
	}
	return nil
}
