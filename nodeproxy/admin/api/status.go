// SPDX-License-Identifier: Apache-2.0

package api

import (
	"time"

	"github.com/meshproxy/meshproxy/nodeproxy/telemetry/reason"
)

// State is the node's own state.
type State string

// The states of a node.
const (
	StateStarting State = "starting" // capture is not in force yet
	StateReady    State = "ready"
	StateDegraded State = "degraded" // serves, with something missing; see Problems
	StateDraining State = "draining"
)

// Status is how the node is doing.
type Status struct {
	Node        string    `json:"node"`
	Address     string    `json:"address,omitempty"`
	TrustDomain string    `json:"trustDomain"`
	Version     string    `json:"version"`
	PID         int       `json:"pid"`
	Started     time.Time `json:"started"`
	State       State     `json:"state"`
	// Problems are sentences; none means that all is well.
	Problems  []string      `json:"problems,omitempty"`
	Config    ConfigStatus  `json:"config"`
	Snapshot  Snapshot      `json:"snapshot"`
	Sources   []Source      `json:"sources"`
	Capture   Capture       `json:"capture"`
	Identity  Identity      `json:"identity"`
	Listeners []Listener    `json:"listeners"`
	Traffic   Traffic       `json:"traffic"`
	Refusals  []Refusal     `json:"refusals,omitempty"`
	Loops     []Loop        `json:"loops,omitempty"`
	Peers     []Peer        `json:"peers,omitempty"`
	Workloads WorkloadCount `json:"workloads"`
	Upgrades  Upgrades      `json:"upgrades"`
}

// Upgrades says how this process came to serve.
type Upgrades struct {
	// Generation counts the processes that have handed over to one another,
	// from 1.
	Generation int `json:"generation"`
	// At is when this one took over; none for the first.
	At time.Time `json:"at,omitzero"`
	// Predecessor still drains.
	Predecessor *Predecessor `json:"predecessor,omitempty"`
	// LastError is why the latest upgrade changed nothing.
	LastError string `json:"lastError,omitempty"`
	Failed    int    `json:"failed,omitempty"`
}

// Predecessor is the process that handed over to this one.
type Predecessor struct {
	PID         int    `json:"pid"`
	Version     string `json:"version"`
	Connections int    `json:"connections"`
}

// ConfigStatus says which configuration is in force.
type ConfigStatus struct {
	File     string    `json:"file"`
	LoadedAt time.Time `json:"loadedAt"`
	// LastError is why the latest reload changed nothing; empty when it did.
	LastError string `json:"lastError,omitempty"`
	// RestartNeeded are keys that were changed in the file and take effect
	// only after a restart.
	RestartNeeded []string `json:"restartNeeded,omitempty"`
}

// Snapshot is the state of discovery.
type Snapshot struct {
	Version   uint64    `json:"version"`
	Built     time.Time `json:"built,omitzero"`
	Services  int       `json:"services"`
	Endpoints int       `json:"endpoints"`
	Policies  int       `json:"policies"`
}

// Source is the state of a source.
type Source struct {
	Name     string    `json:"name"`
	Ready    bool      `json:"ready"`
	Stale    bool      `json:"stale,omitempty"`
	Since    time.Time `json:"since,omitzero"`
	Error    string    `json:"error,omitempty"`
	Warnings []string  `json:"warnings,omitempty"`
}

// Capture is the state of what runs in the kernel.
type Capture struct {
	Attached    bool   `json:"attached"`
	CgroupRoot  string `json:"cgroupRoot"`
	Pins        string `json:"pins"`
	Captured    uint64 `json:"captured"`
	Passthrough uint64 `json:"passthrough"`
	Refused     uint64 `json:"refused"`
	Flows       int    `json:"flows"`
	// Local are connections between workloads of this node that went without
	// the proxy.
	Local  uint64 `json:"local,omitempty"`
	Splice Splice `json:"splice"`
	// Error is why the figures could not be read.
	Error string `json:"error,omitempty"`
}

// Splice is the state of the in-kernel path between workloads of this node, and
// what went without the proxy, spliced or not.
type Splice struct {
	On     bool `json:"on"`
	Paused bool `json:"paused,omitempty"`
	// Reason is why it is not on.
	Reason string `json:"reason,omitempty"`
	// Test is what the self-test at start took, and what a receiver that does
	// not read let its sender send, by family.
	Test     time.Duration  `json:"testNanos,omitempty"`
	Accepted map[string]int `json:"acceptedBytes,omitempty"`
	Opened   uint64         `json:"opened"`
	Active   uint64         `json:"active"`
	Spliced  uint64         `json:"spliced"`
	Sent     uint64         `json:"sentBytes"`
	Received uint64         `json:"receivedBytes"`
	// Redirected is how much of both did not go by TCP.
	Redirected uint64 `json:"redirectedBytes"`
	// Fallbacks counts how often an end of a connection began to send by TCP,
	// by reason.
	Fallbacks map[string]uint64 `json:"fallbacks,omitempty"`
	// Unfit are workloads that nothing is spliced for because of how they read.
	Unfit []UnfitReader `json:"unfit,omitempty"`
	// Blind is why it can't be seen who reads with splice(2), where it can't.
	Blind string      `json:"blind,omitempty"`
	Hops  SplicedHops `json:"hops"`
}

// UnfitReader is a workload that was seen reading in a way that splicing doesn't
// go with: as a client of the service, or, without one, on any connection.
type UnfitReader struct {
	Workload string `json:"workload"`
	Service  string `json:"service,omitempty"`
	Reason   string `json:"reason"`
}

// SplicedHops is the same of connections between applications and the proxy.
type SplicedHops struct {
	On     bool   `json:"on"`
	Reason string `json:"reason,omitempty"`
	// Spliced are connections that began so, Left those of them that are ordinary
	// TCP since.
	Spliced uint64 `json:"spliced"`
	Left    uint64 `json:"left"`
	// Redirected is how much of what applications and the proxy sent did not go
	// by TCP.
	FromApplications uint64            `json:"fromApplicationsBytes"`
	FromProxy        uint64            `json:"fromProxyBytes"`
	Fallbacks        map[string]uint64 `json:"fallbacks,omitempty"`
}

// Identity is the state of the identity provider.
type Identity struct {
	Provider string `json:"provider"`
	// Leaves is how many workloads have one, Missing are those that don't.
	Leaves  int      `json:"leaves"`
	Missing []string `json:"missing,omitempty"`
	// NextExpiry is when the first of the leaves in use expires.
	NextExpiry time.Time `json:"nextExpiry,omitzero"`
	Error      string    `json:"error,omitempty"`
}

// Listener is a socket that the node listens on.
type Listener struct {
	Name    string `json:"name"`
	Address string `json:"address"`
	// NetNS is empty in the node's own network namespace.
	NetNS string `json:"netns,omitempty"`
}

// Traffic is what the node carried since it started.
type Traffic struct {
	Active   uint64 `json:"active"`
	Opened   uint64 `json:"opened"`
	Sent     uint64 `json:"sentBytes"`
	Received uint64 `json:"receivedBytes"`
}

// Refusal is how often connections were refused for a reason.
type Refusal struct {
	Direction string        `json:"direction"`
	Reason    reason.Reason `json:"reason"`
	Count     uint64        `json:"count"`
}

// Loop is the state of an event loop.
type Loop struct {
	Loop        int           `json:"loop"`
	Descriptors int           `json:"descriptors"`
	Turns       uint64        `json:"turns"`
	Lag         time.Duration `json:"lagNanoseconds"`
}

// Peer is a node that there are tunnels to or from.
type Peer struct {
	Address     string `json:"address"`
	Transport   string `json:"transport"`
	Role        string `json:"role"` // of this node: client or server
	Connections int    `json:"connections"`
	Streams     int    `json:"streams"`
}

// WorkloadCount is how many workloads there are.
type WorkloadCount struct {
	Configured int `json:"configured"`
	Running    int `json:"running"` // with processes
	Bypassed   int `json:"bypassed"`
}
