// SPDX-License-Identifier: Apache-2.0

package sockmap

import (
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/meshproxy/meshproxy/bpf"
)

// nodeMemory is the programs' struct node, mapped: what the proxy writes often
// costs no system call.
type nodeMemory struct {
	mu  sync.RWMutex // held for reading while node is used
	mem []byte
	*bpf.CaptureNode
}

func mapNode(m *ebpf.Map) (*nodeMemory, error) {
	mem, err := mapMemory(m)
	if err != nil {
		return nil, err
	}
	return &nodeMemory{mem: mem, CaptureNode: (*bpf.CaptureNode)(unsafe.Pointer(&mem[0]))}, nil
}

// mapMemory maps all of an array.
func mapMemory(m *ebpf.Map) ([]byte, error) {
	page := os.Getpagesize()
	size := int(m.ValueSize()) * int(m.MaxEntries())
	mem, err := unix.Mmap(m.FD(), 0, (size+page-1)/page*page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map %s: %w", m, err)
	}
	return mem, nil
}

func (n *nodeMemory) configure(opts *Options) {
	n.OutboundPort = opts.Ports.Outbound
	n.PlainPort = opts.Ports.InboundPlain
	n.HbonePort = opts.Ports.InboundHBONE
	n.MtlsPort = opts.Ports.InboundMTLS
	n.DnsPort = opts.Ports.DNS
	atomic.StoreUint64(&n.HeartbeatTimeout, uint64(opts.HeartbeatTimeout))
}

func (n *nodeMemory) close() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.mem == nil {
		return nil
	}
	n.CaptureNode = nil
	err := unix.Munmap(n.mem)
	n.mem = nil
	return err
}

// monotonic is the clock of bpf_ktime_get_ns.
func monotonic() (uint64, error) {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return 0, fmt.Errorf("read clock: %w", err)
	}
	return uint64(ts.Nano()), nil
}

// Heartbeat tells the kernel that the data path is alive; it wants to be
// called from there, several times within the heartbeat timeout. It may be
// called from any goroutine.
func (c *Capture) Heartbeat() error {
	now, err := monotonic()
	if err != nil {
		return err
	}
	c.node.mu.RLock()
	defer c.node.mu.RUnlock()
	if c.node.mem == nil {
		return ErrClosed
	}
	atomic.StoreUint64(&c.node.CaptureNode.Heartbeat, now)
	return nil
}

// Await makes the kernel go on leading connections here for as long as is given,
// without further heartbeats: for a proxy whose listeners stay open while it is
// away. It is treated as away when the time is up.
func (c *Capture) Await(d time.Duration) error {
	now, err := monotonic()
	if err != nil {
		return err
	}
	c.node.mu.RLock()
	defer c.node.mu.RUnlock()
	if c.node.mem == nil {
		return ErrClosed
	}
	// A heartbeat may lie ahead: its age is negative then.
	ahead := uint64(int64(now) + int64(d) - int64(c.node.HeartbeatTimeout))
	atomic.StoreUint64(&c.node.CaptureNode.Heartbeat, ahead)
	return nil
}

// Retire makes the kernel treat the proxy as away from now on, without waiting
// for the heartbeat to grow stale: for a proxy that stops.
func (c *Capture) Retire() error {
	c.node.mu.RLock()
	defer c.node.mu.RUnlock()
	if c.node.mem == nil {
		return ErrClosed
	}
	atomic.StoreUint64(&c.node.CaptureNode.Heartbeat, 0)
	return nil
}
