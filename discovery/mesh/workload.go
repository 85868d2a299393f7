// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"net/netip"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Workload is a set of processes of this node that share an identity.
type Workload struct {
	Name
	Source   string      `json:"source,omitempty"`
	Identity spiffeid.ID `json:"identity,omitzero"`
	// Selectors say which processes belong to it; any of them suffices.
	Selectors []Selector `json:"selectors,omitempty"`
	// NetNS is the path of the workload's network namespace, or empty: the
	// namespace is found from the workload's processes and is usually the
	// node's own.
	NetNS string `json:"netns,omitempty"`
	// Upstreams are explicit local addresses that stand for a service, for
	// this workload only.
	Upstreams []Upstream  `json:"upstreams,omitempty"`
	Exclude   Exclusions  `json:"exclude,omitzero"`
	Inbound   InboundMode `json:"inbound,omitempty"`
	// InboundLocal says whether processes of this node that are no workload
	// may connect to the workload's ports.
	InboundLocal Allowance     `json:"inboundLocal,omitempty"`
	Egress       EgressMode    `json:"egress,omitempty"`
	OnProxyDown  ProxyDownMode `json:"onProxyDown,omitempty"`
	// MaxConnections bounds the workload's proxied connections, inbound and
	// outbound together; 0 means the node's default.
	MaxConnections int `json:"maxConnections,omitempty"`
	// MTLSPort is the port on which the node takes mutual TLS connections for
	// this workload alone, from clients that send no server name; 0 means none.
	MTLSPort uint16 `json:"mtlsPort,omitempty"`
	// Splice says whether its connections to other workloads of the node may
	// be spliced in the kernel; empty means SpliceOn.
	Splice SpliceMode `json:"splice,omitempty"`
	// Bypass takes the workload out of the mesh: nothing is captured.
	Bypass bool `json:"bypass,omitempty"`
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
	Kind  SelectorKind `json:"kind,omitempty"`
	Value string       `json:"value,omitempty"`
}

// Upstream is an explicit local address that stands for a service.
type Upstream struct {
	Listen  netip.AddrPort `json:"listen,omitzero"`
	Service Name           `json:"service,omitzero"`
	// Port is the service's port; 0 means its only or first one.
	Port uint16 `json:"port,omitempty"`
}

// Exclusions are not captured; they go on as if there were no mesh.
type Exclusions struct {
	OutboundPorts []uint16       `json:"outboundPorts,omitempty"`
	OutboundCIDRs []netip.Prefix `json:"outboundCIDRs,omitempty"`
	InboundPorts  []uint16       `json:"inboundPorts,omitempty"`
	InboundCIDRs  []netip.Prefix `json:"inboundCIDRs,omitempty"`
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

// SpliceMode says whether a workload's connections may be spliced.
type SpliceMode string

// The splice modes.
const (
	SpliceOn SpliceMode = "on"
	// SpliceOff is for applications that receive by splice(2), which finds
	// nothing on a spliced socket.
	SpliceOff SpliceMode = "off"
)

// ProxyDownMode says what happens to connections that need the proxy while it
// is away.
type ProxyDownMode string

// The modes for an absent proxy.
const (
	ProxyDownRefuse ProxyDownMode = "refuse"
	ProxyDownDirect ProxyDownMode = "direct"
)
