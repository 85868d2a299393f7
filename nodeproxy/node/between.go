// SPDX-License-Identifier: Apache-2.0

package node

import (
	"net/netip"

	"github.com/meshproxy/meshproxy/discovery/mesh"
	"github.com/meshproxy/meshproxy/nodeproxy/policy"
)

// between is a connection from a workload of this node to another one of it, with
// the proxy or without: who they are is what the mesh says now, so that it can be
// decided again when that changes.
type between struct {
	source mesh.Name
	client netip.AddrPort // as policy shall see it
	// workload is whose endpoint at is, service what was dialled.
	workload, service mesh.Name
	at                netip.AddrPort
}

// request is what policy is asked. An endpoint that is in no service any more is
// drained, not cut off: it counts as in the one that was dialled. A source that is
// no workload any more is nobody.
func (b *between) request(v *view) policy.Request {
	r := policy.Request{Source: b.client, Workload: b.workload, Port: b.at.Port()}
	if w := v.snapshot.Workload(b.source); w != nil {
		r.Identity = w.Identity
	}
	for _, t := range v.snapshot.LocalEndpoints(b.at) {
		r.Services = append(r.Services, t.Service.Name)
	}
	if len(r.Services) == 0 && !b.service.IsZero() {
		r.Services = []mesh.Name{b.service}
	}
	return r
}

// illegal returns why the connection may not be open; nil lets it be.
func (b *between) illegal(v *view) error {
	left := v.snapshot.Workload(b.source) == nil
	if left && !allReady(v.snapshot) {
		return nil // a source that has not said anything yet may know it
	}
	r := b.request(v)
	switch d := v.engine.Decide(r); {
	case !d.Allowed && left:
		return &deniedError{who: b.source.String() + ", which has left the mesh,", verdict: d.Verdict, workload: r.Workload, port: r.Port}
	case !d.Allowed:
		return denial(r, d)
	case left && !takesNobody(v.snapshot.Workload(b.workload)):
		return &leftError{source: b.source, workload: b.workload}
	}
	return nil
}

// takesNobody says whether a workload of this node takes connections from a
// process of this node that is none.
func takesNobody(w *mesh.Workload) bool {
	if w == nil {
		return true // nothing protects it any more
	}
	return w.Inbound == mesh.InboundOff || w.Inbound == mesh.InboundPermissive && w.InboundLocal != mesh.Deny
}

// leftError says that nobody knows who is at the other end any more.
type leftError struct{ source, workload mesh.Name }

func (e *leftError) Error() string {
	return e.source.String() + " has left the mesh, and " + e.workload.String() + " takes connections of workloads only"
}

// allReady says whether the mesh is known as a whole, be it from disk.
func allReady(s *mesh.Snapshot) bool {
	for _, src := range s.Sources() {
		if !src.Ready {
			return false
		}
	}
	return true
}
