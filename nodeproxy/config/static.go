// SPDX-License-Identifier: Apache-2.0

package config

import (
	"net/netip"
	"slices"

	"github.com/meshproxy/meshproxy/discovery/mesh"
	"github.com/meshproxy/meshproxy/discovery/static"
)

// meshSections belong to the static source.
var meshSections = static.Keys()

// Static returns the options of the static source: which files it reads, for
// which node, with which defaults.
func (c *Config) Static() static.Options {
	o := static.Options{
		Node:       c.MeshNode(),
		TunnelPort: c.Listeners.InboundHBONE.Port(),
		Defaults: static.WorkloadDefaults{
			Inbound: c.Defaults.Inbound, InboundLocal: c.Defaults.InboundLocal,
			Egress: c.Defaults.Egress, OnProxyDown: c.Defaults.OnProxyDown,
		},
	}
	for _, path := range c.MeshFiles() {
		o.Files = append(o.Files, static.File{Path: path, Partial: path == c.File})
	}
	return o
}

// MeshNode is this node, as the model has it.
func (c *Config) MeshNode() mesh.Node {
	n := mesh.Node{
		Name: c.Node.Name, Address: c.Node.Address,
		Locality: c.Node.Locality, TrustDomain: c.Node.TrustDomain,
	}
	for _, a := range append([]netip.Addr{c.Node.Address}, c.Node.Addresses...) {
		if a.IsValid() && !slices.Contains(n.Addresses, a) {
			n.Addresses = append(n.Addresses, a)
		}
	}
	return n
}

// CheckMesh reports what is wrong with the mesh's sections and files. A node
// without any is fine.
func (c *Config) CheckMesh() (warnings []string, err error) {
	o := c.Static()
	if len(o.Files) == 0 {
		return nil, nil
	}
	update, err := static.Load(o)
	return update.Warnings, err
}
