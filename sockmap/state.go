// SPDX-License-Identifier: Apache-2.0

package sockmap

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/meshproxy/meshproxy/bpf"
	"github.com/meshproxy/meshproxy/discovery/mesh"
)

// State is all that the kernel has to know of the mesh. The zero State is a
// node without workloads.
type State struct {
	Workloads    []Workload
	Destinations []Destination
	// Accesses say who may connect to the Locals of the destinations; a pair
	// that is not there is Ask.
	Accesses []Access
	// OwnPorts are TCP ports that nobody but the proxy may bind, beside those
	// of Options.
	OwnPorts []uint16
}

// Workload is a workload of this node as the kernel sees it.
type Workload struct {
	Name      mesh.Name
	Selectors []mesh.Selector
	Exclude   mesh.Exclusions
	// Inbound, InboundLocal, Egress and OnProxyDown mean strict, allow,
	// passthrough and refuse when empty.
	Inbound      mesh.InboundMode
	InboundLocal mesh.Allowance
	Egress       mesh.EgressMode
	OnProxyDown  mesh.ProxyDownMode
	Bypass       bool
	// Unspliced keeps its connections to other workloads of the node TCP.
	Unspliced bool
	// InboundPorts are protected in addition to those that the workload
	// listens on.
	InboundPorts []uint16
	// NetNS is the cookie of the namespace of InboundPorts, as AttachNetNS
	// returned it; 0 means the namespace of the calling process.
	NetNS uint64
}

// Destination is an address that leads into the mesh.
type Destination struct {
	// Workload makes it an explicit upstream of that workload; the zero Name
	// stands for every workload.
	Workload mesh.Name
	// Addr is an address and port; a port of 0 marks a virtual IP, whose
	// ports without a Destination are refused, unless AnyPort is set.
	Addr    netip.AddrPort
	Service mesh.Name
	// AnyPort makes a virtual IP's row stand for every port that has none of
	// its own.
	AnyPort bool
	// Direct is where connections of workloads with onProxyDown: direct go
	// while the proxy is away; the zero value means that they are refused.
	Direct netip.AddrPort
	// Locals are those endpoints that workloads may be led to without the
	// proxy; no more than MaxLocals of them are used.
	Locals []Local
	// OnlyLocal says that there are no other endpoints: a workload that is
	// denied all of them is refused without asking the proxy.
	OnlyLocal bool
}

// MaxLocals is how many endpoints of this node one destination can have.
const MaxLocals = len(bpf.CaptureLocals{}.At)

// Local is an endpoint that is a workload of this node.
type Local struct {
	Addr     netip.AddrPort
	Workload mesh.Name
	// NetNS is the cookie of the namespace where it listens; 0 means the
	// namespace of the calling process.
	NetNS uint64
}

// Access is what policy says of a workload and an endpoint of this node.
type Access struct {
	Source  mesh.Name
	Local   Local
	Verdict Verdict
}

// Verdict is the part of policy that the kernel decides by itself.
type Verdict uint32

// The verdicts.
const (
	// Ask leaves the decision to the proxy.
	Ask = Verdict(bpf.CaptureAccessACCESS_PROXY)
	// Allow lets the workload connect to the endpoint itself.
	Allow = Verdict(bpf.CaptureAccessACCESS_DIRECT)
	// Deny refuses it with ECONNREFUSED, as everything that is refused in
	// the kernel: applications take it for a service that is not there and
	// try again, where EPERM or EACCES would be taken for a broken setup.
	Deny = Verdict(bpf.CaptureAccessACCESS_DENY)
)

// WorkloadOf returns w as the kernel sees it. InboundPorts and NetNS are left
// to the caller, who knows the endpoints and the namespaces.
func WorkloadOf(w *mesh.Workload) Workload {
	return Workload{
		Name:         w.Name,
		Selectors:    w.Selectors,
		Exclude:      w.Exclude,
		Inbound:      w.Inbound,
		InboundLocal: w.InboundLocal,
		Egress:       w.Egress,
		OnProxyDown:  w.OnProxyDown,
		Bypass:       w.Bypass,
		Unspliced:    w.Splice == mesh.SpliceOff,
	}
}

// maxPath is what a rule can hold beside the NUL that ends an exact path.
const maxPath = 255

func (s *State) validate() error {
	names := make(map[mesh.Name]bool, len(s.Workloads))
	for i := range s.Workloads {
		w := &s.Workloads[i]
		if names[w.Name] {
			return fmt.Errorf("workload %s: given twice", w.Name)
		}
		names[w.Name] = true
		for _, sel := range w.Selectors {
			if err := validateSelector(sel); err != nil {
				return fmt.Errorf("workload %s: %w", w.Name, err)
			}
		}
	}
	for i := range s.Destinations {
		d := &s.Destinations[i]
		if !d.Addr.Addr().IsValid() {
			return fmt.Errorf("destination of service %s: no address", d.Service)
		}
		if d.Workload != (mesh.Name{}) && !names[d.Workload] {
			return fmt.Errorf("destination %s: unknown workload %s", d.Addr, d.Workload)
		}
		for _, l := range d.Locals {
			if !names[l.Workload] {
				return fmt.Errorf("destination %s: unknown workload %s", d.Addr, l.Workload)
			}
		}
	}
	for i := range s.Accesses {
		a := &s.Accesses[i]
		if !names[a.Source] || !names[a.Local.Workload] {
			return fmt.Errorf("access of %s to %s: unknown workload", a.Source, a.Local.Workload)
		}
	}
	return nil
}

func validateSelector(s mesh.Selector) error {
	switch s.Kind {
	case mesh.SelectCgroup, mesh.SelectCgroupPrefix:
		if !strings.HasPrefix(s.Value, "/") {
			return fmt.Errorf("cgroup %q: want a path from the root of the hierarchy", s.Value)
		}
		if len(s.Value) > maxPath {
			return fmt.Errorf("cgroup %q: longer than %d bytes", s.Value, maxPath)
		}
	case mesh.SelectUnit:
		if s.Value == "" || strings.Contains(s.Value, "/") || len(s.Value) > maxPath {
			return fmt.Errorf("unit %q: want the name of a unit", s.Value)
		}
		if before, after, ok := strings.Cut(s.Value, "*"); ok &&
			(!strings.HasSuffix(before, "@") || !strings.HasPrefix(after, ".") || strings.Contains(after, "*")) {
			return fmt.Errorf("unit %q: an asterisk can only stand for the whole instance, as in name@*.service", s.Value)
		}
	case mesh.SelectUser:
		if _, err := strconv.ParseUint(s.Value, 10, 32); err != nil {
			return fmt.Errorf("user %q: want a uid", s.Value)
		}
	default:
		return fmt.Errorf("selector kind %d: unknown", s.Kind)
	}
	return nil
}
