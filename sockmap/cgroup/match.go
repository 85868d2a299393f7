// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"strings"

	"github.com/meshproxy/meshproxy/discovery/mesh"
)

// Match reports whether the processes of the cgroup at that path within the
// hierarchy belong to a workload with those selectors: whether a selector
// names the cgroup or one of its ancestors. It is the user-space twin of what
// the programs do with a cgroup's path.
//
// SelectUser says nothing about cgroups and never matches.
func Match(selectors []mesh.Selector, path string) bool {
	return Depth(selectors, path) >= 0
}

// Depth returns how deep in the hierarchy the cgroup lies that a selector
// names and that is path or an ancestor of it, as a number of segments; the
// deepest, when there are several, or -1 without any. Of two workloads whose
// selectors match, the one with the greater depth has the process: a cgroup
// delegated to a workload may hold another workload.
func Depth(selectors []mesh.Selector, path string) int {
	deepest := -1
	for _, s := range selectors {
		deepest = max(deepest, depth(s, path))
	}
	return deepest
}

func depth(s mesh.Selector, path string) int {
	switch s.Kind {
	case mesh.SelectCgroup:
		value := clean(s.Value)
		if value == "/" {
			return 0
		}
		// What follows must be a new segment: /a/web.service2 is not below
		// /a/web.service.
		rest, ok := strings.CutPrefix(path, value)
		if ok && (rest == "" || rest[0] == '/') {
			return strings.Count(value, "/")
		}
	case mesh.SelectCgroupPrefix:
		if s.Value != "" && strings.HasPrefix(path, s.Value) {
			return strings.Count(strings.TrimSuffix(s.Value, "/"), "/")
		}
	case mesh.SelectUnit:
		return unitDepth(s.Value, path)
	}
	return -1
}

// unitDepth finds the segment of path that is the unit's cgroup.
//
// The search goes from the root and ends below the first service or scope. A
// unit's cgroup lies in slices; what lies below a service or scope belongs to
// whoever it has been delegated to, and a user must not become another
// workload by `mkdir postgres.service` below user@1000.service.
func unitDepth(unit, path string) int {
	if unit == "" {
		return -1
	}
	segment := UnitSegment(unit)
	prefix, suffix, template := strings.Cut(segment, "*")
	n := 0
	for name := range strings.SplitSeq(strings.TrimPrefix(path, "/"), "/") {
		n++
		if name == segment {
			return n
		}
		// An instance is never empty: web@.service is the template itself.
		if template && len(name) > len(prefix)+len(suffix) &&
			strings.HasPrefix(name, prefix) && strings.HasSuffix(name, suffix) {
			return n
		}
		if strings.HasSuffix(name, ".service") || strings.HasSuffix(name, ".scope") {
			return -1
		}
	}
	return -1
}

// clean strips trailing slashes, and makes "" the root.
func clean(path string) string {
	path = strings.TrimRight(path, "/")
	if path == "" {
		return "/"
	}
	return path
}

// controllers whose names, followed by a dot, begin the names of the kernel's
// own files in a cgroup: CGroupController in systemd's
// src/basic/cgroup-util.h.
var controllers = []string{
	"cpu", "cpuacct", "cpuset", "io", "blkio", "memory", "devices", "pids",
	"bpf-firewall", "bpf-devices", "bpf-foreign", "bpf-socket-bind",
	"bpf-restrict-network-interfaces", "bpf-bind-network-interface",
}

// UnitSegment returns the name of the directory that systemd makes for a unit.
// It is the unit's name, escapes like "\x2d" included, with an underscore in
// front where the name could be mistaken for one of the kernel's files:
// cg_needs_escape in systemd's src/basic/cgroup-util.c.
func UnitSegment(unit string) string {
	if unit == "" {
		return unit
	}
	escape := unit[0] == '_' || unit[0] == '.' || strings.HasPrefix(unit, "cgroup.") ||
		unit == "notify_on_release" || unit == "release_agent" || unit == "tasks"
	for _, c := range controllers {
		rest, ok := strings.CutPrefix(unit, c)
		escape = escape || (ok && strings.HasPrefix(rest, "."))
	}
	if escape {
		return "_" + unit
	}
	return unit
}
