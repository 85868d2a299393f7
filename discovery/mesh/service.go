package mesh

import (
	"net/netip"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Name identifies a service or a workload within a mesh. Sources that have no
// namespaces use DefaultNamespace.
type Name struct {
	Namespace string
	Name      string
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
	Source string
	Ports  []Port
	// VirtualIPs are the addresses that stand for the service: at most one
	// IPv4 and one IPv6 address, stable over restarts.
	VirtualIPs []netip.Addr
	// Hostnames are additional DNS names, fully qualified without the
	// trailing dot, in lower case.
	Hostnames []string
	// Endpoints serve every port of the service. Sorted by address, then
	// port.
	Endpoints []*Endpoint
	// Balance chooses among the endpoints; empty means BalanceLeastRequest.
	Balance Balance
	// HealthCheck is the active check of static endpoints; nil means that
	// the source knows the health itself.
	HealthCheck *HealthCheck
	// ConnectTimeout bounds the connection to an endpoint; zero means the
	// node's default.
	ConnectTimeout time.Duration
}

// Port is one port of a service.
type Port struct {
	// Name tells the ports of a service apart; it may be empty for a service
	// with one port.
	Name string
	// Port is the number that clients dial.
	Port     uint16
	Protocol Protocol
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
	HTTPPath string
	Interval time.Duration
	Timeout  time.Duration
	// Healthy and Unhealthy are the consecutive results that change the
	// health.
	Healthy, Unhealthy int
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
	Region, Zone string
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
	Address netip.Addr
	// Ports holds the endpoint's port for each of the service's ports, in
	// the same order.
	Ports []uint16
	// Node is the name of the node that the endpoint runs on; empty when
	// unknown.
	Node string
	// Workload is the workload that serves the endpoint, as its node names
	// it; zero when unknown.
	Workload Name
	// Transport and Tunnel say how other nodes reach it: Tunnel is the node
	// proxy's address for it.
	Transport Transport
	Tunnel    netip.AddrPort
	// Identity is the one expected of the endpoint; zero only with
	// TransportNone.
	Identity spiffeid.ID
	// Identities are accepted beside Identity (subject alternative names of
	// the service).
	Identities []spiffeid.ID
	// SNI overrides the server name that the tunnel's handshake sends.
	SNI      string
	Health   Health
	Weight   uint32 // 0 means 1
	Locality Locality
}

// AddrPort returns the endpoint's address for the service's port at index i.
func (e *Endpoint) AddrPort(i int) netip.AddrPort {
	return netip.AddrPortFrom(e.Address, e.Ports[i])
}

// PortIndex returns the index of the port that clients dial as number, or -1.
func (s *Service) PortIndex(number uint16) int {
	for i, p := range s.Ports {
		if p.Port == number {
			return i
		}
	}
	return -1
}
