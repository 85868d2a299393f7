// SPDX-License-Identifier: Apache-2.0

package consul

import (
	"cmp"
	"log/slog"
	"net/netip"

	"github.com/meshproxy/meshproxy/discovery/consulagent"
	"github.com/meshproxy/meshproxy/discovery/mesh"
)

// Name is the source's.
const Name = "consul"

// The defaults of Options.
const (
	DefaultInboundPort = 20000
	DefaultDomain      = "consul"
)

// Reach says which services workloads can dial by name.
type Reach string

// The reaches.
const (
	// ReachPermitted is all that intentions permit some workload here.
	ReachPermitted Reach = "permitted"
	// ReachExplicit is explicit upstreams alone.
	ReachExplicit Reach = "explicit"
)

// Options of a Source.
type Options struct {
	// Agent allows MaxConnections connections.
	Agent *consulagent.Agent
	Node  mesh.Node
	// AgentNode is what Consul calls this node; empty: what the agent says.
	AgentNode string
	// Namespace and Partition are those of the services here, where the
	// server has such; empty: the token's.
	Namespace, Partition string
	// Domain is that of Consul's DNS; empty: DefaultDomain.
	Domain string
	Reach  Reach
	// DefaultIntention decides what no intention does; empty: as the agent
	// says.
	DefaultIntention mesh.Action
	// HBONEPort is where this node takes hbone, InboundPort where it takes
	// the mutual TLS of Consul's sidecars.
	HBONEPort, InboundPort uint16
	// Register has the node keep a connect-proxy row for each local service.
	Register bool
	// Services are what configuration says about local services.
	Services []Service
	// Workload has what configuration says about all workloads: how they are
	// captured.
	Workload mesh.Workload
	// Last is what the node knew when it last ran; nil: nothing. An instance
	// that was healthy then stays so while its agent, restarted, has not
	// checked it yet.
	Last *mesh.BuildInput
	// Listeners tells whose processes listen on TCP ports of this node; nil:
	// nobody can tell, and only configuration says what a workload is.
	Listeners func() ([]Listener, error)
	Logger    *slog.Logger
}

// Service is what configuration says about a local service.
type Service struct {
	// Name has no namespace where it is in that of the source.
	Name mesh.Name
	// LeftOut is one that the node leaves alone: it is no workload, and has no
	// connect-proxy row.
	LeftOut bool
	// Match says which processes it consists of; none: those of whoever
	// listens on the port that it registered.
	Match []mesh.Selector
	// Port is a port of its own for clients that send no server name; 0: the
	// node's shared one.
	Port      uint16
	Upstreams []Upstream
	// Register is a registration that the node makes itself; nil: somebody
	// else registers the service.
	Register *Registration
}

// Upstream is an explicit upstream.
type Upstream struct {
	Listen     netip.AddrPort
	Service    mesh.Name // likewise
	Datacenter string    // empty: the agent's

	gateway string // how it is reached elsewhere; empty: as its targets say
}

// Listener is a socket that listens.
type Listener struct {
	Address netip.AddrPort
	// Cgroup is the path of the cgroup of whoever opened it, within the
	// hierarchy; empty when unknown.
	Cgroup string
}

func (o Options) withDefaults() Options {
	o.Domain = cmp.Or(o.Domain, DefaultDomain)
	o.Reach = cmp.Or(o.Reach, ReachPermitted)
	o.InboundPort = cmp.Or(o.InboundPort, DefaultInboundPort)
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o
}
