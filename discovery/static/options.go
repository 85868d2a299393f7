// SPDX-License-Identifier: Apache-2.0

package static

import (
	"log/slog"
	"os/user"

	"github.com/meshproxy/meshproxy/discovery/mesh"
)

// DefaultTunnelPort is where nodes listen for HBONE.
const DefaultTunnelPort = 15008

// The keys at the top of a file that this package decodes. A file that has
// other keys as well must be declared Partial.
const (
	KeyNodes         = "nodes"
	KeyServices      = "services"
	KeyPolicies      = "policies"
	KeyAuthorization = "authorization"
	KeyWorkloads     = "workloads"
)

// Keys returns the keys at the top of a file that this package decodes.
func Keys() []string {
	return []string{KeyNodes, KeyServices, KeyPolicies, KeyAuthorization, KeyWorkloads}
}

// File is a file to read.
type File struct {
	Path string
	// Partial says that the file is the node's configuration: keys other
	// than Keys() are somebody else's, and it may have none of Keys().
	Partial bool
}

// WorkloadDefaults are for workloads that do not say otherwise. Empty fields
// mean strict, allow, passthrough and refuse.
type WorkloadDefaults struct {
	Inbound      mesh.InboundMode
	InboundLocal mesh.Allowance
	Egress       mesh.EgressMode
	OnProxyDown  mesh.ProxyDownMode
}

// Options of a Source.
type Options struct {
	// Name of the source; empty means "static".
	Name string
	// Files are read in this order and together make one mesh: a name may be
	// there once in all of them.
	Files []File
	// Node is this node.
	Node mesh.Node
	// Tunnel port of nodes that do not name their own; 0 means
	// DefaultTunnelPort.
	TunnelPort uint16
	Defaults   WorkloadDefaults
	// LookupUser returns the uid of a user; nil means the system's database.
	LookupUser func(name string) (uid string, err error)
	Logger     *slog.Logger
}

func (o Options) withDefaults() Options {
	if o.Name == "" {
		o.Name = "static"
	}
	if o.TunnelPort == 0 {
		o.TunnelPort = DefaultTunnelPort
	}
	if o.Defaults.Inbound == "" {
		o.Defaults.Inbound = mesh.InboundStrict
	}
	if o.Defaults.InboundLocal == "" {
		o.Defaults.InboundLocal = mesh.Allow
	}
	if o.Defaults.Egress == "" {
		o.Defaults.Egress = mesh.EgressPassthrough
	}
	if o.Defaults.OnProxyDown == "" {
		o.Defaults.OnProxyDown = mesh.ProxyDownRefuse
	}
	if o.LookupUser == nil {
		o.LookupUser = lookupUser
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o
}

func lookupUser(name string) (string, error) {
	u, err := user.Lookup(name)
	if err != nil {
		return "", err
	}
	return u.Uid, nil
}
