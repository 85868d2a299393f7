// SPDX-License-Identifier: Apache-2.0

package node

import (
	"github.com/meshproxy/meshproxy/nodeproxy/admin/api"
	"github.com/meshproxy/meshproxy/nodeproxy/l4"
	"github.com/meshproxy/meshproxy/nodeproxy/telemetry"
	"github.com/meshproxy/meshproxy/sockmap"
)

// hops implements l4.Hops: the sockets of applications and the node's own ends
// of their connections are spliced by capture.
type hops struct{ node *Node }

func (h hops) Mixed() uint32  { return h.node.capture.HopsMixed() }
func (h hops) Wanted() uint32 { return h.node.capture.HopsWanted() }

func (h hops) ShouldLeave(k l4.HopKey) bool {
	leave, err := h.node.capture.HopWanted(sockmap.Hop(k))
	if err != nil {
		h.node.log.Error("ask about spliced connection", "error", err)
	}
	return leave || err != nil
}

// Leave can't do more than report an error: the connection goes on, and its
// bytes are in order in any case. Its socket is still in the map then.
func (h hops) Leave(k l4.HopKey) (waiting, done bool) {
	waiting, done, err := h.node.capture.LeaveHop(sockmap.Hop(k))
	if err != nil {
		h.node.log.Error("turn spliced connection to TCP", "error", err)
		return false, false
	}
	return waiting, done
}

// hopOf is the hop of a socket that is connected to a server of this node.
func (n *Node) hopOf(fd int) l4.HopKey {
	h, err := sockmap.HopOf(fd)
	if err != nil {
		return l4.HopKey{} // the socket is broken, and will say so
	}
	return l4.HopKey(h)
}

// hopTo is what names the hop of a target of this node.
func (n *Node) hopTo() func(fd int) l4.HopKey {
	if !n.capture.HasHops() {
		return nil
	}
	return n.hopOf
}

// hopFrom is the hop of a captured connection.
func (n *Node) hopFrom(client uint64) l4.HopKey {
	if !n.capture.HasHops() {
		return l4.HopKey{}
	}
	return l4.HopKey{Client: client}
}

// splicedHops is what status says of hops.
func splicedHops(stats *sockmap.Stats) api.SplicedHops {
	r := hopReading(stats)
	return api.SplicedHops{
		On: r.On, Reason: stats.Splice.HopsReason, Spliced: r.Spliced, Left: r.Left,
		FromApplications: r.FromApplications, FromProxy: r.FromProxy, Fallbacks: r.Fallbacks,
	}
}

// hopReading sums what went over spliced hops.
func hopReading(stats *sockmap.Stats) telemetry.HopReading {
	a, p := &stats.FromApplications, &stats.FromProxy
	r := telemetry.HopReading{
		On: stats.Splice.Hops, Spliced: a.Spliced + p.Spliced, Left: a.Left + p.Left,
		FromApplications: a.Redirected, FromProxy: p.Redirected, Fallbacks: make(map[string]uint64),
	}
	for _, t := range []*sockmap.HopTraffic{a, p} {
		for why, n := range t.Fallbacks {
			r.Fallbacks[why.String()] += n
		}
	}
	return r
}
