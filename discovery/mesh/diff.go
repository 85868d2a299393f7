// SPDX-License-Identifier: Apache-2.0

package mesh

import "slices"

// Changes are the names of what differs between two snapshots: added, removed
// or changed.
type Changes struct {
	Services, Workloads, Policies []Name
	// Defaults is set when the policy defaults changed.
	Defaults bool
}

// Empty reports whether nothing changed.
func (c Changes) Empty() bool {
	return len(c.Services) == 0 && len(c.Workloads) == 0 && len(c.Policies) == 0 && !c.Defaults
}

// Diff returns what changed from one snapshot to another; a nil old means
// that everything is new. Items count as changed when their pointers differ,
// so it is exact for snapshots whose inputs went through ShareService and its
// likes, as those of a Merger do.
func Diff(old, new *Snapshot) Changes {
	if old == nil {
		old = &Snapshot{}
	}
	var c Changes
	merge(old.in.Services, new.in.Services, compareServices, func(was, is *Service) {
		c.Services = append(c.Services, either(was, is).Canonical())
	})
	merge(old.in.Workloads, new.in.Workloads, compareWorkloads, func(was, is *Workload) {
		c.Workloads = append(c.Workloads, either(was, is).Canonical())
	})
	merge(old.in.Policies, new.in.Policies, comparePolicies, func(was, is *Policy) {
		c.Policies = append(c.Policies, either(was, is).Canonical())
	})
	c.Policies = slices.Compact(c.Policies) // one name from two sources
	c.Defaults = old.in.Defaults != new.in.Defaults
	return c
}

func either[T any](a, b *T) *T {
	if a != nil {
		return a
	}
	return b
}
