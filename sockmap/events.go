// SPDX-License-Identifier: Apache-2.0

package sockmap

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"sync"
	"time"
	"unsafe"

	"github.com/cilium/ebpf/ringbuf"

	"github.com/meshproxy/meshproxy/bpf"
	"github.com/meshproxy/meshproxy/discovery/mesh"
	"github.com/meshproxy/meshproxy/sockmap/cgroup"
)

// Event is something that happened in the kernel: a *NetNSSeen, *Refused,
// *CgroupEnrolled, *CgroupGone, *DirectOpened, *DirectClosed or *ReadsBySplice.
type Event interface{ event() }

// NetNSSeen means that a workload was refused because its network namespace has
// none of the proxy's listeners. The process may be gone by now.
type NetNSSeen struct {
	NetNS    uint64 // cookie
	Workload mesh.Name
	PID      int // 0: this kernel doesn't tell
	Cgroup   uint64
}

// Refused is a connection that was refused in the kernel.
type Refused struct {
	Workload mesh.Name
	Reason   Reason
	// Address is where an outbound connection wanted to go, or where an
	// inbound one came from.
	Address netip.AddrPort
	NetNS   uint64
	PID     int    // 0 for inbound, or when this kernel doesn't tell
	Cgroup  uint64 // 0 for inbound
}

// CgroupEnrolled means that a new cgroup belongs to a workload.
type CgroupEnrolled struct {
	ID       uint64
	Workload mesh.Name
	Path     string // within the hierarchy; "" when it is gone already
}

// CgroupGone means that a cgroup of a workload was removed.
type CgroupGone struct {
	ID       uint64
	Workload mesh.Name
}

// DirectOpened is a connection between workloads of this node that was made; see
// ReportDirect.
type DirectOpened struct{ DirectConnection }

// DirectClosed is a connection between workloads of this node that ended; see
// ReportDirect.
type DirectClosed struct{ DirectConnection }

// ReadsBySplice means that a workload reads from connections with splice(2): no
// new ones are spliced, and those that are give it nothing.
type ReadsBySplice struct {
	Workload mesh.Name
	PID      int
}

func (*DirectOpened) event()   {}
func (*DirectClosed) event()   {}
func (*ReadsBySplice) event()  {}
func (*NetNSSeen) event()      {}
func (*Refused) event()        {}
func (*CgroupEnrolled) event() {}
func (*CgroupGone) event()     {}

// Events returns the channel of what happens in the kernel. It is to be read:
// while it is full the kernel keeps a few thousand events and counts the rest
// as lost. It is closed by Close.
func (c *Capture) Events() <-chan Event { return c.events }

// background is the goroutines of a Capture.
type background struct {
	reader *ringbuf.Reader
	done   chan struct{}
	wg     sync.WaitGroup
}

const sweepInterval = 5 * time.Second

func (c *Capture) startBackground() (*background, error) {
	reader, err := ringbuf.NewReader(c.kernel.maps[bpf.CaptureMapEvents])
	if err != nil {
		return nil, fmt.Errorf("read events: %w", err)
	}
	b := &background{reader: reader, done: make(chan struct{})}
	b.wg.Go(func() { c.readEvents(b) })
	b.wg.Go(func() { c.sweep(b) })
	return b, nil
}

func (b *background) stop() {
	close(b.done)
	b.reader.Close()
	b.wg.Wait()
}

func (c *Capture) sweep(b *background) {
	tick := time.NewTicker(sweepInterval)
	defer tick.Stop()
	switched := time.NewTimer(formerFlowsKept)
	defer switched.Stop()
	for {
		select {
		case <-b.done:
			return
		case <-switched.C:
			if err := c.kernel.forgetFormerFlows(); err != nil {
				c.log.Error("end the switch of programs", "error", err)
			}
		case <-tick.C:
			if err := errors.Join(c.sweepFlows(), c.sweepDirects()); err != nil {
				c.log.Error("sweep flows", "error", err)
			}
		}
	}
}

func (c *Capture) readEvents(b *background) {
	defer close(c.events)
	var record ringbuf.Record
	gone := make(map[uint32]bool) // workloads that lost a cgroup
	for {
		err := b.reader.ReadInto(&record)
		if errors.Is(err, os.ErrClosed) {
			return
		}
		if err != nil {
			c.log.Error("read events", "error", err)
			return
		}
		e, err := c.decode(record.RawSample, gone)
		if err != nil {
			c.log.Error("take event", "error", err)
			continue
		}
		// Many go at once when a slice does: all that is known is looked through
		// once then.
		if len(gone) > 0 && b.reader.AvailableBytes() == 0 {
			if err := c.forgetReaders(gone); err != nil {
				c.log.Error("forget readers", "error", err)
			}
			clear(gone)
		}
		select {
		case c.events <- e:
		case <-b.done:
			return
		}
	}
}

// decode adds to gone the workload of a cgroup that was removed.
func (c *Capture) decode(sample []byte, gone map[uint32]bool) (Event, error) {
	var raw bpf.CaptureEvent
	if len(sample) < 4 {
		return nil, io.ErrUnexpectedEOF
	}
	switch kind := bpf.CaptureEventKind(binary.NativeEndian.Uint32(sample)); kind {
	case bpf.CaptureEventKindEVENT_OPENED, bpf.CaptureEventKindEVENT_CLOSED:
		return c.decodeDirect(kind, sample)
	}
	if _, err := binary.Decode(sample, binary.NativeEndian, &raw); err != nil {
		return nil, err
	}
	if bpf.CaptureEventKind(raw.Kind) == bpf.CaptureEventKindEVENT_GONE {
		gone[raw.Workload] = true
	}
	return c.event(&raw), nil
}

func (c *Capture) decodeDirect(kind bpf.CaptureEventKind, sample []byte) (Event, error) {
	var e bpf.CaptureDirectEvent
	if _, err := binary.Decode(sample, binary.NativeEndian, &e); err != nil {
		return nil, err
	}
	// The same once more, by its own type.
	var d bpf.CaptureDirect
	if _, err := binary.Decode(sample[unsafe.Offsetof(e.Conn):], binary.NativeEndian, &d); err != nil {
		return nil, err
	}
	conn := c.directConnection(e.Cookie, &d, e.Now)
	if kind == bpf.CaptureEventKindEVENT_OPENED {
		return &DirectOpened{conn}, nil
	}
	return &DirectClosed{conn}, nil
}

func (c *Capture) event(raw *bpf.CaptureEvent) Event {
	workload := c.names.name(raw.Workload)
	switch bpf.CaptureEventKind(raw.Kind) {
	case bpf.CaptureEventKindEVENT_NETNS_SEEN:
		return &NetNSSeen{NetNS: raw.Netns, Workload: workload, PID: int(raw.Pid), Cgroup: raw.Cgroup}
	case bpf.CaptureEventKindEVENT_ENROLLED:
		path, err := cgroup.Path(raw.Cgroup)
		if err != nil {
			path = "" // removed since
		}
		return &CgroupEnrolled{ID: raw.Cgroup, Workload: workload, Path: path}
	case bpf.CaptureEventKindEVENT_GONE:
		return &CgroupGone{ID: raw.Cgroup, Workload: workload}
	case bpf.CaptureEventKindEVENT_SPLICES:
		return &ReadsBySplice{Workload: workload, PID: int(raw.Pid)}
	default:
		return &Refused{
			Workload: workload,
			Reason:   Reason(raw.Reason),
			Address:  fromAddress(bpf.CaptureAddress(raw.Address)),
			NetNS:    raw.Netns,
			PID:      int(raw.Pid),
			Cgroup:   raw.Cgroup,
		}
	}
}
