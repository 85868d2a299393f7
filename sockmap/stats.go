// SPDX-License-Identifier: Apache-2.0

package sockmap

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"

	"github.com/meshproxy/meshproxy/bpf"
	"github.com/meshproxy/meshproxy/discovery/mesh"
)

// Reason says why the kernel refused a connection.
type Reason uint32

// The reasons.
const (
	ReasonProxyDown    = Reason(bpf.CaptureReasonREASON_PROXY_DOWN)
	ReasonNoListeners  = Reason(bpf.CaptureReasonREASON_NO_LISTENERS)
	ReasonUnknownPort  = Reason(bpf.CaptureReasonREASON_UNKNOWN_PORT)
	ReasonUnregistered = Reason(bpf.CaptureReasonREASON_UNREGISTERED)
	ReasonFlowsFull    = Reason(bpf.CaptureReasonREASON_FLOWS_FULL)
	ReasonNoMemory     = Reason(bpf.CaptureReasonREASON_NO_MEMORY)
	ReasonDevice       = Reason(bpf.CaptureReasonREASON_DEVICE)
	ReasonPortTaken    = Reason(bpf.CaptureReasonREASON_PORT_TAKEN)
	ReasonPlaintext    = Reason(bpf.CaptureReasonREASON_PLAINTEXT)
	ReasonLocal        = Reason(bpf.CaptureReasonREASON_LOCAL)
	ReasonPolicy       = Reason(bpf.CaptureReasonREASON_POLICY)
)

var reasons = map[Reason]string{
	ReasonProxyDown:    "proxy down",
	ReasonNoListeners:  "no listeners in the namespace",
	ReasonUnknownPort:  "service has no such port",
	ReasonUnregistered: "destination is not registered",
	ReasonFlowsFull:    "too many connections at once",
	ReasonNoMemory:     "out of memory",
	ReasonDevice:       "socket is bound to a device",
	ReasonPortTaken:    "port belongs to the proxy",
	ReasonPlaintext:    "plaintext",
	ReasonLocal:        "local process is no workload",
	ReasonPolicy:       "denied by policy",
}

func (r Reason) String() string {
	if s, ok := reasons[r]; ok {
		return s
	}
	return fmt.Sprintf("reason %d", uint32(r))
}

// Outcome says what became of a connection that the kernel let go on.
type Outcome uint32

// The outcomes.
const (
	OutcomeCaptured    = Outcome(bpf.CaptureOutcomeOUTCOME_CAPTURED)
	OutcomeDNS         = Outcome(bpf.CaptureOutcomeOUTCOME_DNS)
	OutcomeDirect      = Outcome(bpf.CaptureOutcomeOUTCOME_DIRECT)
	OutcomePassthrough = Outcome(bpf.CaptureOutcomeOUTCOME_PASSTHROUGH)
	OutcomeExcluded    = Outcome(bpf.CaptureOutcomeOUTCOME_EXCLUDED)
	OutcomeSteered     = Outcome(bpf.CaptureOutcomeOUTCOME_STEERED)
	OutcomeLocal       = Outcome(bpf.CaptureOutcomeOUTCOME_LOCAL)
)

var outcomes = map[Outcome]string{
	OutcomeCaptured:    "captured",
	OutcomeDNS:         "dns",
	OutcomeDirect:      "direct",
	OutcomePassthrough: "passthrough",
	OutcomeExcluded:    "excluded",
	OutcomeSteered:     "steered",
	OutcomeLocal:       "local",
}

func (o Outcome) String() string {
	if s, ok := outcomes[o]; ok {
		return s
	}
	return fmt.Sprintf("outcome %d", uint32(o))
}

// Stats are counters since the state was created; they survive restarts.
type Stats struct {
	Connections []ConnectionCount
	Refusals    []RefusalCount
	// FlowsFull counts captured connections that found no room in the flow
	// map; the proxy gets ErrNoFlow for them.
	FlowsFull uint64
	// EventsLost counts events that found no room in the ring buffer.
	EventsLost uint64
	// EnrollFailed counts new cgroups that found no room among the enrolled.
	EnrollFailed uint64
	// PortsFull counts ports that found no room among the protected.
	PortsFull uint64
	// DirectsFull counts connections between workloads of this node that
	// took the way of the proxy because there was no room to note them.
	DirectsFull uint64
	// Traffic is what went between workloads of this node without the proxy.
	Traffic []Traffic
	// Readers are the workloads whose connections are not spliced because of how
	// they read.
	Readers []Reader
	// FromApplications and FromProxy are what went over spliced hops.
	FromApplications, FromProxy HopTraffic
	// Splice says whether connections are spliced.
	Splice SpliceState
	// Flows are on record now: connections between connect and accept.
	Flows int
}

// ConnectionCount counts the connections of a workload, and its DNS queries.
type ConnectionCount struct {
	Workload mesh.Name
	// Service is zero for what did not lead to one.
	Service mesh.Name
	Outcome Outcome
	Count   uint64
}

// RefusalCount counts what a workload was refused, or at its ports. Workload
// is zero for processes that are no workload.
type RefusalCount struct {
	Workload mesh.Name
	Reason   Reason
	Count    uint64
}

// Stats reads the counters of all CPUs.
func (c *Capture) Stats() (Stats, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return Stats{}, ErrClosed
	}
	var s Stats
	maps := c.kernel.maps
	err := perCPU(maps[bpf.CaptureMapConnections], func(k bpf.CaptureConnectionKey, n uint64) {
		s.Connections = append(s.Connections, ConnectionCount{
			Workload: c.names.name(k.Workload), Service: c.names.name(k.Service),
			Outcome: Outcome(k.Outcome), Count: n,
		})
	})
	if err != nil {
		return Stats{}, err
	}
	err = perCPU(maps[bpf.CaptureMapRejections], func(k bpf.CaptureRejectionKey, n uint64) {
		s.Refusals = append(s.Refusals, RefusalCount{
			Workload: c.names.name(k.Workload), Reason: Reason(k.Reason), Count: n,
		})
	})
	if err != nil {
		return Stats{}, err
	}
	var cpus []bpf.CaptureCounters
	if err := maps[bpf.CaptureMapCounters].Lookup(uint32(0), &cpus); err != nil {
		return Stats{}, fmt.Errorf("read counters: %w", err)
	}
	for _, cpu := range cpus {
		s.FlowsFull += cpu.FlowsFull
		s.EventsLost += cpu.EventsLost
		s.EnrollFailed += cpu.EnrollFailed
		s.PortsFull += cpu.PortsFull
		s.DirectsFull += cpu.DirectsFull
	}
	if s.Readers, err = c.readers(); err != nil {
		return s, err
	}
	if s.Traffic, err = c.traffic(); err != nil {
		return Stats{}, err
	}
	if s.FromApplications, s.FromProxy, err = c.hopTraffic(); err != nil {
		return Stats{}, err
	}
	s.Splice = c.splicing
	flows, err := contents[bpf.CaptureFlowKey, bpf.CaptureFlow](maps[bpf.CaptureMapFlows])
	if err != nil {
		return Stats{}, err
	}
	s.Flows = len(flows)
	return s, nil
}

// perCPU calls fn with the sum over all CPUs of each entry.
func perCPU[K comparable](m *ebpf.Map, fn func(K, uint64)) error {
	sums := make(map[K]uint64)
	var (
		k    K
		cpus []uint64
		it   = m.Iterate()
	)
	for it.Next(&k, &cpus) {
		var sum uint64
		for _, n := range cpus {
			sum += n
		}
		sums[k] = sum
	}
	// Nobody deletes from these maps, so an iteration can't be disturbed.
	if err := it.Err(); err != nil && !errors.Is(err, ebpf.ErrIterationAborted) {
		return fmt.Errorf("read %s: %w", m, err)
	}
	for k, n := range sums {
		fn(k, n)
	}
	return nil
}
