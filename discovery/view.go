// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/meshproxy/meshproxy/discovery/mesh"
)

// maxViewWarnings bounds what one source can say about its data.
const maxViewWarnings = 20

// view is what one source says, in the form that the model wants: canonical
// names, the source filled in, sorted, and with the pointers of the view
// before it wherever nothing changed.
type view struct {
	raw       []*mesh.Service // as sent, sorted; services[i] was made of raw[i]
	services  []*mesh.Service
	workloads []*mesh.Workload
	policies  []*mesh.Policy
	defaults  *mesh.PolicyDefaults
	warnings  []string
	// dropped are the warnings about endpoints, by service: a service that
	// did not change is not checked again.
	dropped map[mesh.Name][]string
	state   mesh.SourceState
}

func compareServices(a, b *mesh.Service) int   { return a.Compare(b.Name) }
func compareWorkloads(a, b *mesh.Workload) int { return a.Compare(b.Name) }
func comparePolicies(a, b *mesh.Policy) int    { return a.Compare(b.Name) }

// update replaces the content of the view.
func (v *view) update(u Update) {
	source := v.state.Name
	v.warnings = u.Warnings
	v.updateServices(u.Services)
	v.workloads = renew(v.workloads, u.Workloads, compareWorkloads, func(was, w *mesh.Workload) *mesh.Workload {
		c := *w
		c.Name, c.Source = w.Canonical(), source
		return mesh.ShareWorkload(was, &c)
	})
	v.policies = renew(v.policies, u.Policies, comparePolicies, func(was, p *mesh.Policy) *mesh.Policy {
		c := *p
		c.Name, c.Source = p.Canonical(), source
		return mesh.SharePolicy(was, &c)
	})
	v.defaults = u.Defaults
}

// renew makes a list of now with build, which gets the item of the same name
// from before, or nil.
func renew[T any](before, now []*T, compare func(a, b *T) int, build func(was, is *T) *T) []*T {
	now = inOrder(now, compare)
	out := make([]*T, len(now))
	align(before, now, compare, func(was, is int) {
		switch {
		case is < 0:
		case was < 0:
			out[is] = build(nil, now[is])
		default:
			out[is] = build(before[was], now[is])
		}
	})
	return out
}

func (v *view) updateServices(raw []*mesh.Service) {
	raw = inOrder(raw, compareServices)
	out := make([]*mesh.Service, len(raw))
	align(v.raw, raw, compareServices, func(was, is int) {
		switch {
		case is < 0:
			delete(v.dropped, v.services[was].Name)
		case was < 0:
			out[is] = v.canonical(nil, raw[is])
		case v.raw[was] == raw[is]:
			out[is] = v.services[was]
		default:
			out[is] = v.canonical(v.services[was], raw[is])
		}
	})
	v.raw, v.services = raw, out
}

// canonical returns svc as the model wants it, or was if it is the same.
func (v *view) canonical(was, svc *mesh.Service) *mesh.Service {
	c := *svc
	c.Name, c.Source = svc.Canonical(), v.state.Name
	c.VirtualIPs = unmapped(svc.VirtualIPs)
	c.Endpoints = v.checked(was, svc)
	return mesh.ShareService(was, &c)
}

func unmapped(list []netip.Addr) []netip.Addr {
	if !slices.ContainsFunc(list, netip.Addr.Is4In6) {
		return list
	}
	list = slices.Clone(list)
	for i := range list {
		list[i] = list[i].Unmap()
	}
	return list
}

// checked returns the endpoints of svc, sorted, without those that readers
// could stumble over. Sources validate what users write; this is the last line
// of defence against a backend. was is the service before, or nil: what it has
// at the same place is not looked into, so that one change among very many costs
// no more than comparing pointers.
func (v *view) checked(was, svc *mesh.Service) []*mesh.Endpoint {
	var known []*mesh.Endpoint
	if was != nil && len(was.Ports) == len(svc.Ports) {
		known = was.Endpoints
	}
	out, copied := svc.Endpoints, false
	var warnings []string
	for i, e := range svc.Endpoints {
		if i < len(known) && known[i] == e {
			continue
		}
		good, problem := checkEndpoint(svc, e)
		if problem != "" {
			warnings = append(warnings, fmt.Sprintf("service %q: endpoint %s is left out: %s", svc, e.Address, problem))
		}
		if good == e {
			continue
		}
		if !copied {
			out, copied = slices.Clone(svc.Endpoints), true
		}
		out[i] = good
	}
	if copied {
		out = slices.DeleteFunc(out, func(e *mesh.Endpoint) bool { return e == nil })
	}
	v.endpointWarnings(svc.Canonical(), warnings)
	if inOrderLike(known, out, mesh.CompareEndpoints) {
		return out
	}
	return inOrder(out, mesh.CompareEndpoints)
}

// checkEndpoint returns e or a corrected copy, or nil and what is wrong.
func checkEndpoint(svc *mesh.Service, e *mesh.Endpoint) (good *mesh.Endpoint, problem string) {
	switch {
	case !e.Address.IsValid(), e.Address.IsUnspecified(), e.Address.IsMulticast(), e.Address.Zone() != "":
		return nil, "the address cannot be dialled"
	case len(e.Ports) != len(svc.Ports):
		return nil, fmt.Sprintf("it has %d ports, the service %d", len(e.Ports), len(svc.Ports))
	case e.Address.Is4In6():
		c := *e
		c.Address = e.Address.Unmap()
		return &c, ""
	}
	return e, ""
}

func (v *view) endpointWarnings(n mesh.Name, warnings []string) {
	if len(warnings) == 0 {
		delete(v.dropped, n)
		return
	}
	if v.dropped == nil {
		v.dropped = make(map[mesh.Name][]string)
	}
	v.dropped[n] = warnings
}

// allWarnings are those of the source and those about its endpoints, at most
// maxViewWarnings.
func (v *view) allWarnings() []string {
	all := slices.Clone(v.warnings)
	for _, n := range slices.SortedFunc(maps.Keys(v.dropped), mesh.Name.Compare) {
		all = append(all, v.dropped[n]...)
	}
	if n := len(all) - maxViewWarnings; n > 0 {
		all = append(all[:maxViewWarnings], fmt.Sprintf("and %d more", n))
	}
	return all
}

// fresh and failed record how the source is doing. They report whether that
// changed.
func (v *view) fresh(now time.Time) bool {
	changed := !v.state.Ready || v.state.Stale || v.state.Err != ""
	if changed {
		v.state.Since = now
	}
	v.state.Ready, v.state.Stale, v.state.Err, v.state.FromDisk = true, false, "", false
	return changed
}

func (v *view) failed(now time.Time, err error) bool {
	changed := v.state.Err != err.Error()
	if v.state.Ready && !v.state.Stale {
		v.state.Stale, v.state.Since = true, now
		changed = true
	}
	v.state.Err = err.Error()
	return changed
}
