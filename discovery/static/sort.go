// SPDX-License-Identifier: Apache-2.0

package static

import (
	"maps"
	"slices"

	"github.com/meshproxy/meshproxy/discovery/mesh"
)

// sort puts the update in the order that the merger likes best.
func (d *decoder) sort() {
	slices.SortFunc(d.out.Services, func(a, b *mesh.Service) int { return a.Compare(b.Name) })
	slices.SortFunc(d.out.Workloads, func(a, b *mesh.Workload) int { return a.Compare(b.Name) })
	slices.SortFunc(d.out.Policies, func(a, b *mesh.Policy) int { return a.Compare(b.Name) })
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

func sortedNames[V any](m map[mesh.Name]V) []mesh.Name {
	return slices.SortedFunc(maps.Keys(m), mesh.Name.Compare)
}
