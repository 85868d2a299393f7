// SPDX-License-Identifier: Apache-2.0

package consul

import (
	"cmp"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/meshproxy/meshproxy/discovery/mesh"
)

// match finds the processes of the services here. What configuration says
// stands; a service without is whoever listens on its port, by cgroup, and
// stays so while nobody listens. A cgroup that holds more than the service
// proves nothing, so it is not taken.
func (r *run) match() {
	s := &r.services
	before := s.selectors
	s.selectors = make(map[mesh.Name][]mesh.Selector, len(s.names))
	s.waiting = false
	claimed := make(map[string][]mesh.Name) // by cgroup
	for _, n := range s.names {
		if c := r.configured(n); c != nil && len(c.Match) > 0 {
			s.selectors[n] = c.Match
			continue
		}
		cgroups := listening(r.listeners, s.of[n])
		if len(cgroups) == 0 {
			s.selectors[n] = before[n]
			s.waiting = s.waiting || r.opts.Listeners != nil && hasPort(s.of[n])
			for _, sel := range before[n] {
				claimed[sel.Value] = append(claimed[sel.Value], n)
			}
			continue
		}
		for _, cgroup := range cgroups {
			if why := shared(cgroup); why != "" {
				s.warnings = append(s.warnings, fmt.Sprintf("service %s is served from cgroup %s, %s; say in sources.consul.services which processes it consists of", n, cgroup, why))
				continue
			}
			s.selectors[n] = append(s.selectors[n], mesh.Selector{Kind: mesh.SelectCgroup, Value: cgroup})
			claimed[cgroup] = append(claimed[cgroup], n)
		}
	}
	r.settleClaims(claimed)
}

// settleClaims takes cgroups away that several services are served from: it
// would be a guess whose identity the processes have.
func (r *run) settleClaims(claimed map[string][]mesh.Name) {
	s := &r.services
	for _, cgroup := range slices.Sorted(maps.Keys(claimed)) {
		names := slices.CompactFunc(claimed[cgroup], func(a, b mesh.Name) bool { return a == b })
		if len(names) < 2 {
			continue
		}
		texts := make([]string, len(names))
		for i, n := range names {
			texts[i] = n.String()
			s.selectors[n] = slices.DeleteFunc(slices.Clone(s.selectors[n]), func(sel mesh.Selector) bool {
				return sel.Kind == mesh.SelectCgroup && sel.Value == cgroup
			})
		}
		s.warnings = append(s.warnings, fmt.Sprintf("services %s are all served from cgroup %s; whose its connections are is said by sources.consul.services, by match", strings.Join(texts, ", "), cgroup))
	}
}

// atPortsOf are the listeners at ports that some service is registered with,
// in order.
func atPortsOf(all map[string]*agentService, listeners []Listener) (out []Listener) {
	ports := make(map[uint16]bool, len(all))
	for _, s := range all {
		if s.Kind == kindTypical && s.Port != 0 {
			ports[asPort(s.Port)] = true
		}
	}
	for _, l := range listeners {
		if ports[l.Address.Port()] {
			out = append(out, l)
		}
	}
	slices.SortFunc(out, func(a, b Listener) int {
		return cmp.Or(a.Address.Compare(b.Address), cmp.Compare(a.Cgroup, b.Cgroup))
	})
	return out
}

func hasPort(instances []*local) bool {
	return slices.ContainsFunc(instances, func(l *local) bool { return l.port != 0 })
}

// listening are the cgroups of those who listen where the instances are
// registered.
func listening(listeners []Listener, instances []*local) (cgroups []string) {
	for _, at := range listeners {
		if at.Cgroup == "" || slices.Contains(cgroups, at.Cgroup) {
			continue
		}
		if slices.ContainsFunc(instances, func(l *local) bool {
			a := at.Address.Addr()
			return l.port != 0 && at.Address.Port() == l.port && (a.IsUnspecified() || a.IsLoopback() || a == l.address)
		}) {
			cgroups = append(cgroups, at.Cgroup)
		}
	}
	slices.Sort(cgroups)
	return cgroups
}

// shared says why a cgroup is not one of a service alone.
func shared(cgroup string) string {
	name := path.Base(cgroup)
	switch {
	case cgroup == "/":
		return "that of everything"
	case strings.HasSuffix(name, ".slice"):
		return "which groups others"
	case strings.HasPrefix(name, "session-") && strings.HasSuffix(name, ".scope"), strings.HasPrefix(name, "user@"):
		return "which is a person's session"
	}
	return ""
}
