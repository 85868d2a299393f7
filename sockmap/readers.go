// SPDX-License-Identifier: Apache-2.0

package sockmap

import (
	"cmp"
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/meshproxy/meshproxy/bpf"
	"github.com/meshproxy/meshproxy/discovery/mesh"
)

// How workloads read what they get. Some ways don't go with splicing, and are seen
// before a connection is spliced: the first one of each client to a service is
// TCP, as the first one to each listener is.

// readersPin is the link of the program that sees splice(2).
const readersPin = "tcp_splice_read"

// watchReaders has the kernel tell who reads with splice(2). The program stays when
// this process ends, as those do that rely on it. For a moment that of an earlier
// process runs beside it, which does no harm.
func (c *Capture) watchReaders() error {
	spec, err := bpf.LoadReads()
	if err != nil {
		return fmt.Errorf("read program: %w", err)
	}
	var objs struct {
		Reads *ebpf.Program `ebpf:"reads"`
	}
	if err := spec.LoadAndAssign(&objs, c.sharedMaps(spec)); err != nil {
		return fmt.Errorf("load program: %w", err)
	}
	defer objs.Reads.Close()
	l, err := link.AttachTracing(link.TracingOptions{Program: objs.Reads})
	if err != nil {
		return fmt.Errorf("attach program: %w", err)
	}
	defer l.Close()
	return replacePin(l, filepath.Join(linksDir(c.kernel.dir), readersPin))
}

// Reader is a workload that connections are not spliced for because of how it
// reads.
type Reader struct {
	Workload mesh.Name
	// Service is the one of whose connections it is so, zero if of all.
	Service mesh.Name
	// Why is FallbackReader, for splice(2), or FallbackBlocking.
	Why Fallback
}

// readers lists what was learned.
func (c *Capture) readers() ([]Reader, error) {
	habits, err := contents[bpf.CaptureTrafficKey, bpf.CaptureHabit](c.kernel.maps[bpf.CaptureMapHabits])
	if err != nil {
		return nil, err
	}
	var list []Reader
	for k, h := range habits {
		r := Reader{Workload: c.names.name(k.Workload), Service: c.names.name(k.Service)}
		switch {
		case h.Splices != 0:
			r.Why = FallbackReader
		case h.Waits != 0 || h.Blocks != 0 && h.Reads == 0:
			r.Why = FallbackBlocking
		default:
			continue
		}
		list = append(list, r)
	}
	slices.SortFunc(list, func(a, b Reader) int {
		return cmp.Or(a.Workload.Compare(b.Workload), a.Service.Compare(b.Service))
	})
	return list, nil
}

// forgetReaders: the processes are gone by which these workloads were known; others
// may read otherwise.
func (c *Capture) forgetReaders(workloads map[uint32]bool) error {
	m := c.kernel.maps[bpf.CaptureMapHabits]
	habits, err := contents[bpf.CaptureTrafficKey, bpf.CaptureHabit](m)
	if err != nil {
		return err
	}
	for k := range habits {
		if !workloads[k.Workload] {
			continue
		}
		if err := m.Delete(&k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("forget how workload reads: %w", err)
		}
	}
	return nil
}
