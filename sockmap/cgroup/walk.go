// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// Walk calls fn for the cgroup at the directory root and for every cgroup
// below it, parents first, with the path within the hierarchy and the id.
//
// Cgroups that vanish during the walk are left out, those that appear may be
// seen or not: who must not miss any listens to raw_tp/cgroup_mkdir before
// walking. When fn returns fs.SkipDir, the cgroups below that one are skipped;
// any other error ends the walk and is returned as it is. Walk returns an
// error wrapping ErrGone when root itself does not exist.
func Walk(root string, fn func(path string, id uint64) error) error {
	path, err := Within(root)
	if err != nil {
		return fmt.Errorf("walk cgroups: %w", err)
	}
	id, err := ID(root)
	if err != nil {
		return fmt.Errorf("walk cgroups: %w", err)
	}
	return walk(root, path, id, fn)
}

func walk(dir, path string, id uint64, fn func(string, uint64) error) error {
	if err := fn(path, id); err != nil {
		if errors.Is(err, fs.SkipDir) {
			return nil
		}
		return err
	}
	names, err := children(dir)
	if err != nil {
		return fmt.Errorf("list cgroup %s: %w", dir, err)
	}
	for _, name := range names {
		below := dir + "/" + name
		id, err := inode(below)
		if errors.Is(err, ErrGone) {
			continue
		}
		if err != nil {
			return fmt.Errorf("read id of cgroup %s: %w", below, err)
		}
		if err := walk(below, join(path, name), id, fn); err != nil {
			return err
		}
	}
	return nil
}

// children returns the names of the cgroups directly below dir, none when dir
// is gone.
func children(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(vanished(err), ErrGone) {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names, nil
}
