// SPDX-License-Identifier: Apache-2.0

package static

import (
	"net/netip"

	"github.com/meshproxy/meshproxy/discovery/mesh"
	"github.com/meshproxy/meshproxy/discovery/yamlconf"
)

// node is a node of the mesh.
type node struct {
	name     string
	address  netip.Addr
	tunnel   netip.AddrPort
	locality mesh.Locality
	place    string // empty for this node until the files mention it
}

// thisNode makes the node known that the files need not mention.
func (d *decoder) thisNode() {
	self := d.opts.Node
	if self.Name == "" {
		return
	}
	n := &node{name: self.Name, address: self.Address, locality: self.Locality}
	if self.Address.IsValid() {
		n.tunnel = netip.AddrPortFrom(self.Address, d.opts.TunnelPort)
	}
	d.addNode(n)
	for _, a := range self.Addresses {
		d.byAddress[a.String()] = n
	}
}

func (d *decoder) addNode(n *node) {
	d.nodes[n.name] = n
	if !n.address.IsValid() {
		return
	}
	at := n.address.String()
	if other, shared := d.byAddress[at]; shared && other != n {
		n = nil // an address alone does not tell them apart
	}
	d.byAddress[at] = n
}

func (d *decoder) node(m *yamlconf.Map) {
	n := &node{name: m.Required("name").Label(), place: m.Value().Position()}
	address := m.Required("address")
	n.address = dialable(address)
	n.locality = locality(m.Get("locality"))
	if n.address.IsValid() {
		n.tunnel = netip.AddrPortFrom(n.address, d.opts.TunnelPort)
	}
	if t := m.Get("tunnel"); t.Present() {
		n.tunnel = t.AddrPort()
	}
	if n.name == "" {
		return
	}
	before := d.nodes[n.name]
	switch {
	case before == nil:
	case before.place != "":
		m.Get("name").Rejectf("node %q is there twice, first at %s", n.name, before.place)
		return
	case before.address.IsValid() && n.address.IsValid() && before.address != n.address:
		address.Rejectf("found %s for this node, whose node.address is %s", n.address, before.address)
	case n.locality == mesh.Locality{}:
		n.locality = before.locality
	}
	for _, other := range d.nodes {
		if other.name != n.name && n.tunnel.IsValid() && other.tunnel == n.tunnel {
			m.Value().Rejectf("node %q has the tunnel address %s of node %q", n.name, n.tunnel, other.name)
		}
	}
	if before != nil { // this node: keep the pointer that its other addresses have
		*before = *n
		n = before
	}
	d.addNode(n)
}

// dialable decodes an address that can be connected to.
func dialable(v yamlconf.Value) netip.Addr {
	a := v.Addr()
	if a.IsValid() && (a.IsUnspecified() || a.IsMulticast() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255})) {
		v.Reject("found "+a.String(), "an address that can be connected to")
		return netip.Addr{}
	}
	return a
}

func locality(v yamlconf.Value) mesh.Locality {
	m := v.Map()
	defer m.Done()
	l := mesh.Locality{Region: m.Get("region").Text(), Zone: m.Get("zone").Text()}
	if l.Zone != "" && l.Region == "" {
		v.Reject("found a zone without its region", "region and zone, or region alone")
	}
	return l
}
