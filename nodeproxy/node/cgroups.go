// SPDX-License-Identifier: Apache-2.0

package node

import (
	"path"
	"strings"

	"github.com/meshproxy/meshproxy/discovery/mesh"
	"github.com/meshproxy/meshproxy/sockmap/cgroup"
)

// hierarchy is the part of a cgroup2 hierarchy in which the node has its
// workloads.
type hierarchy struct {
	mount string // where all of it is mounted
	root  string // the directory that capture is limited to; mount, or below it
}

// cgroupsOf finds the cgroups that belong to each workload, by paths within the
// hierarchy, in one walk: a machine may have thousands of both. Of cgroups
// below each other, the uppermost is listed. What is outside of root belongs to
// another node, or to none.
func (h hierarchy) cgroupsOf(workloads []*mesh.Workload) map[mesh.Name][]string {
	x := indexSelectors(workloads)
	found := make(map[mesh.Name][]string)
	if x.empty() {
		return found
	}
	_ = cgroup.Walk(h.root, func(at string, _ uint64) error {
		for _, w := range x.candidates(at) {
			if !cgroup.Match(w.Selectors, at) {
				continue
			}
			name := w.Canonical()
			if list := found[name]; len(list) == 0 || !below(at, list[len(list)-1]) {
				found[name] = append(list, at)
			}
		}
		return nil
	})
	return found
}

// below: the walk visits parents first, so the last one listed is the only one
// that at can be below.
func below(at, parent string) bool {
	return strings.HasPrefix(at, strings.TrimSuffix(parent, "/")+"/")
}

// selectorIndex narrows down which workloads' selectors may name a cgroup.
type selectorIndex struct {
	paths    map[string][]*mesh.Workload // of SelectCgroup
	units    map[string][]*mesh.Workload // by the cgroup's name
	patterns []*mesh.Workload            // with prefixes or template units
}

func indexSelectors(workloads []*mesh.Workload) *selectorIndex {
	x := &selectorIndex{paths: make(map[string][]*mesh.Workload), units: make(map[string][]*mesh.Workload)}
	for _, w := range workloads {
		pattern := false
		for _, s := range w.Selectors {
			switch s.Kind {
			case mesh.SelectCgroup:
				p := path.Clean("/" + s.Value)
				x.paths[p] = append(x.paths[p], w)
			case mesh.SelectUnit:
				if strings.Contains(s.Value, "*") {
					pattern = true
					continue
				}
				unit := cgroup.UnitSegment(s.Value)
				x.units[unit] = append(x.units[unit], w)
			case mesh.SelectCgroupPrefix:
				pattern = true
			}
		}
		if pattern {
			x.patterns = append(x.patterns, w)
		}
	}
	return x
}

func (x *selectorIndex) empty() bool {
	return len(x.paths) == 0 && len(x.units) == 0 && len(x.patterns) == 0
}

// candidates are the workloads that may begin at this cgroup.
func (x *selectorIndex) candidates(at string) []*mesh.Workload {
	exact, unit := x.paths[at], x.units[path.Base(at)]
	if len(unit) == 0 && len(x.patterns) == 0 {
		return exact
	}
	list := make([]*mesh.Workload, 0, len(exact)+len(unit)+len(x.patterns))
	return append(append(append(list, exact...), unit...), x.patterns...)
}

// pidsIn are the processes of a cgroup and those below it; none when it is
// gone.
func (h hierarchy) pidsIn(at string) []int {
	pids, err := cgroup.PIDs(h.mount + at)
	if err != nil {
		return nil
	}
	return pids
}
