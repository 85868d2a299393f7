// SPDX-License-Identifier: Apache-2.0

package sockmap

import (
	"net/netip"

	"github.com/meshproxy/meshproxy/bpf"
	"github.com/meshproxy/meshproxy/discovery/mesh"
)

// ListenerWorkload returns whose port an address in a namespace is, as sk_lookup
// sees it: the listener on that very address first, then the one on any.
func (c *Capture) ListenerWorkload(netns uint64, at netip.AddrPort) (mesh.Name, bool) {
	exact := toAddress(at)
	any4 := toAddress(netip.AddrPortFrom(netip.IPv4Unspecified(), at.Port()))
	any6 := bpf.CaptureAddress{Port: at.Port()}
	for _, a := range []bpf.CaptureAddress{exact, any4, any6} {
		if a == any4 && !at.Addr().Unmap().Is4() {
			continue
		}
		var p bpf.CapturePort
		key := bpf.CapturePortKey{Netns: netns, Address: a}
		if err := c.kernel.maps[bpf.CaptureMapPorts].Lookup(&key, &p); err != nil {
			continue
		}
		name := c.names.name(p.Workload)
		return name, name != (mesh.Name{})
	}
	return mesh.Name{}, false
}
