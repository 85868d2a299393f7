// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"iter"
	"net/netip"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Node is the node that a snapshot was built for.
type Node struct {
	Name string `json:"name,omitempty"`
	// Address is where other nodes reach this one.
	Address netip.Addr `json:"address,omitzero"`
	// Addresses are all addresses of the node, Address included.
	Addresses   []netip.Addr         `json:"addresses,omitempty"`
	Locality    Locality             `json:"locality,omitzero"`
	TrustDomain spiffeid.TrustDomain `json:"trustDomain,omitzero"`
}

// SourceState says how a source is doing.
type SourceState struct {
	Name string `json:"name"`
	// Ready is set once the source has delivered anything, also from disk.
	Ready bool `json:"ready"`
	// Since is when the state last changed between fresh and stale; for a
	// source that was never ready, when it was started.
	Since time.Time `json:"since,omitzero"`
	// Err is why the source cannot deliver now; empty when it can.
	Err string `json:"error,omitempty"`
	// Stale means that what is in force is older than the source's last
	// attempt to renew it.
	Stale bool `json:"stale,omitempty"`
	// FromDisk means that what is in force was read from disk at the start,
	// and the source has not been heard from since.
	FromDisk bool `json:"fromDisk,omitempty"`
	// Warnings are contradictions in what the source said, such as a virtual
	// IP that belongs to another service. Each says what is in force instead.
	Warnings []string `json:"warnings,omitempty"`
}

// Snapshot is an immutable, complete view of the mesh as this node knows it.
// It is made by Build, and all its methods may be called from any goroutine.
type Snapshot struct {
	in       BuildInput // Previous is nil; slices sorted, names canonical
	services slots
	byName   table[Name, slot]
	vips     table[addrKey, []slot]
	hosts    table[string, []slot]
	addrs    table[addrKey, []claim]
	// local are the endpoints on this node; node is derived from them.
	local map[slot][]*Endpoint
	node  nodeIndex
	// endpoints counts the endpoints of all services.
	endpoints int
	conflicts map[conflictKey]conflict
}

// Version increases with every snapshot that a Merger publishes.
func (s *Snapshot) Version() uint64 { return s.in.Version }

// Built is when the snapshot was built.
func (s *Snapshot) Built() time.Time { return s.in.Built }

// Node is the node that the snapshot was built for.
func (s *Snapshot) Node() Node { return s.in.Node }

// Domain is the DNS domain of the mesh, without dots at either end.
func (s *Snapshot) Domain() string { return s.in.Domain }

// Services returns all services, sorted by name. The caller must not change
// the slice.
func (s *Snapshot) Services() []*Service { return s.in.Services }

// Workloads returns the workloads of this node, sorted by name. The caller
// must not change the slice.
func (s *Snapshot) Workloads() []*Workload { return s.in.Workloads }

// Policies returns all policies, sorted by name. The caller must not change
// the slice.
func (s *Snapshot) Policies() []*Policy { return s.in.Policies }

// Defaults decide what no policy decides.
func (s *Snapshot) Defaults() PolicyDefaults { return s.in.Defaults }

// Sources returns the states of the sources, in order of precedence.
func (s *Snapshot) Sources() []SourceState { return s.in.Sources }

// EndpointCount returns the number of endpoints of all services.
func (s *Snapshot) EndpointCount() int { return s.endpoints }

// Service returns the service of that name, or nil.
func (s *Snapshot) Service(n Name) *Service {
	at, ok := s.byName.get(n.Canonical())
	if !ok {
		return nil
	}
	return s.services.get(at)
}

// Workload returns the workload of that name, or nil.
func (s *Snapshot) Workload(n Name) *Workload { return s.node.workloads[n.Canonical()] }

// DestinationKind says what a destination address stands for.
type DestinationKind uint8

// The kinds of destinations.
const (
	// DestinationUpstream is an explicit upstream of the workload.
	DestinationUpstream DestinationKind = iota + 1
	// DestinationVirtualIP is a virtual IP of a service.
	DestinationVirtualIP
	// DestinationEndpoint is the address of one endpoint.
	DestinationEndpoint
)

// Destination is what an address means to a workload that dials it.
type Destination struct {
	Service *Service
	// PortIndex is the index of the service's port, or -1 when a virtual IP
	// was dialled on a port that the service does not have.
	PortIndex int
	// Endpoint is set when the address is that of one endpoint: no other one
	// will do.
	Endpoint *Endpoint
	Kind     DestinationKind
}

// Destination returns what dst means to the workload: its explicit upstream
// first, then a virtual IP, then an endpoint's address. It does not allocate.
//
// An upstream whose service is unknown is no destination. An endpoint's
// loopback address isn't either: another node's 127.0.0.1 is not this one's,
// and what a workload dials there is its own affair.
func (s *Snapshot) Destination(workload Name, dst netip.AddrPort) (Destination, bool) {
	k := keyOf(dst.Addr(), dst.Port())
	if up, ok := s.node.upstreams[upstreamKey{workload.Canonical(), k}]; ok {
		if svc := s.Service(up.Service); svc != nil {
			if i := svc.upstreamPort(up.Port); i >= 0 {
				return Destination{Service: svc, PortIndex: i, Kind: DestinationUpstream}, true
			}
		}
	}
	if at, ok := s.vips.get(addrKey{addr: k.addr}); ok {
		svc := s.services.get(at[0])
		return Destination{Service: svc, PortIndex: svc.PortIndex(dst.Port()), Kind: DestinationVirtualIP}, true
	}
	if c, ok := s.addrs.get(k); ok && !dst.Addr().Unmap().IsLoopback() {
		return Destination{
			Service:   s.services.get(c[0].slot),
			PortIndex: int(c[0].port),
			Endpoint:  c[0].endpoint,
			Kind:      DestinationEndpoint,
		}, true
	}
	return Destination{}, false
}

// upstreamPort is PortIndex, with 0 for the first port.
func (s *Service) upstreamPort(number uint16) int {
	if number == 0 && len(s.Ports) > 0 {
		return 0
	}
	return s.PortIndex(number)
}

// Target is an endpoint on this node together with whom it belongs to.
type Target struct {
	Service   *Service
	PortIndex int
	Endpoint  *Endpoint
	// Workload is nil when the endpoint names none, or one that this node
	// does not have.
	Workload *Workload
}

// LocalEndpoints returns the endpoints on this node that have the address and
// port dst: one for each service that they serve, sorted by precedence of the
// source, then name. The caller must not change the slice. It does not
// allocate.
func (s *Snapshot) LocalEndpoints(dst netip.AddrPort) []Target {
	return s.node.local[keyOf(dst.Addr(), dst.Port())]
}

// AllLocalEndpoints returns what LocalEndpoints knows, by address, in no order.
func (s *Snapshot) AllLocalEndpoints() iter.Seq2[netip.AddrPort, []Target] {
	return func(yield func(netip.AddrPort, []Target) bool) {
		for k, targets := range s.node.local {
			if !yield(netip.AddrPortFrom(netip.AddrFrom16(k.addr).Unmap(), k.port), targets) {
				return
			}
		}
	}
}

// Host returns the service that a DNS name stands for. The name is in lower
// case, without the trailing dot. "<service>.<domain>",
// "<service>.<namespace>.<domain>" and the bare service come before the
// hostnames that services claim.
func (s *Snapshot) Host(name string) (*Service, bool) {
	if svc := s.Service(s.nameOfHost(name)); svc != nil {
		return svc, true
	}
	if at, ok := s.hosts.get(name); ok {
		return s.services.get(at[0]), true
	}
	return nil, false
}

// nameOfHost returns the name of the service that name would be canonical
// for, or the zero Name.
func (s *Snapshot) nameOfHost(name string) Name {
	host := name
	if d := s.in.Domain; d != "" && strings.HasSuffix(name, d) {
		rest := strings.TrimSuffix(name, d)
		if !strings.HasSuffix(rest, ".") {
			return Name{}
		}
		host = rest[:len(rest)-1]
		if svc, ns, ok := strings.Cut(host, "."); ok {
			return Name{Namespace: ns, Name: svc}
		}
	}
	if strings.Contains(host, ".") {
		return Name{}
	}
	return Name{Name: host}
}
