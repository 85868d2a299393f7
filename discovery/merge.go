// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"fmt"

	"github.com/meshproxy/meshproxy/discovery/mesh"
)

// merged combines the lists of several sources, given in order of precedence
// and each sorted. Of items with one name the first source's stays; shadowed
// is told of the others, with the index of the list that they were in.
func merged[T any](lists [][]*T, compare func(a, b *T) int, shadowed func(kept, dropped *T, list int)) []*T {
	switch nonEmpty := only(lists); len(nonEmpty) {
	case 0:
		return nil
	case 1:
		return distinct(lists[nonEmpty[0]], compare, func(kept, dropped *T) { shadowed(kept, dropped, nonEmpty[0]) })
	}
	total := 0
	for _, l := range lists {
		total += len(l)
	}
	out := make([]*T, 0, total)
	at := make([]int, len(lists))
	for {
		best := -1
		for i, l := range lists {
			if at[i] < len(l) && (best < 0 || compare(l[at[i]], lists[best][at[best]]) < 0) {
				best = i
			}
		}
		if best < 0 {
			return out
		}
		item := lists[best][at[best]]
		at[best]++
		if n := len(out); n > 0 && compare(out[n-1], item) == 0 {
			shadowed(out[n-1], item, best)
			continue
		}
		out = append(out, item)
	}
}

func only[T any](lists [][]*T) (nonEmpty []int) {
	for i, l := range lists {
		if len(l) > 0 {
			nonEmpty = append(nonEmpty, i)
		}
	}
	return nonEmpty
}

// distinct returns list without the later ones of equal items; the same list
// if there are none.
func distinct[T any](list []*T, compare func(a, b *T) int, dropped func(kept, dropped *T)) []*T {
	var out []*T
	last := list[0]
	for i, item := range list[1:] {
		if compare(last, item) == 0 {
			if out == nil {
				out = append(make([]*T, 0, len(list)), list[:i+1]...)
			}
			dropped(last, item)
			continue
		}
		last = item
		if out != nil {
			out = append(out, item)
		}
	}
	if out == nil {
		return list
	}
	return out
}

// combine makes one list of each kind out of the views.
func combine(views []*view) (services []*mesh.Service, workloads []*mesh.Workload, policies []*mesh.Policy, shadowed [][]string) {
	shadowed = make([][]string, len(views))
	note := func(kind string, kept, dropped mesh.Name, keptSource string, list int) {
		w := fmt.Sprintf("%s %q is shadowed by that of source %q", kind, dropped, keptSource)
		if keptSource == views[list].state.Name {
			w = fmt.Sprintf("%s %q appears twice; the first one is in force", kind, kept)
		}
		shadowed[list] = append(shadowed[list], w)
	}
	var (
		allServices  [][]*mesh.Service
		allWorkloads [][]*mesh.Workload
	)
	for _, v := range views {
		allServices = append(allServices, v.services)
		allWorkloads = append(allWorkloads, v.workloads)
		// A policy is never shadowed: losing a deny to another source's
		// policy of the same name would open what it closes.
		policies = append(policies, v.policies...)
	}
	services = merged(allServices, compareServices, func(kept, dropped *mesh.Service, list int) {
		note("service", kept.Name, dropped.Name, kept.Source, list)
	})
	workloads = merged(allWorkloads, compareWorkloads, func(kept, dropped *mesh.Workload, list int) {
		note("workload", kept.Name, dropped.Name, kept.Source, list)
	})
	return services, workloads, policies, shadowed
}
