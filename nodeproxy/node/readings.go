// SPDX-License-Identifier: Apache-2.0

package node

import (
	"cmp"
	"slices"

	"github.com/meshproxy/meshproxy/nodeproxy/admin/api"
	"github.com/meshproxy/meshproxy/nodeproxy/telemetry"
	"github.com/meshproxy/meshproxy/nodeproxy/tunnel"
	"github.com/meshproxy/meshproxy/sockmap"
)

// readings are what a scrape of the metrics asks for. Parts that are not
// started yet have none.
func (n *Node) readings() telemetry.Readings {
	return telemetry.Readings{
		Snapshot: n.readSnapshot, Sources: n.readSources, Pool: n.readPools,
		Loops: n.readLoops, Leaves: n.readLeaves, Capture: n.readCapture, Upgrade: n.upgrades.reading,
	}
}

func (n *Node) readSnapshot() telemetry.SnapshotReading {
	s := n.views.load().snapshot
	return telemetry.SnapshotReading{
		Version: s.Version(), Built: s.Built(), Services: len(s.Services()), Endpoints: s.EndpointCount(),
		Workloads: len(s.Workloads()), Policies: len(s.Policies()),
	}
}

func (n *Node) readSources() (list []telemetry.SourceReading) {
	for _, s := range n.merger.Store().Load().Sources() {
		list = append(list, telemetry.SourceReading{Name: s.Name, Ready: s.Ready, Stale: s.Stale, Since: s.Since})
	}
	return list
}

// readPools asks the loops. A loop that hangs must not hang the scrape too.
func (n *Node) readPools() []telemetry.PoolReading {
	client := telemetry.PoolReading{Transport: "hbone", Role: telemetry.Client}
	for _, w := range n.loops {
		s := w.poolStats()
		client.Connections += s.Connections
		client.Streams += s.Streams
		client.Handshaking += s.Dialing
	}
	server := telemetry.PoolReading{Transport: "hbone", Role: telemetry.Server, Connections: n.tunnels.Connections()}
	return []telemetry.PoolReading{client, server}
}

func (n *Node) readLoops() (list []telemetry.LoopReading) {
	for i, w := range n.loops {
		s := w.loop.Stats()
		list = append(list, telemetry.LoopReading{Loop: i, Turns: s.Turns, Descriptors: s.Registered, Lag: s.LongestTurn})
	}
	return list
}

func (n *Node) readLeaves() (list []telemetry.LeafReading) {
	workloads := make(map[string]string)
	for _, w := range n.views.load().snapshot.Workloads() {
		workloads[w.Identity.String()] = w.Name.String()
	}
	for _, l := range n.provider.Summary().Leaves {
		if name := workloads[l.Identity.String()]; name != "" {
			list = append(list, telemetry.LeafReading{Workload: name, NotAfter: l.NotAfter})
		}
	}
	return list
}

func (n *Node) readCapture() (telemetry.CaptureReading, error) {
	stats, err := n.capture.Stats()
	if err != nil {
		return telemetry.CaptureReading{}, err
	}
	r := telemetry.CaptureReading{Refused: make(map[string]uint64), Flows: stats.Flows, Direct: directReading(&stats), Hops: hopReading(&stats)}
	for _, c := range stats.Connections {
		switch c.Outcome {
		case sockmap.OutcomeCaptured:
			r.Captured += c.Count
		case sockmap.OutcomePassthrough:
			r.Passthrough += c.Count
		}
		r.Destinations = append(r.Destinations, telemetry.CaptureDestination{
			Workload: display(c.Workload), Service: display(c.Service), Connections: c.Count,
		})
	}
	for _, f := range stats.Refusals {
		why, _ := kernelReason(f.Reason)
		r.Refused[why.String()] += f.Count
	}
	return r, nil
}

// peers are the nodes that there are tunnels to or from, by address.
func (n *Node) peers() (list []api.Peer) {
	sums := make(map[tunnel.Remote]tunnel.Tunnels)
	for _, w := range n.loops {
		for at, t := range w.remotes() {
			sum := sums[at]
			sum.Connections += t.Connections
			sum.Streams += t.Streams
			sums[at] = sum
		}
	}
	for at, t := range sums {
		p := api.Peer{
			Address: at.Addr.String(), Transport: "hbone", Role: string(telemetry.Client),
			Connections: t.Connections, Streams: t.Streams,
		}
		if !at.Client {
			p.Address, p.Role = at.Addr.Addr().Unmap().String(), string(telemetry.Server)
		}
		list = append(list, p)
	}
	slices.SortFunc(list, func(a, b api.Peer) int {
		return cmp.Or(cmp.Compare(a.Address, b.Address), cmp.Compare(a.Role, b.Role))
	})
	return list
}
