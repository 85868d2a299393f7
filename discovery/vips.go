// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/meshproxy/meshproxy/discovery/mesh"
)

// DefaultQuarantine is how long a released virtual IP is kept from other
// services: clients cache DNS answers far beyond their TTL, and must not reach
// another service for it.
const DefaultQuarantine = time.Hour

// errRangeFull says that a service stays without a virtual IP.
var errRangeFull = errors.New("the range of virtual IPs is used up")

// Assignment is a virtual IP that was given to a service.
type Assignment struct {
	Service mesh.Name  `json:"service"`
	Address netip.Addr `json:"address"`
	// Released is when the service went away; zero while it is there.
	Released time.Time `json:"released,omitzero"`
}

// Assignments keeps assignments over restarts. Save replaces everything that
// was saved before.
type Assignments interface {
	Load() ([]Assignment, error)
	Save([]Assignment) error
}

// vips hands out virtual IPs from one range of one family. An address is
// found by the hash of the service's name, so that nodes mostly agree and a
// node that lost its assignments gives out nearly the same ones; collisions
// probe onwards.
type vips struct {
	prefix     netip.Prefix
	size       uint64 // addresses that can be given out
	quarantine time.Duration
	byName     map[mesh.Name]*Assignment
	byAddr     map[netip.Addr]*Assignment
	// claimed are the addresses that sources gave to services themselves.
	claimed  map[netip.Addr]map[mesh.Name]struct{}
	released int  // assignments in quarantine
	changed  bool // since the last save
}

func newVIPs(prefix netip.Prefix, quarantine time.Duration) *vips {
	v := &vips{
		prefix:     prefix.Masked(),
		quarantine: quarantine,
		byName:     make(map[mesh.Name]*Assignment),
		byAddr:     make(map[netip.Addr]*Assignment),
		claimed:    make(map[netip.Addr]map[mesh.Name]struct{}),
	}
	// The first and the last address of a range stay free: they read like the
	// network and its broadcast address.
	if bits := min(prefix.Addr().BitLen()-prefix.Bits(), 63); bits >= 2 {
		v.size = 1<<bits - 2
	}
	return v
}

// at returns the i-th address of the range.
func (v *vips) at(i uint64) netip.Addr {
	raw := v.prefix.Addr().As16()
	low := binary.BigEndian.Uint64(raw[8:])
	binary.BigEndian.PutUint64(raw[8:], low|(i+1))
	a := netip.AddrFrom16(raw)
	if v.prefix.Addr().Is4() {
		a = a.Unmap()
	}
	return a
}

func (v *vips) contains(a netip.Addr) bool { return v.prefix.Contains(a) }

// restore takes an assignment of an earlier run.
func (v *vips) restore(a Assignment) {
	if !v.contains(a.Address) || v.byAddr[a.Address] != nil || v.byName[a.Service] != nil {
		return
	}
	v.byName[a.Service], v.byAddr[a.Address] = &a, &a
	if !a.Released.IsZero() {
		v.released++
	}
}

// assign returns the service's address, a new one if it has none.
func (v *vips) assign(n mesh.Name, now time.Time) (netip.Addr, error) {
	if a := v.byName[n]; a != nil {
		if !a.Released.IsZero() {
			a.Released, v.changed = time.Time{}, true
			v.released--
		}
		return a.Address, nil
	}
	free, ok := v.probe(n)
	if !ok {
		return netip.Addr{}, fmt.Errorf("%w: %s", errRangeFull, v.prefix)
	}
	a := &Assignment{Service: n, Address: free}
	v.byName[n], v.byAddr[free], v.changed = a, a, true
	return free, nil
}

// probe looks for a free address, from the one that the name hashes to
// onwards.
func (v *vips) probe(n mesh.Name) (netip.Addr, bool) {
	if !v.hasRoom() {
		return v.evict()
	}
	sum := sha256.Sum256([]byte(n.Namespace + "/" + n.Name))
	start := binary.BigEndian.Uint64(sum[:8]) % v.size
	// Every taken address is in one of the two maps, so this many steps
	// suffice if there is a free one at all.
	steps := min(v.size, uint64(len(v.byAddr)+len(v.claimed)+1))
	for i := range steps {
		a := v.at((start + i) % v.size)
		if v.byAddr[a] == nil && len(v.claimed[a]) == 0 {
			return a, true
		}
	}
	return v.evict()
}

func (v *vips) hasRoom() bool { return uint64(len(v.byAddr)+len(v.claimed)) < v.size }

// expire forgets what has been in quarantine long enough.
func (v *vips) expire(now time.Time) {
	if v.released == 0 {
		return
	}
	for n, a := range v.byName {
		if !a.Released.IsZero() && now.Sub(a.Released) >= v.quarantine {
			v.forget(n)
		}
	}
}

// evict takes the address that has been in quarantine longest: better reuse
// it early than leave a service without one.
func (v *vips) evict() (netip.Addr, bool) {
	if v.released == 0 {
		return netip.Addr{}, false
	}
	var oldest *Assignment
	for _, a := range v.byName {
		if a.Released.IsZero() || len(v.claimed[a.Address]) > 0 {
			continue
		}
		if oldest == nil || a.Released.Before(oldest.Released) {
			oldest = a
		}
	}
	if oldest == nil {
		return netip.Addr{}, false
	}
	v.forget(oldest.Service)
	return oldest.Address, true
}

func (v *vips) forget(n mesh.Name) {
	if a := v.byName[n]; a != nil {
		delete(v.byName, n)
		delete(v.byAddr, a.Address)
		v.changed = true
		if !a.Released.IsZero() {
			v.released--
		}
	}
}

// release puts the service's address into quarantine.
func (v *vips) release(n mesh.Name, now time.Time) {
	if a := v.byName[n]; a != nil && a.Released.IsZero() {
		a.Released, v.changed = now, true
		v.released++
	}
}

// claim records that a source gave the address to the service. It returns the
// other service that had been assigned it, which loses it and needs another.
func (v *vips) claim(a netip.Addr, n mesh.Name) (loser mesh.Name) {
	if !v.contains(a) {
		return mesh.Name{}
	}
	if v.claimed[a] == nil {
		v.claimed[a] = make(map[mesh.Name]struct{}, 1)
	}
	v.claimed[a][n] = struct{}{}
	if had := v.byAddr[a]; had != nil {
		v.forget(had.Service)
		if had.Service != n && had.Released.IsZero() {
			return had.Service
		}
	}
	return mesh.Name{}
}

func (v *vips) unclaim(a netip.Addr, n mesh.Name) {
	delete(v.claimed[a], n)
	if len(v.claimed[a]) == 0 {
		delete(v.claimed, a)
	}
}

// assignments returns everything worth saving.
func (v *vips) assignments() []Assignment {
	out := make([]Assignment, 0, len(v.byName))
	for _, a := range v.byName {
		out = append(out, *a)
	}
	slices.SortFunc(out, func(a, b Assignment) int {
		return cmp.Or(a.Service.Compare(b.Service), a.Address.Compare(b.Address))
	})
	return out
}
