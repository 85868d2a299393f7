// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"github.com/meshproxy/meshproxy/discovery/mesh"
)

// addressing gives virtual IPs to the services that have none. It remembers
// the last list it was given, so that its work is in proportion to what
// changed.
type addressing struct {
	ranges []*vips // one for each family
	saved  Assignments
	log    *slog.Logger

	before []*mesh.Service // as merged
	after  []*mesh.Service // with addresses
	// without are the services that no range had an address for.
	without map[mesh.Name]unserved
	dirty   bool // a save failed
}

func newAddressing(ranges []netip.Prefix, saved Assignments, quarantine time.Duration, log *slog.Logger) *addressing {
	a := &addressing{saved: saved, log: log, without: make(map[mesh.Name]unserved)}
	for _, p := range ranges {
		a.ranges = append(a.ranges, newVIPs(p, quarantine))
	}
	if saved == nil {
		return a
	}
	list, err := saved.Load()
	if err != nil {
		log.Warn("virtual IPs of the last run are lost; services may get other ones", "error", err)
	}
	for _, old := range list {
		a.restore(old)
	}
	return a
}

func (a *addressing) restore(old Assignment) {
	old.Service, old.Address = old.Service.Canonical(), old.Address.Unmap()
	for _, r := range a.ranges {
		r.restore(old)
	}
}

// adopt takes over the addresses that a snapshot of an earlier run shows as
// the service's, and returns the service without them.
func (a *addressing) adopt(svc *mesh.Service) *mesh.Service {
	ours := func(ip netip.Addr) bool {
		return slices.ContainsFunc(a.ranges, func(r *vips) bool { return r.contains(ip) })
	}
	if len(svc.VirtualIPs) == 0 || !ours(svc.VirtualIPs[0]) {
		return svc
	}
	for _, ip := range svc.VirtualIPs {
		a.restore(Assignment{Service: svc.Canonical(), Address: ip})
	}
	c := *svc
	c.VirtualIPs = nil
	return &c
}

// apply returns the services, sorted like merged, all of them with addresses
// if the ranges suffice.
func (a *addressing) apply(merged []*mesh.Service, now time.Time) []*mesh.Service {
	if len(a.ranges) == 0 {
		return merged
	}
	after := make([]*mesh.Service, len(merged))
	var wanting []int
	align(a.before, merged, compareServices, func(was, is int) {
		switch {
		case is >= 0 && was >= 0 && a.before[was] == merged[is]:
			after[is] = a.after[was]
			return
		case was >= 0:
			a.unclaim(a.before[was])
		}
		switch {
		case is < 0:
			a.release(a.before[was].Canonical(), now)
		case len(merged[is].VirtualIPs) == 0:
			wanting = append(wanting, is)
		default:
			a.release(merged[is].Canonical(), now)
			after[is] = merged[is]
		}
	})
	wanting = append(wanting, a.claim(a.before, merged)...)
	for _, r := range a.ranges {
		r.expire(now)
	}
	wanting = append(wanting, a.retries(merged)...)
	slices.Sort(wanting)
	for _, i := range slices.Compact(wanting) {
		after[i] = a.assign(merged[i], now)
	}
	a.before, a.after = merged, after
	a.save()
	return after
}

// claim records the addresses that the changed services bring along. It
// returns the indexes of services that lost theirs by it.
func (a *addressing) claim(before, merged []*mesh.Service) (losers []int) {
	align(before, merged, compareServices, func(was, is int) {
		if is < 0 || was >= 0 && before[was] == merged[is] {
			return
		}
		for _, ip := range merged[is].VirtualIPs {
			for _, r := range a.ranges {
				loser := r.claim(ip, merged[is].Canonical())
				if loser.IsZero() {
					continue
				}
				i, ok := find(merged, loser)
				if ok && len(merged[i].VirtualIPs) == 0 {
					a.log.Warn("a source claims a virtual IP that had been given out; the service gets another one",
						"address", ip, "service", loser, "claimed_by", merged[is].Name)
					losers = append(losers, i)
				}
			}
		}
	})
	return losers
}

// retries returns the indexes of services that got no address earlier, if
// there is room now.
func (a *addressing) retries(merged []*mesh.Service) (indexes []int) {
	if !slices.ContainsFunc(a.ranges, (*vips).hasRoom) {
		return nil
	}
	for n := range a.without {
		if i, ok := find(merged, n); ok {
			indexes = append(indexes, i)
		}
	}
	return indexes
}

func find(sorted []*mesh.Service, n mesh.Name) (int, bool) {
	return slices.BinarySearchFunc(sorted, n, func(s *mesh.Service, n mesh.Name) int { return s.Compare(n) })
}

func (a *addressing) unclaim(svc *mesh.Service) {
	for _, ip := range svc.VirtualIPs {
		for _, r := range a.ranges {
			r.unclaim(ip, svc.Canonical())
		}
	}
}

func (a *addressing) release(n mesh.Name, now time.Time) {
	delete(a.without, n)
	for _, r := range a.ranges {
		r.release(n, now)
	}
}

// assign returns a copy of the service that has addresses.
func (a *addressing) assign(svc *mesh.Service, now time.Time) *mesh.Service {
	c := *svc
	delete(a.without, svc.Canonical())
	for _, r := range a.ranges {
		ip, err := r.assign(svc.Canonical(), now)
		if err != nil {
			a.without[svc.Canonical()] = unserved{svc.Source, fmt.Sprintf("service %q gets no virtual IP: %v", svc, err)}
			continue
		}
		c.VirtualIPs = append(c.VirtualIPs, ip)
	}
	return &c
}

type unserved struct{ source, warning string }

// unserved returns the warnings about services of the source that have no
// address.
func (a *addressing) unserved(source string) []string {
	var out []string
	for _, u := range a.without {
		if u.source == source {
			out = append(out, u.warning)
		}
	}
	slices.Sort(out)
	return out
}

// save writes the assignments if they changed. A failure costs stability over
// a restart, not service, so it is reported and tried again with the next
// change.
func (a *addressing) save() {
	changed := a.dirty
	for _, r := range a.ranges {
		changed = changed || r.changed
		r.changed = false
	}
	if !changed || a.saved == nil {
		return
	}
	var all []Assignment
	for _, r := range a.ranges {
		all = append(all, r.assignments()...)
	}
	err := a.saved.Save(all)
	if err != nil {
		a.log.Error("virtual IPs are not saved; they may change with a restart", "error", err)
	}
	a.dirty = err != nil
}
