// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"cmp"
	"fmt"
	"slices"
)

// nodeIndex holds what concerns this node only. There is little of it
// (hundreds of workloads, not tens of thousands), so it is made anew whenever
// something in it changed.
type nodeIndex struct {
	workloads map[Name]*Workload
	upstreams map[upstreamKey]Upstream
	local     map[addrKey][]Target
	incoming  incoming
}

type upstreamKey struct {
	workload Name
	addr     addrKey
}

func (b *build) nodeIndex(prev, s *Snapshot) nodeIndex {
	n := prev.node
	workloads := n.workloads == nil || !slices.Equal(prev.in.Workloads, s.in.Workloads)
	if workloads {
		n.workloads, n.upstreams = indexWorkloads(s.in.Workloads)
	}
	if workloads || b.ports {
		b.judgeUpstreams(s)
	}
	if workloads || b.ownLocal {
		n.local = b.indexLocal(s, n.workloads)
		n.incoming = indexIncoming(s.in.Workloads, n.local)
	}
	return n
}

func indexWorkloads(list []*Workload) (map[Name]*Workload, map[upstreamKey]Upstream) {
	workloads := make(map[Name]*Workload, len(list))
	upstreams := make(map[upstreamKey]Upstream)
	for _, w := range list {
		name := w.Canonical()
		workloads[name] = w
		for _, u := range w.Upstreams {
			k := upstreamKey{name, keyOf(u.Listen.Addr(), u.Listen.Port())}
			if _, taken := upstreams[k]; !taken {
				upstreams[k] = u
			}
		}
	}
	return workloads, upstreams
}

func (b *build) judgeUpstreams(s *Snapshot) {
	for k := range b.conflicts {
		if k.kind == conflictUpstream {
			b.clearConflict(k)
		}
	}
	for _, w := range s.in.Workloads {
		for _, u := range w.Upstreams {
			why := "which no source has"
			if svc := s.Service(u.Service); svc != nil {
				if svc.upstreamPort(u.Port) >= 0 {
					continue
				}
				why = fmt.Sprintf("which has no port %d", u.Port)
			}
			k := conflictKey{kind: conflictUpstream, name: w.String(), addr: keyOf(u.Listen.Addr(), u.Listen.Port())}
			b.setConflict(k, conflict{w.Source, fmt.Sprintf(
				"upstream %s of workload %q stands for service %q, %s", u.Listen, w, u.Service, why)})
		}
	}
}

func (b *build) indexLocal(s *Snapshot, workloads map[Name]*Workload) map[addrKey][]Target {
	local := make(map[addrKey][]Target)
	for at, endpoints := range b.local {
		svc := b.slots.get(at)
		for _, e := range endpoints {
			b.eachPort(svc, e, func(k addrKey, i uint16) {
				local[k] = append(local[k], Target{Service: svc, PortIndex: int(i), Endpoint: e, Workload: workloads[e.Workload.Canonical()]})
			})
		}
	}
	for _, targets := range local {
		slices.SortFunc(targets, func(x, y Target) int {
			return cmp.Or(cmp.Compare(b.rankOf(x.Service.Source), b.rankOf(y.Service.Source)),
				x.Service.Compare(y.Service.Name), cmp.Compare(x.PortIndex, y.PortIndex))
		})
	}
	return local
}
