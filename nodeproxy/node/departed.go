// SPDX-License-Identifier: Apache-2.0

package node

import (
	"maps"
	"net/netip"
	"time"

	"github.com/meshproxy/meshproxy/discovery/mesh"
)

// departure is how long an endpoint that was taken out of the mesh goes on to
// take connections from tunnels. The nodes hear of a change one after the
// other, and to a client that hears last, the endpoint is a good one still.
const departure = 5 * time.Second

// departed is an endpoint of this node that is none any more: whose it was.
type departed struct {
	workload mesh.Name
	services []mesh.Name
	until    time.Time
}

// departures are the endpoints that next has lost lately: those that prev
// still knew as such, less those whose time is over, and those that it had.
func departures(prev *view, next *mesh.Snapshot, now time.Time) map[netip.AddrPort]departed {
	if prev == nil {
		return nil
	}
	list := maps.Clone(prev.departed)
	maps.DeleteFunc(list, func(at netip.AddrPort, d departed) bool {
		return !now.Before(d.until) || len(next.LocalEndpoints(at)) > 0
	})
	for at, targets := range prev.snapshot.AllLocalEndpoints() {
		if len(next.LocalEndpoints(at)) > 0 {
			continue
		}
		d := departed{until: now.Add(departure)}
		for _, t := range targets {
			d.services = append(d.services, t.Service.Name)
			if d.workload.IsZero() && t.Workload != nil {
				d.workload = t.Workload.Name
			}
		}
		if d.workload.IsZero() {
			continue
		}
		if list == nil {
			list = make(map[netip.AddrPort]departed)
		}
		list[at] = d
	}
	return list
}

// formerly returns whose address it was a moment ago. Policy is that of now,
// and so is the workload: an address goes with its workload.
func (v *view) formerly(at netip.AddrPort, now time.Time) (*mesh.Workload, []mesh.Name) {
	d, ok := v.departed[at]
	if !ok || !now.Before(d.until) {
		return nil, nil
	}
	w := v.snapshot.Workload(d.workload)
	if w == nil {
		return nil, nil
	}
	return w, d.services
}
