// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"reflect"
	"slices"
)

// ShareService returns was if is says the same, and otherwise is, or a copy of
// it, in which unchanged endpoints are those of was. A source that builds all
// its services anew thereby costs no more downstream than one that shares.
func ShareService(was, is *Service) *Service {
	if was == is || was == nil {
		return is
	}
	endpoints, same, shared := shareEndpoints(was.Endpoints, is.Endpoints)
	if same && sameService(was, is) {
		return was
	}
	if !shared {
		return is
	}
	out := *is
	out.Endpoints = endpoints
	return &out
}

// shareEndpoints returns is with the pointers of was where the content is the
// same; same means that both lists are the same, shared that pointers were
// replaced.
func shareEndpoints(was, is []*Endpoint) (out []*Endpoint, same, shared bool) {
	same = len(was) == len(is)
	out = is
	i := 0
	for j, e := range is {
		for i < len(was) && was[i] != e && CompareEndpoints(was[i], e) < 0 {
			i++
		}
		switch {
		case i >= len(was):
			same = false
		case was[i] == e:
			i++
		case CompareEndpoints(was[i], e) == 0 && was[i].Equal(e):
			if !shared {
				out, shared = slices.Clone(is), true
			}
			out[j] = was[i]
			i++
		default:
			same = false
		}
	}
	return out, same, shared
}

// Equal reports whether two endpoints say the same.
func (e *Endpoint) Equal(o *Endpoint) bool {
	return e.Address == o.Address && e.Node == o.Node && e.Workload.Canonical() == o.Workload.Canonical() &&
		e.Transport == o.Transport && e.Tunnel == o.Tunnel && e.Identity == o.Identity && e.SNI == o.SNI &&
		e.Health == o.Health && e.Weight == o.Weight && e.Priority == o.Priority && e.Locality == o.Locality &&
		slices.Equal(e.Ports, o.Ports) && slices.Equal(e.Identities, o.Identities)
}

// sameService compares everything but the endpoints.
func sameService(a, b *Service) bool {
	return a.Canonical() == b.Canonical() && a.Source == b.Source && a.Balance == b.Balance && a.ConnectTimeout == b.ConnectTimeout &&
		slices.Equal(a.Ports, b.Ports) && slices.Equal(a.VirtualIPs, b.VirtualIPs) && slices.Equal(a.Hostnames, b.Hostnames) &&
		(a.Routing == b.Routing || reflect.DeepEqual(a.Routing, b.Routing)) &&
		(a.HealthCheck == b.HealthCheck || a.HealthCheck != nil && b.HealthCheck != nil && *a.HealthCheck == *b.HealthCheck)
}

// ShareWorkload returns was if is says the same, else is.
func ShareWorkload(was, is *Workload) *Workload { return share(was, is) }

// SharePolicy returns was if is says the same, else is.
func SharePolicy(was, is *Policy) *Policy { return share(was, is) }

// share compares by reflection: workloads and policies are few, and change
// seldom.
func share[T any](was, is *T) *T {
	if was != nil && reflect.DeepEqual(was, is) {
		return was
	}
	return is
}
