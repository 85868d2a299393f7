// SPDX-License-Identifier: Apache-2.0

package sockmap

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"

	"github.com/meshproxy/meshproxy/bpf"
)

// The ports that sk_lookup guards: those that the configuration declares, on
// any address, and those that somebody listens on, on the listener's address.
// The kernel learns the latter from listen(2); user space adds listeners that
// are older than the capture and takes out those that are gone.

// FollowListeners is the part of Apply that is about who listens: that changes
// without a word, though the state does not.
func (c *Capture) FollowListeners() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.usable(); err != nil {
		return err
	}
	return c.reconcilePorts(c.declared)
}

// reconcilePorts brings the guarded ports into line with the declared ones and
// with who listens in the attached namespaces.
func (c *Capture) reconcilePorts(declared map[bpf.CapturePortKey]uint32) error {
	c.declared = declared
	if c.rules == nil {
		return nil // nobody is known to be a workload yet
	}
	m := c.kernel.maps[bpf.CaptureMapPorts]
	before, err := contents[bpf.CapturePortKey, bpf.CapturePort](m)
	if err != nil {
		return err
	}
	listening, err := c.listening()
	if err != nil {
		return err
	}
	if err := c.guardPorts(declared, listening, before); err != nil {
		return err
	}
	stale := false
	for key := range before {
		if ns := c.namespaces[key.Netns]; ns != nil && ns.fd == nil {
			continue // nobody can look there yet
		}
		_, isDeclared := declared[key]
		_, isListening := listening[key]
		if isDeclared || isListening {
			continue
		}
		if err := m.Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("delete port: %w", err)
		}
		stale = true
	}
	if !stale {
		return nil
	}
	// Somebody may have begun to listen again since the look at listeners, on
	// an entry that has just been deleted.
	if before, err = contents[bpf.CapturePortKey, bpf.CapturePort](m); err != nil {
		return err
	}
	if listening, err = c.listening(); err != nil {
		return err
	}
	return c.guardPorts(declared, listening, before)
}

// guardPorts writes what is declared or listened on.
func (c *Capture) guardPorts(declared, listening map[bpf.CapturePortKey]uint32, have map[bpf.CapturePortKey]bpf.CapturePort) error {
	for key, p := range c.wantPorts(declared, listening) {
		// What the kernel has seen of the listener's sockets stays with it.
		was := have[key]
		was.Flags &^= bpf.CapturePortFlagsPORT_NONBLOCKING | bpf.CapturePortFlagsPORT_BLOCKING
		if p == was {
			continue
		}
		how := ebpf.UpdateAny
		if p.Workload == 0 {
			how = ebpf.UpdateNoExist // the kernel saw the listener and knows better
		}
		err := c.kernel.maps[bpf.CaptureMapPorts].Update(key, p, how)
		if err != nil && !errors.Is(err, ebpf.ErrKeyExist) {
			return fmt.Errorf("guard port: %w", err)
		}
	}
	return nil
}

// wantPorts merges what is declared with who listens, and makes sk_lookup look
// at these ports more closely.
func (c *Capture) wantPorts(declared, listening map[bpf.CapturePortKey]uint32) map[bpf.CapturePortKey]bpf.CapturePort {
	want := make(map[bpf.CapturePortKey]bpf.CapturePort)
	for key, workload := range declared {
		want[key] = bpf.CapturePort{Workload: workload, Flags: bpf.CapturePortFlagsPORT_DECLARED}
	}
	for key, workload := range listening {
		if workload == 0 {
			continue
		}
		p := want[key]
		p.Workload = workload
		p.Flags |= bpf.CapturePortFlagsPORT_LEARNED
		if _, ok := declared[anywhere(key)]; ok {
			p.Flags |= bpf.CapturePortFlagsPORT_DECLARED // as the kernel has it
		}
		want[key] = p
	}
	// The filter only grows: a port too many costs a lookup. A byte of it is
	// stored, as the kernel does, so that neither loses the other's.
	for key := range want {
		c.portFilter[key.Address.Port] = 1
	}
	// Somebody else's listener matters on a port that is a workload's at
	// another address, unless the configuration says whose the port is.
	for key, workload := range listening {
		if workload != 0 || c.portFilter[key.Address.Port] == 0 {
			continue
		}
		if _, ok := declared[anywhere(key)]; !ok {
			want[key] = bpf.CapturePort{Flags: bpf.CapturePortFlagsPORT_LEARNED}
		}
	}
	return want
}

// anywhere is a port of all addresses.
func anywhere(key bpf.CapturePortKey) bpf.CapturePortKey {
	return bpf.CapturePortKey{Netns: key.Netns, Address: bpf.CaptureAddress{Port: key.Address.Port}}
}

func (c *Capture) forgetPorts(netns uint64) error {
	m := c.kernel.maps[bpf.CaptureMapPorts]
	have, err := contents[bpf.CapturePortKey, bpf.CapturePort](m)
	if err != nil {
		return err
	}
	for key := range have {
		if key.Netns != netns {
			continue
		}
		if err := m.Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("delete port: %w", err)
		}
	}
	return nil
}
