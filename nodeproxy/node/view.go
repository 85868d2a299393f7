// SPDX-License-Identifier: Apache-2.0

package node

import (
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/meshproxy/meshproxy/discovery/mesh"
	"github.com/meshproxy/meshproxy/nodeproxy/config"
	"github.com/meshproxy/meshproxy/nodeproxy/identity"
	"github.com/meshproxy/meshproxy/nodeproxy/l4"
	"github.com/meshproxy/meshproxy/nodeproxy/policy"
)

// view is what decisions on the data path rest on: a snapshot and what follows
// from it. It is immutable; the loops load it once per decision.
type view struct {
	snapshot *mesh.Snapshot
	engine   *policy.Engine
	names    *identity.Names
	limits   map[mesh.Name]*l4.Limit
	// namespaces are those that have services, for DNS.
	namespaces map[string]bool
	departed   map[netip.AddrPort]departed
}

// views holds the view in force.
type views struct {
	current atomic.Pointer[view]
	// standard is whom the configuration in force wants clients without SNI
	// to meet.
	standard func() config.DefaultIdentity

	mu     sync.Mutex
	limits map[mesh.Name]*l4.Limit // outlive snapshots: they count what is open
}

func newViews(standard func() config.DefaultIdentity) *views {
	return &views{standard: standard, limits: make(map[mesh.Name]*l4.Limit)}
}

func (v *views) load() *view { return v.current.Load() }

// Local implements identity.Local over whatever is in force: by meshproxy's own
// names, or by those of Consul.
func (v *views) Local(serverName string) (spiffeid.ID, bool) {
	now := v.load()
	if id, ok := now.names.Local(serverName); ok {
		return id, true
	}
	return now.snapshot.ServerName(serverName)
}

// derive makes the view of a snapshot. most is the default limit of a
// workload's connections, buffered that of its memory.
func (v *views) derive(s *mesh.Snapshot, most int, buffered int64) *view {
	next := &view{
		snapshot: s,
		engine:   policy.Compile(s.Defaults(), s.Policies()),
		names:    identity.NewNames(identities(s), standardIdentity(s, v.standard())),
		limits:   make(map[mesh.Name]*l4.Limit, len(s.Workloads())),

		namespaces: make(map[string]bool),
		departed:   departures(v.load(), s, time.Now()),
	}
	for _, svc := range s.Services() {
		next.namespaces[svc.Canonical().Namespace] = true
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, w := range s.Workloads() {
		name, n := w.Canonical(), w.MaxConnections
		if n == 0 {
			n = most
		}
		limit := v.limits[name]
		if limit == nil {
			limit = l4.NewLimit(n, buffered)
			v.limits[name] = limit
		}
		limit.Set(n, buffered)
		next.limits[name] = limit
	}
	for name := range v.limits {
		if next.limits[name] == nil {
			delete(v.limits, name)
		}
	}
	return next
}

// identities are those of the node's workloads, each once.
func identities(s *mesh.Snapshot) []spiffeid.ID {
	seen := make(map[spiffeid.ID]bool)
	var ids []spiffeid.ID
	for _, w := range s.Workloads() {
		if w.Identity.IsZero() || seen[w.Identity] {
			continue
		}
		seen[w.Identity] = true
		ids = append(ids, w.Identity)
	}
	return ids
}

// standardIdentity is the identity that d stands for; zero while the workload
// is not on this node.
func standardIdentity(s *mesh.Snapshot, d config.DefaultIdentity) spiffeid.ID {
	if d.Workload.IsZero() {
		return d.ID
	}
	if w := s.Workload(d.Workload); w != nil {
		return w.Identity
	}
	return spiffeid.ID{}
}
