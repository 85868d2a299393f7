// SPDX-License-Identifier: Apache-2.0

package sockmap

import (
	"github.com/meshproxy/meshproxy/bpf"
	"github.com/meshproxy/meshproxy/discovery/mesh"
	"github.com/meshproxy/meshproxy/sockmap/sockdiag"
)

// OwnerWorkload returns the workload that a socket's owner belongs to. It asks the
// maps that the programs decide by, and waits for no Apply.
func (c *Capture) OwnerWorkload(o sockdiag.Owner) (mesh.Name, bool) {
	var id uint32
	if c.kernel.maps[bpf.CaptureMapCgroups].Lookup(o.CgroupID, &id) != nil {
		id = c.cgroups.find(o.CgroupID)
	}
	if id == 0 && c.kernel.maps[bpf.CaptureMapUsers].Lookup(o.UID, &id) != nil {
		return mesh.Name{}, false
	}
	name := c.names.name(id)
	return name, name != (mesh.Name{})
}
