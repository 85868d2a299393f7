package mesh

import (
	"net/netip"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Workload is a set of processes of this node that share an identity.
type Workload struct {
	Name
	Source   string
	Identity spiffeid.ID
	// Selectors say which processes belong to it; any of them suffices.
	Selectors []Selector
	// NetNS is the path of the workload's network namespace, or empty: the
	// namespace is found from the workload's processes and is usually the
	// node's own.
	NetNS string
	// Upstreams are explicit local addresses that stand for a service, for
	// this workload only.
	Upstreams []Upstream
	Exclude   Exclusions
	Inbound   InboundMode
	// InboundLocal says whether processes of this node that are no workload
	// may connect to the workload's ports.
	InboundLocal Allowance
	Egress       EgressMode
	OnProxyDown  ProxyDownMode
	// MaxConnections bounds the workload's proxied connections, inbound and
	// outbound together; 0 means the node's default.
	MaxConnections int
	// Bypass takes the workload out of the mesh: nothing is captured.
	Bypass bool
}

// SelectorKind says what a Selector matches.
type SelectorKind uint8

// The kinds of selectors.
const (
	// SelectCgroup matches one cgroup and everything below it; the value is
	// its path within the hierarchy ("/system.slice/web.service"). A systemd
	// unit becomes such a path.
	SelectCgroup SelectorKind = iota + 1
	// SelectCgroupPrefix matches every cgroup whose path begins with the
	// value ("/system.slice/system-web.slice/web@").
	SelectCgroupPrefix
	// SelectUnit matches the cgroup of a systemd unit wherever it lies: the
	// last segment of the path is the value ("web.service"); with a "*" at
	// the end of the template instance ("web@*.service") any instance.
	SelectUnit
	// SelectUser matches the processes of a user; the value is the decimal
	// uid.
	SelectUser
)

// Selector matches processes.
type Selector struct {
	Kind  SelectorKind
	Value string
}

// Upstream is an explicit local address that stands for a service.
type Upstream struct {
	Listen  netip.AddrPort
	Service Name
	// Port is the service's port; 0 means its only or first one.
	Port uint16
}

// Exclusions are not captured; they go on as if there were no mesh.
type Exclusions struct {
	OutboundPorts []uint16
	OutboundCIDRs []netip.Prefix
	InboundPorts  []uint16
	InboundCIDRs  []netip.Prefix
}

// InboundMode says what may connect to a workload.
type InboundMode string

// The inbound modes.
const (
	InboundStrict     InboundMode = "strict"     // mTLS only
	InboundPermissive InboundMode = "permissive" // also plaintext, under policy
	InboundOff        InboundMode = "off"        // not captured
)

// Allowance is allow or deny.
type Allowance string

// The allowances.
const (
	Allow Allowance = "allow"
	Deny  Allowance = "deny"
)

// EgressMode says what happens to destinations that the mesh does not know.
type EgressMode string

// The egress modes.
const (
	EgressPassthrough    EgressMode = "passthrough"
	EgressRegisteredOnly EgressMode = "registered-only"
)

// ProxyDownMode says what happens to connections that need the proxy while it
// is away.
type ProxyDownMode string

// The modes for an absent proxy.
const (
	ProxyDownRefuse ProxyDownMode = "refuse"
	ProxyDownDirect ProxyDownMode = "direct"
)
