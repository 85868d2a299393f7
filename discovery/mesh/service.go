// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"net/netip"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Name identifies a service or a workload within a mesh. Sources that have no
// namespaces use DefaultNamespace.
type Name struct {
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name,omitempty"`
}

// DefaultNamespace is the namespace of everything whose source names none.
const DefaultNamespace = "default"

// String returns "namespace/name", or the bare name in the default namespace.
func (n Name) String() string {
	if n.Namespace == "" || n.Namespace == DefaultNamespace {
		return n.Name
	}
	return n.Namespace + "/" + n.Name
}

// IsZero reports whether n names nothing.
func (n Name) IsZero() bool { return n.Name == "" }

// Canonical returns n with DefaultNamespace in place of an empty namespace.
// Names in a Snapshot are canonical; its lookups take either form.
func (n Name) Canonical() Name {
	if n.Namespace == "" {
		n.Namespace = DefaultNamespace
	}
	return n
}

// Compare orders names by namespace, then name, in canonical form.
func (n Name) Compare(o Name) int {
	n, o = n.Canonical(), o.Canonical()
	if c := strings.Compare(n.Namespace, o.Namespace); c != 0 {
		return c
	}
	return strings.Compare(n.Name, o.Name)
}

// ParseName reads what Name.String writes: "name" or "namespace/name".
func ParseName(s string) Name {
	if ns, name, ok := strings.Cut(s, "/"); ok {
		return Name{Namespace: ns, Name: name}.Canonical()
	}
	return Name{Name: s}.Canonical()
}

// Protocol is what a service port speaks. Everything but ProtocolTCP is a
// promise that L7 work may rely on; nothing is ever guessed from the bytes.
type Protocol string

// The protocols a service port can have.
const (
	ProtocolTCP   Protocol = "tcp"
	ProtocolHTTP  Protocol = "http"
	ProtocolHTTP2 Protocol = "http2"
	ProtocolGRPC  Protocol = "grpc"
)

// Service is a name that clients dial.
type Service struct {
	Name
	// Source is the discovery source that owns the service ("static",
	// "consul", "kubernetes").
	Source string `json:"source,omitempty"`
	Ports  []Port `json:"ports,omitempty"`
	// VirtualIPs are the addresses that stand for the service: at most one
	// IPv4 and one IPv6 address, stable over restarts.
	VirtualIPs []netip.Addr `json:"virtualIPs,omitempty"`
	// Hostnames are additional DNS names, fully qualified without the
	// trailing dot, in lower case.
	Hostnames []string `json:"hostnames,omitempty"`
	// Endpoints serve every port of the service. Sorted by address, then
	// port.
	Endpoints []*Endpoint `json:"endpoints,omitempty"`
	// Balance chooses among the endpoints; empty means BalanceLeastRequest.
	Balance Balance `json:"balance,omitempty"`
	// HealthCheck is the active check of static endpoints; nil means that
	// the source knows the health itself.
	HealthCheck *HealthCheck `json:"healthCheck,omitempty"`
	// ConnectTimeout bounds the connection to an endpoint; zero means the
	// node's default.
	ConnectTimeout time.Duration `json:"connectTimeoutNanos,omitempty"`
	// Routing says which request goes where, for services whose backend has
	// rules for requests; nil: to any of Endpoints.
	Routing *Routing `json:"routing,omitempty"`
}

// Port is one port of a service.
type Port struct {
	// Name tells the ports of a service apart; it may be empty for a service
	// with one port.
	Name string `json:"name,omitempty"`
	// Port is the number that clients dial; 0 stands for every number that
	// the service's other ports do not have, for backends whose services are
	// told apart by address alone.
	Port     uint16   `json:"port,omitempty"`
	Protocol Protocol `json:"protocol,omitempty"`
}

// Balance names a load balancing policy.
type Balance string

// The load balancing policies.
const (
	BalanceLeastRequest Balance = "least_request" // power of two choices
	BalanceRoundRobin   Balance = "round_robin"
	BalanceRandom       Balance = "random"
)

// HealthCheck is an active check of a service's endpoints.
type HealthCheck struct {
	// HTTPPath makes it an HTTP GET that must answer 2xx or 3xx; empty means
	// that a TCP connection suffices.
	HTTPPath string        `json:"httpPath,omitempty"`
	Interval time.Duration `json:"intervalNanos,omitempty"`
	Timeout  time.Duration `json:"timeoutNanos,omitempty"`
	// Healthy and Unhealthy are the consecutive results that change the
	// health.
	Healthy   int `json:"healthy,omitempty"`
	Unhealthy int `json:"unhealthy,omitempty"`
}

// Health of an endpoint as its source or the active checks see it.
type Health uint8

// The states of an endpoint's health. Unknown counts as healthy.
const (
	HealthUnknown Health = iota
	HealthHealthy
	HealthUnhealthy
	// HealthDraining endpoints keep their connections and get new ones only
	// when nothing else is left.
	HealthDraining
)

// Locality says where a node or an endpoint is.
type Locality struct {
	Region string `json:"region,omitempty"`
	Zone   string `json:"zone,omitempty"`
}

// Transport is how the mesh reaches an endpoint.
type Transport string

// The transports to an endpoint.
const (
	// TransportNone: the endpoint is outside the mesh; plain TCP.
	TransportNone Transport = "none"
	// TransportHBONE: HTTP/2 CONNECT over mutual TLS to the node proxy.
	TransportHBONE Transport = "hbone"
	// TransportMTLS: one mutual TLS connection per stream, as Consul
	// sidecars speak it.
	TransportMTLS Transport = "mtls"
)

// Endpoint is an address that serves a service.
type Endpoint struct {
	Address netip.Addr `json:"address,omitzero"`
	// Ports holds the endpoint's port for each of the service's ports, in
	// the same order. 0 means that the endpoint does not serve that port.
	Ports []uint16 `json:"ports,omitempty"`
	// Node is the name of the node that the endpoint runs on; empty when
	// unknown.
	Node string `json:"node,omitempty"`
	// Workload is the workload that serves the endpoint, as its node names
	// it; zero when unknown.
	Workload Name `json:"workload,omitzero"`
	// Transport and Tunnel say how other nodes reach it: Tunnel is the node
	// proxy's address for it.
	Transport Transport      `json:"transport,omitempty"`
	Tunnel    netip.AddrPort `json:"tunnel,omitzero"`
	// Identity is the one expected of the endpoint; zero only with
	// TransportNone.
	Identity spiffeid.ID `json:"identity,omitzero"`
	// Identities are accepted beside Identity (subject alternative names of
	// the service).
	Identities []spiffeid.ID `json:"identities,omitempty"`
	// SNI overrides the server name that the tunnel's handshake sends.
	SNI    string `json:"sni,omitempty"`
	Health Health `json:"health,omitempty"`
	Weight uint32 `json:"weight,omitempty"` // 0 means 1
	// Priority is the endpoint's place in the order of failover: one is
	// chosen while no usable endpoint has a lower number.
	Priority uint32   `json:"priority,omitempty"`
	Locality Locality `json:"locality,omitzero"`
}

// AddrPort returns the endpoint's address for the service's port at index i.
func (e *Endpoint) AddrPort(i int) netip.AddrPort {
	return netip.AddrPortFrom(e.Address, e.Ports[i])
}

// addressed reports whether the endpoint's own address, for the service's port
// at index i, is the application's. It is not where all that is known of the
// endpoint is the address of the proxy in front of it.
func (e *Endpoint) addressed(i int) bool { return e.Ports[i] != 0 && e.AddrPort(i) != e.Tunnel }

// Dialable reports whether a client that dials the endpoint's own address, for
// the service's port at index i, means the endpoint: loopback is another
// machine on each node, and the address of a proxy is no application's.
func (e *Endpoint) Dialable(i int) bool { return e.addressed(i) && !e.Address.IsLoopback() }

// PortIndex returns the index of the port that clients dial as number, or -1.
func (s *Service) PortIndex(number uint16) int {
	any := -1
	for i, p := range s.Ports {
		switch p.Port {
		case number:
			return i
		case 0:
			any = i
		}
	}
	return any
}
