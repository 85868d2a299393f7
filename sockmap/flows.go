// SPDX-License-Identifier: Apache-2.0

package sockmap

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/cilium/ebpf"

	"github.com/meshproxy/meshproxy/bpf"
	"github.com/meshproxy/meshproxy/discovery/mesh"
)

// Flow is what the kernel knows of a captured connection.
type Flow struct {
	// Workload is the number of the workload that dialled; WorkloadName is
	// zero when the workload is gone meanwhile.
	Workload     uint32
	WorkloadName mesh.Name
	// Service is the one that the destination led to when it was dialled.
	Service     mesh.Name
	OriginalDst netip.AddrPort
	// ClientCookie is the socket cookie of the client's end.
	ClientCookie uint64
	// Device is the index of the interface that the client had bound its
	// socket to; 0 means none.
	Device int
}

// Flow takes the flow of an accepted connection off the record: netns is the
// namespace of the outbound listener, client and local are what the accepted
// socket has as its remote and local address. It returns ErrNoFlow when the
// connection was not captured, or the second time.
func (c *Capture) Flow(netns uint64, client, local netip.AddrPort) (Flow, error) {
	key := bpf.CaptureFlowKey{Netns: netns, Client: toAddress(client), Local: toAddress(local)}
	f, err := c.takeFlow(&key)
	switch {
	case errors.Is(err, ebpf.ErrKeyNotExist):
		return Flow{}, ErrNoFlow
	case err != nil:
		return Flow{}, fmt.Errorf("take flow: %w", err)
	case f.Flags&bpf.CaptureFlowFlagsFLOW_CAPTURED == 0:
		return Flow{}, ErrNoFlow
	}
	return Flow{
		Workload:     f.Workload,
		WorkloadName: c.names.name(f.Workload),
		Service:      c.names.name(f.Service),
		OriginalDst:  fromAddress(f.Address),
		ClientCookie: f.Cookie,
		Device:       int(f.Device),
	}, nil
}

// takeFlow takes a flow off the record, whatever it is; to the outbound listener
// lead only those of captured connections.
func (c *Capture) takeFlow(key *bpf.CaptureFlowKey) (f bpf.CaptureFlow, err error) {
	m := c.kernel.maps[bpf.CaptureMapFlows]
	if !c.twoSteps.Load() {
		err = m.LookupAndDelete(key, &f)
		if !errors.Is(err, ebpf.ErrNotSupported) {
			return f, err
		}
		c.twoSteps.Store(true) // before 5.14
	}
	// The tuple can't be in use by another connection while this one is
	// accepted, so nothing comes between lookup and deletion.
	if err = m.Lookup(key, &f); err == nil {
		err = m.Delete(key)
	}
	return f, err
}

// unclaimedFlow is how long a flow whose client has closed waits for the proxy
// to accept: the listener's backlog, however long, is served by then.
const unclaimedFlow = 10 * time.Second

// sweepFlows removes flows that nobody will ask for.
func (c *Capture) sweepFlows() error {
	m := c.kernel.maps[bpf.CaptureMapFlows]
	now, err := monotonic()
	if err != nil {
		return err
	}
	flows, err := contents[bpf.CaptureFlowKey, bpf.CaptureFlow](m)
	if err != nil {
		return err
	}
	for key, f := range flows {
		if f.ClosedAt == 0 || f.ClosedAt+uint64(unclaimedFlow) > now {
			continue
		}
		// A new connection with the same tuple would have replaced the flow
		// in the moment since it was read; its cookie tells.
		var again bpf.CaptureFlow
		if err := m.Lookup(&key, &again); err != nil || again.Cookie != f.Cookie {
			continue
		}
		if err := m.Delete(&key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("delete flow: %w", err)
		}
	}
	return nil
}
