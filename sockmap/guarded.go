// SPDX-License-Identifier: Apache-2.0

package sockmap

import (
	"fmt"
	"net/netip"
	"slices"

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

// GuardedPorts returns the ports of each workload that sk_lookup guards: those
// that are declared, and those that it listens on.
func (c *Capture) GuardedPorts() (map[mesh.Name][]uint16, error) {
	all, err := contents[bpf.CapturePortKey, bpf.CapturePort](c.kernel.maps[bpf.CaptureMapPorts])
	if err != nil {
		return nil, fmt.Errorf("read guarded ports: %w", err)
	}
	ports := make(map[mesh.Name][]uint16)
	for key, p := range all {
		name := c.names.name(p.Workload)
		if name != (mesh.Name{}) && !slices.Contains(ports[name], key.Address.Port) {
			ports[name] = append(ports[name], key.Address.Port)
		}
	}
	for _, list := range ports {
		slices.Sort(list)
	}
	return ports, nil
}
