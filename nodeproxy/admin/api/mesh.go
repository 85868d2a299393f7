// SPDX-License-Identifier: Apache-2.0

package api

import "time"

// Service is a service as the node knows it. Names are "name" in the default
// namespace, else "namespace/name".
type Service struct {
	Name       string     `json:"name"`
	Source     string     `json:"source"`
	Hostnames  []string   `json:"hostnames,omitempty"`
	VirtualIPs []string   `json:"virtualIPs,omitempty"`
	Ports      []Port     `json:"ports"`
	Balance    string     `json:"balance"`
	Endpoints  []Endpoint `json:"endpoints"`
}

// Port is a port of a service.
type Port struct {
	Name     string `json:"name,omitempty"`
	Port     uint16 `json:"port"`
	Protocol string `json:"protocol"`
}

// The health of an endpoint.
const (
	HealthUnknown   = "unknown"
	HealthHealthy   = "healthy"
	HealthUnhealthy = "unhealthy"
	HealthDraining  = "draining"
	HealthEjected   = "ejected" // after connect failures, for a while
)

// Endpoint is an endpoint of a service.
type Endpoint struct {
	Address   string   `json:"address"`
	Ports     []uint16 `json:"ports"`
	Node      string   `json:"node,omitempty"`
	Local     bool     `json:"local,omitempty"` // on this node
	Workload  string   `json:"workload,omitempty"`
	Identity  string   `json:"identity,omitempty"`
	Transport string   `json:"transport"`
	Tunnel    string   `json:"tunnel,omitempty"`
	Zone      string   `json:"zone,omitempty"`
	Weight    uint32   `json:"weight"`
	Health    string   `json:"health"`
	// HealthDetail is what the last check or failure said.
	HealthDetail string `json:"healthDetail,omitempty"`
	Active       int    `json:"active"` // connections from this node
}

// Workload is a workload of this node.
type Workload struct {
	Name     string `json:"name"`
	Source   string `json:"source"`
	Identity string `json:"identity"`
	// Match are its selectors, as "unit web.service".
	Match []string `json:"match"`
	// Cgroups are the ones found; none means that it doesn't run.
	Cgroups        []string   `json:"cgroups,omitempty"`
	NetNS          string     `json:"netns,omitempty"`
	Inbound        string     `json:"inbound"`
	InboundLocal   string     `json:"inboundLocal"`
	Egress         string     `json:"egress"`
	OnProxyDown    string     `json:"onProxyDown"`
	Bypass         bool       `json:"bypass,omitempty"`
	BypassCause    string     `json:"bypassCause,omitempty"` // "configuration" or "command"
	Upstreams      []Upstream `json:"upstreams,omitempty"`
	Ports          []uint16   `json:"ports,omitempty"` // it listens on them, and they are protected
	LeafExpires    time.Time  `json:"leafExpires,omitzero"`
	LeafError      string     `json:"leafError,omitempty"`
	Active         int        `json:"active"` // connections
	MaxConnections int        `json:"maxConnections"`
	Refused        uint64     `json:"refused"`
}

// Upstream is an explicit upstream of a workload.
type Upstream struct {
	Listen  string `json:"listen"`
	Service string `json:"service"`
	Port    uint16 `json:"port,omitempty"`
}

// PolicyQuery asks whether a connection would be allowed.
type PolicyQuery struct {
	// From is a workload's name, a SPIFFE ID, or an address (plaintext).
	From string `json:"from"`
	// To is a service's or a workload's name, or "workload:name" where both
	// exist.
	To   string `json:"to"`
	Port uint16 `json:"port,omitempty"` // 0: the only or first one
}

// PolicyExplanation is a decision and the way to it.
type PolicyExplanation struct {
	Query   PolicyQuery `json:"query"`
	Allowed bool        `json:"allowed"`
	// Policy is the one that decided; empty means the default.
	Policy string `json:"policy,omitempty"`
	// Audited: it is allowed only because policies are audited.
	Audited bool `json:"audited,omitempty"`
	// Identity, Workload, Services and Port are what the query was resolved
	// to; Port is the workload's, not the service's.
	Identity string       `json:"identity,omitempty"`
	Workload string       `json:"workload,omitempty"`
	Services []string     `json:"services,omitempty"`
	Port     uint16       `json:"port"`
	Steps    []PolicyStep `json:"steps"`
	// Conclusion is a sentence.
	Conclusion string `json:"conclusion"`
	// Note says what the explanation rests on, such as that the destination
	// is on another node, whose policies decide.
	Note string `json:"note,omitempty"`
}

// PolicyStep is one policy, considered.
type PolicyStep struct {
	Policy string `json:"policy"`
	Action string `json:"action"`
	Audit  bool   `json:"audit,omitempty"`
	// Precedence is the rank of a policy in an ordered list, such as Consul's
	// intentions.
	Precedence int    `json:"precedence,omitempty"`
	Outcome    string `json:"outcome"`
	Why        string `json:"why"`
}
