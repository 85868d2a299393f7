// SPDX-License-Identifier: Apache-2.0

package sockmap

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cilium/ebpf/link"
)

// Leave removes all kernel state of an instance, of every layout: the machine
// is as if meshproxy had never run. It needs no more of the options than BPFFS
// and Instance, succeeds when there is nothing, and returns ErrBusy while a
// process owns the instance.
func Leave(opts Options) error {
	if err := opts.checkPlace(); err != nil {
		return fmt.Errorf("check options: %w", err)
	}
	p, err := findPlace(opts.BPFFS, opts.Instance)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer p.close()
	states, err := os.ReadDir(p.dir)
	if err != nil {
		return fmt.Errorf("read state directory: %w", err)
	}
	for _, s := range states {
		dir := filepath.Join(p.dir, s.Name())
		if err := detachAll(linksDir(dir)); err != nil {
			return err
		}
		if err := os.RemoveAll(dir); err != nil {
			return fmt.Errorf("remove state: %w", err)
		}
	}
	if err := os.Remove(p.dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove state directory: %w", err)
	}
	// Shared by all instances, so it may well be in use.
	_ = os.Remove(filepath.Dir(p.dir))
	return nil
}

// detachAll detaches in the opposite order of attaching, so that connections
// stop being redirected before anything that this relies on goes.
func detachAll(links string) error {
	entries, err := os.ReadDir(links)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read links: %w", err)
	}
	slices.SortFunc(entries, func(a, b os.DirEntry) int { return attachOrder(b) - attachOrder(a) })
	for _, e := range entries {
		path := filepath.Join(links, e.Name())
		l, err := link.LoadPinnedLink(path, nil)
		if err != nil {
			return fmt.Errorf("load link %s: %w", e.Name(), err)
		}
		// Detach takes effect even where somebody else holds the link open;
		// tracepoints don't have it and end with their last holder.
		_ = l.Detach()
		l.Close()
		if err := os.Remove(path); err != nil {
			return fmt.Errorf("remove link %s: %w", e.Name(), err)
		}
	}
	return nil
}

func attachOrder(e os.DirEntry) int {
	name := strings.TrimPrefix(e.Name(), "next-")
	// What is not in the list (namespaces) is attached last.
	if i := slices.IndexFunc(hooks, func(h hook) bool { return h.name == name }); i >= 0 {
		return i
	}
	return len(hooks)
}
