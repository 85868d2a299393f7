// SPDX-License-Identifier: Apache-2.0

package sockmap

import (
	"errors"
	"fmt"
	"path"
	"strings"

	"github.com/cilium/ebpf"

	"github.com/meshproxy/meshproxy/sockmap/cgroup"
)

// cgroups is the map from cgroup to workload, which the kernel writes too, when
// cgroups come and go.
type cgroups struct {
	m    *ebpf.Map
	root *cgroupRoot
	node *nodeMemory
	// doubtful entries had no directory at the last scan. They go when there
	// is none at the next one either: the kernel enrols a cgroup shortly
	// before its directory can be seen.
	doubtful map[uint64]bool
	// path and workload of everything below the root, of the last scan.
	seen map[uint64]uint32
}

// scan brings the map into line with the rules for all cgroups that exist. The
// rules must be in force for cgroups to come.
func (c *cgroups) scan(r *rules) error {
	before, err := contents[uint64, uint32](c.m)
	if err != nil {
		return err
	}
	if err := c.root.settle(); err != nil {
		return err
	}
	dead := make(map[uint64]bool)
	for id := range before {
		dead[id] = true
	}
	c.seen = make(map[uint64]uint32)
	var nearest []uint32 // workload at each depth of the current path
	err = cgroup.Walk(c.root.dir.Name(), func(p string, id uint64) error {
		delete(dead, id)
		depth := level(p)
		workload := r.match(p)
		// Depth grows by one at most, but begins at the root's.
		for len(nearest) <= depth {
			nearest = append(nearest, 0)
		}
		nearest[depth] = workload
		if workload == 0 && depth > 0 {
			nearest[depth] = nearest[depth-1]
		}
		c.seen[id] = nearest[depth]
		return c.set(id, before[id], workload, depth)
	})
	if err != nil {
		return fmt.Errorf("scan cgroups: %w", err)
	}
	for id := range dead {
		if c.doubtful[id] {
			if err := c.remove(id); err != nil {
				return err
			}
			delete(dead, id)
		}
	}
	c.doubtful = dead
	return nil
}

func (c *cgroups) set(id uint64, was, is uint32, depth int) error {
	switch {
	case is == was:
		// A pinned entry's depth is marked, unless another layout's.
		if is != 0 {
			c.mark(depth)
		}
		return nil
	case is == 0:
		return c.remove(id)
	}
	c.mark(depth)
	if err := c.m.Update(id, is, ebpf.UpdateAny); err != nil {
		return fmt.Errorf("enrol cgroup: %w", err)
	}
	return nil
}

func (c *cgroups) mark(depth int) {
	if depth < len(c.node.Levels) {
		c.node.Levels[depth] = 1
	}
}

func (c *cgroups) remove(id uint64) error {
	if err := c.m.Delete(id); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("dismiss cgroup: %w", err)
	}
	return nil
}

// find returns the workload of a cgroup that is younger than the last scan: that
// of its nearest enrolled ancestor.
func (c *cgroups) find(id uint64) uint32 {
	p, err := cgroup.Path(id)
	if err != nil {
		return 0 // gone, with its processes
	}
	below := strings.TrimPrefix(p, c.root.path)
	if below == p && c.root.path != "" {
		return 0 // not ours
	}
	for ; ; below = path.Dir(below) {
		id, err := cgroup.ID(c.root.dir.Name() + below)
		if err != nil {
			return 0
		}
		var workload uint32
		if c.m.Lookup(id, &workload) == nil {
			return workload
		}
		if below == "/" || below == "" {
			return 0
		}
	}
}
