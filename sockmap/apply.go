// SPDX-License-Identifier: Apache-2.0

package sockmap

import (
	"fmt"
	"net/netip"

	"github.com/meshproxy/meshproxy/bpf"
	"github.com/meshproxy/meshproxy/discovery/mesh"
)

// plan is a State in the kernel's terms.
type plan struct {
	rules        *rules
	ids          map[uint32]bool
	workloads    map[uint32]bpf.CaptureWorkload
	destinations map[bpf.CaptureDestinationKey]bpf.CaptureDestination
	locals       map[bpf.CaptureDestinationKey]bpf.CaptureLocals
	accesses     map[bpf.CaptureAccessKey]bpf.CaptureAccess
	ports        map[bpf.CapturePortExclusion]uint8
	cidrs        map[bpf.CaptureCidrExclusion]uint8
	declared     map[bpf.CapturePortKey]uint32
	ownPorts     map[uint16]uint8
}

// Apply brings the kernel into line with s. What s shares with the state
// before stays in force all the while; a failed Apply leaves a mixture of both,
// which the next one puts right. It is not for concurrent use with itself, but
// serialised inside.
func (c *Capture) Apply(s State) error {
	if err := s.validate(); err != nil {
		return fmt.Errorf("check state: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.usable(); err != nil {
		return err
	}
	replaces := c.replaces()
	if err := c.write(&s); err != nil || !replaces {
		return err
	}
	// What replaces state of another layout is complete now.
	if err := c.install(); err != nil {
		return err
	}
	return c.dropOthers()
}

// usable says whether this process still owns the state, with mu held.
func (c *Capture) usable() error {
	switch {
	case c.closed:
		return ErrClosed
	case c.yielded:
		return ErrYielded
	}
	return nil
}

// write brings the maps into line with s.
func (c *Capture) write(s *State) error {
	p, err := c.plan(s)
	if err != nil {
		return err
	}
	if err := c.add(p); err != nil {
		return err
	}
	if err := c.selectWorkloads(p.rules); err != nil {
		return err
	}
	if err := c.cgroups.scan(p.rules); err != nil {
		return err
	}
	c.rules = p.rules
	if err := c.reconcilePorts(p.declared); err != nil {
		return err
	}
	return c.prune(p)
}

// add goes from what is referred to, to what refers to it.
func (c *Capture) add(p *plan) error {
	if err := c.ownPorts.put(p.ownPorts); err != nil {
		return err
	}
	if err := c.portExclusions.put(p.ports); err != nil {
		return err
	}
	if err := c.cidrExclusions.put(p.cidrs); err != nil {
		return err
	}
	// What policy takes away it takes away first.
	if err := c.accesses.put(p.accesses); err != nil {
		return err
	}
	if err := c.locals.put(p.locals); err != nil {
		return err
	}
	if err := c.destinations.put(p.destinations); err != nil {
		return err
	}
	switched := c.switched(p.workloads)
	if err := c.workloads.put(p.workloads); err != nil {
		return err
	}
	if switched {
		c.node.SpliceGeneration++
	}
	return nil
}

// selectWorkloads puts the rules in force for processes and cgroups to come.
func (c *Capture) selectWorkloads(r *rules) error {
	paths, units := r.pathTable(), r.unitTable()
	if err := c.paths.put(paths); err != nil {
		return err
	}
	if err := c.paths.prune(paths); err != nil {
		return err
	}
	if err := c.units.put(units); err != nil {
		return err
	}
	if err := c.units.prune(units); err != nil {
		return err
	}
	if len(r.users) > 0 {
		c.node.HasUsers = 1
	}
	if err := c.users.put(r.users); err != nil {
		return err
	}
	if err := c.users.prune(r.users); err != nil {
		return err
	}
	if len(r.users) == 0 {
		c.node.HasUsers = 0
	}
	return nil
}

// prune goes the other way.
func (c *Capture) prune(p *plan) error {
	if err := c.workloads.prune(p.workloads); err != nil {
		return err
	}
	if err := c.destinations.prune(p.destinations); err != nil {
		return err
	}
	if err := c.locals.prune(p.locals); err != nil {
		return err
	}
	if err := c.accesses.prune(p.accesses); err != nil {
		return err
	}
	if err := c.ownPorts.prune(p.ownPorts); err != nil {
		return err
	}
	if err := c.portExclusions.prune(p.ports); err != nil {
		return err
	}
	if err := c.cidrExclusions.prune(p.cidrs); err != nil {
		return err
	}
	return c.forgetNames(p.ids)
}

func (c *Capture) plan(s *State) (*plan, error) {
	p := &plan{
		rules:        newRules(c.root.path),
		ids:          make(map[uint32]bool),
		workloads:    make(map[uint32]bpf.CaptureWorkload, len(s.Workloads)),
		destinations: make(map[bpf.CaptureDestinationKey]bpf.CaptureDestination, len(s.Destinations)),
		locals:       make(map[bpf.CaptureDestinationKey]bpf.CaptureLocals),
		accesses:     make(map[bpf.CaptureAccessKey]bpf.CaptureAccess, len(s.Accesses)),
		ports:        make(map[bpf.CapturePortExclusion]uint8),
		cidrs:        make(map[bpf.CaptureCidrExclusion]uint8),
		declared:     make(map[bpf.CapturePortKey]uint32),
		ownPorts:     make(map[uint16]uint8, len(s.OwnPorts)),
	}
	for _, port := range s.OwnPorts {
		p.ownPorts[port] = 1
	}
	for i := range s.Workloads {
		w := &s.Workloads[i]
		id, err := c.names.assign(kindWorkload, w.Name)
		if err != nil {
			return nil, fmt.Errorf("workload %s: %w", w.Name, err)
		}
		p.ids[id] = true
		c.planWorkload(p, w, id)
	}
	p.rules.seal()
	for i := range s.Destinations {
		if err := c.planDestination(p, &s.Destinations[i]); err != nil {
			return nil, err
		}
	}
	for i := range s.Accesses {
		if err := c.planAccess(p, &s.Accesses[i]); err != nil {
			return nil, err
		}
	}
	return p, nil
}

func (c *Capture) planWorkload(p *plan, w *Workload, id uint32) {
	for _, sel := range w.Selectors {
		p.rules.add(sel, id)
	}
	p.workloads[id] = bpf.CaptureWorkload{Flags: flagsOf(w)}
	p.excludePorts(id, bpf.CaptureDirectionOUT, w.Exclude.OutboundPorts)
	p.excludePorts(id, bpf.CaptureDirectionIN, w.Exclude.InboundPorts)
	p.excludeCIDRs(id, bpf.CaptureDirectionOUT, w.Exclude.OutboundCIDRs)
	p.excludeCIDRs(id, bpf.CaptureDirectionIN, w.Exclude.InboundCIDRs)
	netns := w.NetNS
	if netns == 0 {
		netns = c.ownNetNS
	}
	for _, port := range w.InboundPorts {
		p.declared[bpf.CapturePortKey{Netns: netns, Address: bpf.CaptureAddress{Port: port}}] = id
	}
}

func flagsOf(w *Workload) (flags bpf.CaptureWorkloadFlags) {
	set := func(on bool, flag bpf.CaptureWorkloadFlags) {
		if on {
			flags |= flag
		}
	}
	set(w.Bypass, bpf.CaptureWorkloadFlagsWORKLOAD_BYPASS)
	set(w.Egress == mesh.EgressRegisteredOnly, bpf.CaptureWorkloadFlagsWORKLOAD_REGISTERED_ONLY)
	set(w.OnProxyDown == mesh.ProxyDownDirect, bpf.CaptureWorkloadFlagsWORKLOAD_DOWN_DIRECT)
	set(len(w.Exclude.OutboundPorts) > 0, bpf.CaptureWorkloadFlagsWORKLOAD_OUT_PORTS)
	set(len(w.Exclude.OutboundCIDRs) > 0, bpf.CaptureWorkloadFlagsWORKLOAD_OUT_CIDRS)
	set(len(w.Exclude.InboundPorts) > 0, bpf.CaptureWorkloadFlagsWORKLOAD_IN_PORTS)
	set(len(w.Exclude.InboundCIDRs) > 0, bpf.CaptureWorkloadFlagsWORKLOAD_IN_CIDRS)
	set(w.Inbound == mesh.InboundStrict || w.Inbound == "", bpf.CaptureWorkloadFlagsWORKLOAD_STRICT)
	set(w.Inbound == mesh.InboundPermissive, bpf.CaptureWorkloadFlagsWORKLOAD_PERMISSIVE)
	set(w.Unspliced, bpf.CaptureWorkloadFlagsWORKLOAD_UNSPLICED)
	set(w.InboundLocal == mesh.Deny, bpf.CaptureWorkloadFlagsWORKLOAD_LOCAL_DENY)
	return flags
}

func (p *plan) excludePorts(id uint32, d bpf.CaptureDirection, ports []uint16) {
	for _, port := range ports {
		p.ports[bpf.CapturePortExclusion{Workload: id, Port: port, Direction: uint8(d)}] = 1
	}
}

func (p *plan) excludeCIDRs(id uint32, d bpf.CaptureDirection, cidrs []netip.Prefix) {
	for _, cidr := range cidrs {
		bits := cidr.Bits()
		if cidr.Addr().Is4() {
			bits += 96
		}
		// The trie wants the bits behind the prefix to be zero, or two ways
		// to write one network would be two keys.
		key := bpf.CaptureCidrExclusion{Prefixlen: uint32(64 + bits), Workload: id, Direction: d}
		key.Ip = toWords(cidr.Masked().Addr())
		p.cidrs[key] = 1
	}
}

func (c *Capture) planDestination(p *plan, d *Destination) error {
	service, err := c.names.assign(kindService, d.Service)
	if err != nil {
		return fmt.Errorf("service %s: %w", d.Service, err)
	}
	p.ids[service] = true
	key := bpf.CaptureDestinationKey{Address: toAddress(d.Addr)}
	if d.Workload != (mesh.Name{}) {
		id, err := c.names.assign(kindWorkload, d.Workload)
		if err != nil {
			return fmt.Errorf("workload %s: %w", d.Workload, err)
		}
		key.Workload = id
		w := p.workloads[id]
		w.Flags |= bpf.CaptureWorkloadFlagsWORKLOAD_UPSTREAMS
		p.workloads[id] = w
	}
	value := bpf.CaptureDestination{Service: service}
	if d.AnyPort {
		value.Flags |= bpf.CaptureDestinationFlagsDESTINATION_ANY_PORT
	}
	if d.Direct.IsValid() {
		value.Direct = toAddress(d.Direct)
	}
	if len(d.Locals) > 0 {
		if p.locals[key], err = c.planLocals(d); err != nil {
			return err
		}
		value.Flags |= bpf.CaptureDestinationFlagsDESTINATION_LOCAL
	}
	p.destinations[key] = value
	return nil
}
