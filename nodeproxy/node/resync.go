// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"time"

	"github.com/meshproxy/meshproxy/discovery/mesh"
	"github.com/meshproxy/meshproxy/nodeproxy/config"
	"github.com/meshproxy/meshproxy/sockmap"
)

const (
	// resyncInterval is how often the node looks at what comes and goes without
	// a word: listeners, and the network namespaces that processes are in.
	resyncInterval = 10 * time.Second
	// applyEvery of these looks the kernel is told everything anew, whether or
	// not anything changed: cgroups announce themselves, but what they say can
	// be lost. It is most of a node's work while nothing happens, if done each
	// time.
	applyEvery = 6
)

// resync is the periodic look.
type resync struct {
	node  *Node
	looks int // since the kernel was told everything

	// running are the cgroups of the snapshot's workloads when cgroupNews was
	// as news says.
	running  map[mesh.Name][]string
	snapshot *mesh.Snapshot
	news     uint64
}

// look compares the kernel's state with the snapshot.
func (r *resync) look(ctx context.Context) {
	n := r.node
	r.looks++
	n.namespaces.refreshSources()
	s := n.views.load().snapshot
	moved := n.namespaces.find(ctx, s.Workloads(), n.cgroups, r.cgroups(s), true)
	if moved || r.looks >= applyEvery || n.mayHaveChanged() {
		r.looks = 0
		n.applyFound(ctx, s)
		return
	}
	n.lines.follow(ctx, s.Workloads())
	if err := n.capture.FollowListeners(); err != nil && !errors.Is(err, sockmap.ErrYielded) {
		n.log.Error("follow listeners", "error", err)
		r.looks = applyEvery // tried again with everything else
	}
}

// cgroups are those of the workloads. They are looked for when the kernel has
// told of one that came or went, and with every full look.
func (r *resync) cgroups(s *mesh.Snapshot) map[mesh.Name][]string {
	news := r.node.cgroupNews.Load()
	if s != r.snapshot || news != r.news || r.looks >= applyEvery {
		r.running, r.snapshot, r.news = r.node.cgroups.cgroupsOf(s.Workloads()), s, news
	}
	return r.running
}

// mayHaveChanged says whether the kernel is to be told even of a snapshot that it
// knows, with workloads where they were: the last time failed, or ways between
// workloads depend on routes and health.
func (n *Node) mayHaveChanged() bool {
	return !n.ready.Load() || n.applyError.get() != nil || n.conf.Load().Splicing == config.SplicingAuto
}
