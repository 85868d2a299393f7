// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"slices"
	"time"
)

// BuildInput is everything that a Snapshot consists of. It is also the form
// in which a snapshot is written to disk.
type BuildInput struct {
	Version uint64    `json:"version"`
	Built   time.Time `json:"built,omitzero"` // zero: now
	Node    Node      `json:"node"`
	// Domain is the DNS domain of the mesh.
	Domain string `json:"domain,omitempty"`
	// Sources are in order of precedence: where two services claim the same
	// thing, that of the earlier source has it.
	Sources   []SourceState  `json:"sources,omitempty"`
	Services  []*Service     `json:"services,omitempty"`
	Workloads []*Workload    `json:"workloads,omitempty"`
	Policies  []*Policy      `json:"policies,omitempty"`
	Defaults  PolicyDefaults `json:"defaults"`
	// Previous is the snapshot that this one replaces, or nil. Whatever has
	// the same pointer in both is taken as unchanged and costs next to
	// nothing; all else costs in proportion to the change.
	Previous *Snapshot `json:"-"`
}

// Build makes a Snapshot. It takes over the slices and everything they point
// to. It never fails: contradictions become warnings of the source that loses.
func Build(in BuildInput) *Snapshot {
	prev := in.Previous
	in.Previous = nil
	if in.Built.IsZero() {
		in.Built = time.Now()
	}
	if prev == nil || prev.in.Node.Name != in.Node.Name || prev.in.Domain != in.Domain || !sameOrder(prev.in.Sources, in.Sources) {
		prev = &Snapshot{}
	}
	b := newBuild(prev, &in)
	in.Services = sorted(prev.in.Services, in.Services, compareServices, b.duplicate)
	in.Workloads = sorted(prev.in.Workloads, in.Workloads, compareWorkloads, b.duplicateWorkload)
	in.Policies = sorted(prev.in.Policies, in.Policies, comparePolicies, nil)
	b.updateServices(prev.in.Services, in.Services)
	s := &Snapshot{
		in:        in,
		services:  b.slots.slots,
		byName:    b.byName.done(),
		vips:      b.vips.done(),
		hosts:     b.hosts.done(),
		addrs:     b.addrs.done(),
		local:     b.local,
		endpoints: b.endpoints,
	}
	s.node = b.nodeIndex(prev, s)
	s.conflicts = b.conflicts
	s.in.Sources = withWarnings(in.Sources, b.conflicts)
	return s
}

func sameOrder(a, b []SourceState) bool {
	return slices.EqualFunc(a, b, func(x, y SourceState) bool { return x.Name == y.Name })
}

func compareServices(a, b *Service) int   { return a.Compare(b.Name) }
func compareWorkloads(a, b *Workload) int { return a.Compare(b.Name) }
func comparePolicies(a, b *Policy) int {
	if c := a.Compare(b.Name); c != 0 {
		return c
	}
	return cmpString(a.Source, b.Source)
}

// sorted returns list in order. Of items that compare equal the first one
// stays, if drop is given, which is told of the others. before is a list that
// is in order; what list has in common with it costs nothing.
func sorted[T any](before, list []*T, compare func(a, b *T) int, drop func(kept, dropped *T)) []*T {
	if inOrder(before, list, compare) {
		return list
	}
	list = slices.Clone(list)
	slices.SortStableFunc(list, compare)
	if drop == nil {
		return list
	}
	return slices.CompactFunc(list, func(next, kept *T) bool {
		if compare(kept, next) != 0 {
			return false
		}
		drop(kept, next)
		return true
	})
}

// inOrder reports whether list is strictly in order. It looks only at pointers
// where list runs along before.
func inOrder[T any](before, list []*T, compare func(a, b *T) int) bool {
	j, along := 0, false
	for i := range list {
		for j < len(before) && before[j] != list[i] && compare(before[j], list[i]) < 0 {
			j, along = j+1, false
		}
		match := j < len(before) && before[j] == list[i]
		if i > 0 && !(match && along) && compare(list[i-1], list[i]) >= 0 {
			return false
		}
		if match {
			j++
		}
		along = match
	}
	return true
}

// build is a Build in progress.
type build struct {
	rank      map[string]int // of a source
	localNode string
	slots     *slotsEdit
	byName    *tableEdit[Name, slot]
	vips      *tableEdit[addrKey, []slot]
	hosts     *tableEdit[string, []slot]
	addrs     *tableEdit[addrKey, []claim]
	local     map[slot][]*Endpoint
	endpoints int
	conflicts map[conflictKey]conflict
	// ownConflicts and ownLocal are set once the maps are no longer the
	// previous snapshot's. ownLocal also says that a service with an endpoint
	// on this node changed.
	ownConflicts, ownLocal bool
	// ports is set when a service came or went or has other ports.
	ports bool
}

func newBuild(prev *Snapshot, in *BuildInput) *build {
	addresses, virtual, hostnames := prev.addrs.length, prev.vips.length, prev.hosts.length
	if prev.byName.length == 0 {
		for _, s := range in.Services {
			addresses += len(s.Endpoints) * max(1, len(s.Ports))
			virtual += len(s.VirtualIPs)
			hostnames += len(s.Hostnames)
		}
	}
	b := &build{
		rank:      make(map[string]int, len(in.Sources)),
		localNode: in.Node.Name,
		slots:     prev.services.edit(),
		byName:    prev.byName.edit(len(in.Services)),
		vips:      prev.vips.edit(virtual),
		hosts:     prev.hosts.edit(hostnames),
		addrs:     prev.addrs.edit(addresses),
		local:     prev.local,
		endpoints: prev.endpoints,
		conflicts: prev.conflicts,
	}
	for i, src := range in.Sources {
		b.rank[src.Name] = i
	}
	b.forgetDuplicates()
	return b
}

// updateServices brings the indexes from the services before to those of
// now, both sorted by name.
func (b *build) updateServices(before, now []*Service) {
	merge(before, now, compareServices, b.change)
}

// merge walks two sorted lists and calls change for every item that is in one
// of them only (the other argument is nil) or has another pointer in both.
func merge[T any](before, now []*T, compare func(a, b *T) int, change func(was, is *T)) {
	i, j := 0, 0
	for i < len(before) && j < len(now) {
		if before[i] == now[j] {
			i, j = i+1, j+1
			continue
		}
		switch c := compare(before[i], now[j]); {
		case c < 0:
			change(before[i], nil)
			i++
		case c > 0:
			change(nil, now[j])
			j++
		default:
			change(before[i], now[j])
			i, j = i+1, j+1
		}
	}
	for ; i < len(before); i++ {
		change(before[i], nil)
	}
	for ; j < len(now); j++ {
		change(nil, now[j])
	}
}

func (b *build) change(was, is *Service) {
	switch {
	case was == nil:
		b.ports = true
		at := b.slots.add(is)
		b.byName.set(is.Canonical(), at)
		b.index(at, nil, is)
	case is == nil:
		b.ports = true
		at, _ := b.byName.get(was.Canonical())
		b.index(at, was, nil)
		b.byName.delete(was.Canonical())
		b.slots.remove(at)
	default:
		at, _ := b.byName.get(was.Canonical())
		if was.Source != is.Source || !slices.Equal(was.Ports, is.Ports) {
			// The precedence of everything it claims may differ, or the ports
			// that its claims refer to.
			b.ports = true
			b.index(at, was, nil)
			was = nil
		}
		b.slots.set(at, is)
		b.index(at, was, is)
	}
}
