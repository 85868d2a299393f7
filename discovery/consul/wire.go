// SPDX-License-Identifier: Apache-2.0

package consul

import "time"

// The agent's answers, as far as they matter here. The types of
// hashicorp/consul/api have several times as many fields, and decoding a
// thousand services is most of what a start costs; of a compiled chain they
// lack some that matter (AutoVirtualIPs, RequestTimeout, Peer).

// row is an element of /v1/health/connect/<service>.
type row struct {
	Node struct {
		Node            string
		Address         string
		Datacenter      string
		TaggedAddresses map[string]string
		Locality        *wireLocality
	}
	Service struct {
		Kind            string
		ID              string
		Service         string
		Address         string
		TaggedAddresses map[string]taggedAddress
		Meta            map[string]string
		Port            int
		Weights         struct{ Passing, Warning int }
		Proxy           struct {
			DestinationServiceID string
			LocalServicePort     int
		}
		Locality *wireLocality
	}
	Checks []struct{ Type, Status, Output string }
}

type wireLocality struct{ Region, Zone string }

type taggedAddress struct {
	Address string
	Port    int
}

// checkRow is an element of /v1/health/state/<state>.
type checkRow struct {
	Node        string
	CheckID     string
	ServiceName string
	Namespace   string
	ModifyIndex uint64
}

// The states of a check.
const (
	statusPassing  = "passing"
	statusWarning  = "warning"
	statusCritical = "critical"
)

// The kinds of a service.
const (
	kindTypical            = ""
	kindConnectProxy       = "connect-proxy"
	kindTerminatingGateway = "terminating-gateway"
)

// tagVirtual is the tagged address that holds a service's virtual IP; tagWAN
// is the address for other datacenters.
const (
	tagVirtual = "consul-virtual"
	tagWAN     = "wan"
)

// agentService is an element of /v1/agent/services.
type agentService struct {
	Kind      string
	ID        string
	Service   string
	Tags      []string
	Meta      map[string]string
	Port      int
	Ports     []any
	Address   string
	Weights   weights
	Proxy     *agentProxy
	Connect   *struct{ Native bool }
	Locality  *wireLocality
	Namespace string
	Partition string
	// Datacenter is the agent's.
	Datacenter string
}

type weights struct{ Passing, Warning int }

type agentProxy struct {
	DestinationServiceName string
	DestinationServiceID   string
	LocalServiceAddress    string
	LocalServicePort       int
	Mode                   string
	MeshGateway            gatewayMode
	Upstreams              []agentUpstream
}

type agentUpstream struct {
	DestinationType      string
	DestinationNamespace string
	DestinationPartition string
	DestinationPeer      string
	DestinationName      string
	Datacenter           string
	LocalBindAddress     string
	LocalBindPort        int
	LocalBindSocketPath  string
	MeshGateway          gatewayMode
}

// intention is what matters of one.
type intention struct {
	SourcePartition, SourceNS, SourceName, SourcePeer string
	SourceSamenessGroup                               string
	DestinationNS, DestinationName                    string
	Action                                            string
	// Conditional: whether it allows depends on requests.
	Conditional bool `json:"-"`
	Precedence  int
}

// wireIntention is an element of /v1/connect/intentions/match. api.Intention
// lacks JWT, and would make an intention that wants a token allow everybody.
type wireIntention struct {
	intention
	Permissions []struct{}
	JWT         *struct{}
}

// wildcard is the name that stands for every service.
const wildcard = "*"

// chain is a compiled discovery chain.
type chain struct {
	ServiceName, Namespace, Partition, Datacenter string
	Protocol                                      string
	StartNode                                     string
	Nodes                                         map[string]*chainNode
	Targets                                       map[string]*chainTarget
	AutoVirtualIPs, ManualVirtualIPs              []string
}

// The types of a chain's nodes.
const (
	nodeRouter   = "router"
	nodeSplitter = "splitter"
	nodeResolver = "resolver"
)

type chainNode struct {
	Type, Name   string
	Routes       []chainRoute
	Splits       []chainSplit
	Resolver     *chainResolver
	LoadBalancer *loadBalancer
}

type chainRoute struct {
	Definition routeDefinition
	NextNode   string
}

type routeDefinition struct {
	Match       *struct{ HTTP *httpMatch }
	Destination *routeDestination
}

type httpMatch struct {
	PathExact, PathPrefix, PathRegex string
	CaseInsensitive                  bool
	Header, QueryParam               []fieldMatch
	Methods                          []string
}

type fieldMatch struct {
	Name                                   string
	Present                                bool
	Exact, Prefix, Suffix, Contains, Regex string
	Invert, IgnoreCase                     bool
}

type routeDestination struct {
	PrefixRewrite                   string
	RequestTimeout, IdleTimeout     wireDuration
	NumRetries                      uint32
	RetryOnConnectFailure           bool
	RetryOn                         []string
	RetryOnStatusCodes              []uint32
	RequestHeaders, ResponseHeaders *headerEdit
}

type headerEdit struct {
	Add, Set map[string]string
	Remove   []string
}

type chainSplit struct {
	Definition *struct{ RequestHeaders, ResponseHeaders *headerEdit }
	Weight     float64
	NextNode   string
}

type chainResolver struct {
	ConnectTimeout wireDuration
	RequestTimeout wireDuration
	Target         string
	Failover       *struct{ Targets []string }
}

type loadBalancer struct {
	Policy       string
	HashPolicies []hashPolicy
}

type hashPolicy struct {
	Field, FieldValue string
	SourceIP          bool
	Terminal          bool
	CookieConfig      *struct {
		Session bool
		TTL     wireDuration
		Path    string
	}
}

type chainTarget struct {
	ID, Service, ServiceSubset             string
	Namespace, Partition, Datacenter, Peer string
	MeshGateway                            gatewayMode
	External                               bool
	Subset                                 struct {
		Filter      string
		OnlyPassing bool
	}
	SNI, Name string
}

// wireDuration is written as text in some places and as nanoseconds in others.
type wireDuration time.Duration

// configEntry is an element of /v1/config/<kind>, whatever the kind.
type configEntry struct {
	Kind, Name, Namespace string
	ModifyIndex           uint64
	Protocol              string
	MutualTLSMode         string
	TransparentProxy      struct{ MeshDestinationsOnly bool }
	MeshGateway           gatewayMode
	UpstreamConfig        *struct {
		Defaults  *upstreamConfig
		Overrides []upstreamConfig
	}
	Config map[string]any
}

// agentSelf is /v1/agent/self.
type agentSelf struct {
	Config struct {
		Datacenter, NodeName, Partition string
	}
	DebugConfig struct {
		DefaultIntentionPolicy string
		DNSDomain              string
		AdvertiseAddrLAN       string
	}
	Member struct{ Addr string }
}

// caRoots is /v1/agent/connect/ca/roots.
type caRoots struct{ TrustDomain string }
