// SPDX-License-Identifier: Apache-2.0

package tunnel

import "net/netip"

// Remote is another node as a carrier has tunnels to it, or from it.
type Remote struct {
	// Addr has the port where this side is the client; ports of clients say
	// nothing, and one node may use many.
	Addr   netip.AddrPort
	Client bool // this side is
}

// Tunnels counts what there is with a Remote.
type Tunnels struct{ Connections, Streams int }

// Remotes adds the carrier's tunnels to sum. It is called on the loop.
func (c *Carrier) Remotes(sum map[Remote]Tunnels) {
	for conn := range c.conns {
		_, server := conn.role.(*hosted)
		at := Remote{Addr: conn.peer.Remote, Client: !server}
		if server {
			at.Addr = netip.AddrPortFrom(at.Addr.Addr(), 0)
		}
		t := sum[at]
		t.Connections++
		t.Streams += conn.h2.Streams()
		sum[at] = t
	}
	for line := range c.lines {
		at := Remote{Addr: line.peer.Remote, Client: line.is(lineClient)}
		if !at.Client {
			at.Addr = netip.AddrPortFrom(at.Addr.Addr(), 0)
		}
		t := sum[at]
		t.Connections++
		t.Streams++
		sum[at] = t
	}
}
