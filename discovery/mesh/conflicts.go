// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"fmt"
	"maps"
	"slices"
)

// maxWarnings bounds the warnings shown for one source; a broken backend must
// not turn every snapshot into megabytes of text.
const maxWarnings = 20

type conflictKind uint8

const (
	conflictVIP conflictKind = iota + 1
	conflictHost
	conflictEndpoint
	conflictDuplicate
	conflictDuplicateWorkload
	conflictUpstream
)

// conflictKey is what is claimed more often than it can be had.
type conflictKey struct {
	kind conflictKind
	addr addrKey
	name string
}

type conflict struct {
	source  string // of the claimant that lost
	warning string
}

func (b *build) setConflict(k conflictKey, c conflict) {
	if old, ok := b.conflicts[k]; ok && old == c {
		return
	}
	b.ownConflictMap()
	b.conflicts[k] = c
}

func (b *build) clearConflict(k conflictKey) {
	if _, ok := b.conflicts[k]; ok {
		b.ownConflictMap()
		delete(b.conflicts, k)
	}
}

func (b *build) ownConflictMap() {
	if b.ownConflicts {
		return
	}
	b.conflicts = maps.Clone(b.conflicts)
	if b.conflicts == nil {
		b.conflicts = make(map[conflictKey]conflict)
	}
	b.ownConflicts = true
}

// judge records or clears the conflict over something that one service only
// can have.
func (b *build) judge(k conflictKey, claimants []slot) {
	if len(claimants) < 2 {
		b.clearConflict(k)
		return
	}
	what, name := "hostname", k.name
	if k.kind == conflictVIP {
		what, name = "virtual IP", k.addr.String()
	}
	has, wants := b.slots.get(claimants[0]), b.slots.get(claimants[1])
	b.setConflict(k, conflict{wants.Source, fmt.Sprintf(
		"service %q claims %s %s, which service %q has", wants, what, name, has)})
}

// judgeClaims records a conflict when the claims to one address and port
// disagree about who is there, or one service lists it twice.
func (b *build) judgeClaims(k addrKey, claims []claim) {
	key := conflictKey{kind: conflictEndpoint, addr: k}
	for i := 1; i < len(claims); i++ {
		first, c := claims[0].endpoint, claims[i]
		has, wants := b.slots.get(claims[0].slot), b.slots.get(c.slot)
		switch {
		case claims[i-1].slot == c.slot && claims[i-1].port == c.port:
			b.setConflict(key, conflict{wants.Source, fmt.Sprintf(
				"service %q lists endpoint %s twice", wants, k)})
			return
		case first.Node != c.endpoint.Node || first.Workload.Canonical() != c.endpoint.Workload.Canonical() ||
			first.Identity != c.endpoint.Identity || first.Transport != c.endpoint.Transport:
			b.setConflict(key, conflict{wants.Source, fmt.Sprintf(
				"services %q and %q disagree about the node, workload, identity or transport of endpoint %s; dialled directly it is that of %q",
				has, wants, k, has)})
			return
		}
	}
	b.clearConflict(key)
}

func (b *build) duplicate(kept, dropped *Service) {
	b.setConflict(conflictKey{kind: conflictDuplicate, name: dropped.String()}, conflict{
		dropped.Source,
		fmt.Sprintf("service %q appears twice; the first one is in force", dropped),
	})
}

func (b *build) duplicateWorkload(kept, dropped *Workload) {
	b.setConflict(conflictKey{kind: conflictDuplicateWorkload, name: dropped.String()}, conflict{
		dropped.Source,
		fmt.Sprintf("workload %q appears twice; the first one is in force", dropped),
	})
}

// forgetDuplicates drops the conflicts that each build finds anew.
func (b *build) forgetDuplicates() {
	for k := range b.conflicts {
		if k.kind == conflictDuplicate || k.kind == conflictDuplicateWorkload {
			b.clearConflict(k)
		}
	}
}

// withWarnings returns the states with the conflicts added to the warnings.
func withWarnings(states []SourceState, conflicts map[conflictKey]conflict) []SourceState {
	if len(conflicts) == 0 {
		return states
	}
	bySource := make(map[string][]string)
	for _, c := range conflicts {
		bySource[c.source] = append(bySource[c.source], c.warning)
	}
	out := slices.Clone(states)
	for i := range out {
		found := bySource[out[i].Name]
		if len(found) == 0 {
			continue
		}
		slices.Sort(found)
		if n := len(found) - maxWarnings; n > 0 {
			found = append(found[:maxWarnings], fmt.Sprintf("and %d more", n))
		}
		out[i].Warnings = append(slices.Clone(out[i].Warnings), found...)
	}
	return out
}
