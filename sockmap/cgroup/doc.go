// SPDX-License-Identifier: Apache-2.0

// Package cgroup finds its way around the cgroup v2 hierarchy: where it is
// mounted, which id a cgroup has, which cgroups and processes there are, and
// which of them a workload's selectors name.
//
// Two kinds of path occur. A directory is where a cgroup is found in this
// mount namespace ("/sys/fs/cgroup/unified/system.slice/web.service"). A path
// within the hierarchy is what the kernel calls the cgroup, for instance in
// raw_tp/cgroup_mkdir: it begins with a slash and its root is "/"
// ("/system.slice/web.service"). Parameters are called dir and path
// accordingly.
//
// The package owns no kernel state and must not know of programs, maps or
// snapshots.
package cgroup

import "errors"

var (
	// ErrNoHierarchy means that no cgroup v2 hierarchy is mounted where this
	// process could see it.
	ErrNoHierarchy = errors.New("no cgroup2 hierarchy is mounted")
	// ErrNotCgroup2 means that a directory is not part of a cgroup v2
	// hierarchy.
	ErrNotCgroup2 = errors.New("not a cgroup2 directory")
	// ErrGone means that a cgroup or process does not exist any more.
	ErrGone = errors.New("cgroup is gone")
)
