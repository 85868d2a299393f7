// SPDX-License-Identifier: Apache-2.0

package testnet

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
)

// Topology is a set of hosts that reach each other.
//
// Its methods may be called from several goroutines; hosts and containers are
// best added before processes run, as their routes are made then.
type Topology struct {
	name       string
	dir        string
	cgroupRoot string
	wire       *Namespace // the bridge between the hosts; nil for two hosts

	mu        sync.Mutex
	hosts     []*Host
	others    []*Namespace // containers
	processes []*Process
	captures  []*Capture
	closed    bool
}

// New makes a topology with a host for each name. Two hosts are joined by one
// veth pair, any other number by a bridge. The hosts are numbered from 1 in
// the order given: host i has the addresses 10.77.0.i/24 and fd00:77::i/64.
//
// Addresses repeat in every topology, names don't: any number of topologies
// may exist at once.
func New(hosts ...string) (*Topology, error) {
	if len(hosts) == 0 || len(hosts) > 200 {
		return nil, fmt.Errorf("make topology: %d hosts", len(hosts))
	}
	if err := Sweep(); err != nil {
		return nil, fmt.Errorf("remove leftovers: %w", err)
	}
	o, err := currentOwner()
	if err != nil {
		return nil, err
	}
	root, err := cgroup2Mount()
	if err != nil {
		return nil, err
	}
	t := &Topology{name: o.name(), cgroupRoot: root}
	t.dir = filepath.Join(stateRoot, t.name)
	if err := t.build(hosts); err != nil {
		return nil, errors.Join(err, t.Close())
	}
	return t, nil
}

func (t *Topology) build(names []string) error {
	unlock, err := lockState()
	if err != nil {
		return err
	}
	err = mountState(t.dir)
	unlock()
	if err != nil {
		return err
	}
	for i, name := range names {
		if err := t.addHost(name, i+1); err != nil {
			return err
		}
	}
	if len(t.hosts) == 2 {
		return joinPair(t.hosts[0], t.hosts[1])
	}
	t.wire, err = newNamespace(t, "wire", filepath.Join(t.dir, "wire"), filepath.Join(t.Cgroup(), "wire"))
	if err != nil {
		return err
	}
	return joinBridge(t.wire, t.hosts)
}

func (t *Topology) addHost(name string, index int) error {
	h := &Host{index: index}
	h.bpffs = filepath.Join(t.dir, name, "bpf")
	if err := mountBPF(h.bpffs); err != nil {
		return err
	}
	n, err := newNamespace(t, name, filepath.Join(t.dir, name), filepath.Join(t.Cgroup(), name))
	if err != nil {
		return err
	}
	h.Namespace = n
	t.hosts = append(t.hosts, h)
	return nil
}

// Name returns the topology's name, which no other one on the machine has.
func (t *Topology) Name() string { return t.name }

// Dir returns the topology's directory: a tmpfs that goes with it.
func (t *Topology) Dir() string { return t.dir }

// Cgroup returns the absolute path of the cgroup that holds the hosts'.
func (t *Topology) Cgroup() string {
	return filepath.Join(t.cgroupRoot, cgroupPrefix+t.name)
}

// CgroupMount returns where cgroup2 is mounted.
func (t *Topology) CgroupMount() string { return t.cgroupRoot }

// Host returns the host with that name, which must exist.
func (t *Topology) Host(name string) *Host {
	i := slices.IndexFunc(t.hosts, func(h *Host) bool { return h.name == name })
	if i < 0 {
		panic(fmt.Sprintf("testnet: no host %q", name))
	}
	return t.hosts[i]
}

// Hosts returns all hosts in the order in which they were named.
func (t *Topology) Hosts() []*Host { return slices.Clone(t.hosts) }

// Close kills every process in the topology and removes all of it. It may be
// called more than once.
func (t *Topology) Close() error {
	t.mu.Lock()
	if t.closed {
		t.mu.Unlock()
		return nil
	}
	t.closed = true
	captures, processes, others := t.captures, t.processes, t.others
	t.mu.Unlock()

	errs := []error{killCgroup(t.Cgroup())}
	for _, p := range processes {
		_ = p.Kill() // it is dead, unless killing its cgroup failed
		<-p.Done()
	}
	for _, c := range captures {
		c.Stop()
	}
	for _, n := range others {
		n.close()
	}
	for _, h := range t.hosts {
		h.close()
	}
	if t.wire != nil {
		t.wire.close()
	}
	return errors.Join(append(errs, removeState(t.cgroupRoot, t.name))...)
}
