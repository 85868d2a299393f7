// SPDX-License-Identifier: Apache-2.0

package sockmap

import (
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/meshproxy/meshproxy/bpf"
)

// Hop names a connection between an application and the proxy that may be
// spliced. The zero Hop is none.
type Hop struct {
	// Client is the cookie of the client's socket.
	Client uint64
	// Dialled: the proxy is the client.
	Dialled bool
}

// HopOf is the hop of a socket that the proxy connects to a workload's server.
func HopOf(fd int) (Hop, error) {
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
	if err != nil {
		return Hop{}, fmt.Errorf("read socket cookie: %w", err)
	}
	return Hop{Client: cookie, Dialled: true}, nil
}

// keys are those of the application's and of the proxy's socket.
func (h Hop) keys() (application, proxy bpf.CaptureSpliceKey) {
	application = bpf.CaptureSpliceKey{Client: h.Client, Side: bpf.CaptureSideSIDE_CLIENT}
	proxy = bpf.CaptureSpliceKey{Client: h.Client, Side: bpf.CaptureSideSIDE_SERVER}
	if h.Dialled {
		return proxy, application
	}
	return application, proxy
}

// openHops loads the programs for hops, which need all that splicing needs.
func (c *Capture) openHops() error {
	spec, err := bpf.LoadHop()
	if err != nil {
		return fmt.Errorf("read hop programs: %w", err)
	}
	var objs struct {
		Hop     *ebpf.Program `ebpf:"hop"`
		Control *ebpf.Program `ebpf:"hop_control"`
	}
	if err := spec.LoadAndAssign(&objs, c.sharedMaps(spec)); err != nil {
		return fmt.Errorf("load hop programs: %w", err)
	}
	defer objs.Hop.Close()
	for _, sockets := range []string{bpf.CaptureMapHopping, bpf.CaptureMapHoppingApps} {
		err = link.RawAttachProgram(link.RawAttachProgramOptions{
			Target: c.kernel.maps[sockets].FD(), Program: objs.Hop, Attach: ebpf.AttachSkMsgVerdict,
		})
		if err != nil {
			objs.Control.Close()
			return fmt.Errorf("attach hop program: %w", err)
		}
	}
	if old := c.hops.Swap(objs.Control); old != nil {
		old.Close()
	}
	return nil
}

// sharedMaps makes a program use the maps of the capture.
func (c *Capture) sharedMaps(spec *ebpf.CollectionSpec) *ebpf.CollectionOptions {
	replacements := make(map[string]*ebpf.Map)
	for name, ms := range spec.Maps {
		if m := c.kernel.maps[name]; m != nil {
			ms.MaxEntries = m.MaxEntries()
			replacements[name] = m
		}
	}
	return &ebpf.CollectionOptions{MapReplacements: replacements}
}

// PauseHops is PauseSplicing for connections between applications and the proxy,
// which are not spliced before it is called with no reason. What the proxy sends
// turns to TCP for good.
func (c *Capture) PauseHops(why string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.usable(); err != nil {
		return err
	}
	c.hopsPaused = why
	if why == "" {
		c.node.HopsEver = 1
	}
	c.setSplicing()
	return nil
}

// setHops puts in force what is known.
func (c *Capture) setHops() {
	s := &c.splicing
	s.Hops = s.Loaded && s.Test.Passed && c.hopsPaused == "" && c.hops.Load() != nil
	mode := bpf.CaptureSplicingSPLICING_OFF
	switch {
	case s.Hops:
		mode = bpf.CaptureSplicingSPLICING_ON
		s.HopsReason = ""
	case c.hops.Load() == nil: // openSplice has said why
	case c.hopsPaused != "":
		s.HopsReason = c.hopsPaused
	case s.Test.Error != "":
		s.HopsReason = "self-test: " + s.Test.Error
	}
	c.node.Hopping = mode
}

// HasHops says whether there may be spliced hops, of an earlier process's making
// too.
func (c *Capture) HasHops() bool {
	return c.hops.Load() != nil && c.hopSignal(func(n *bpf.CaptureNode) *uint32 { return &n.HopsEver }) != 0
}

// HopsWanted changes when a hop should leave; the one that has just been written
// to is likely to be it.
func (c *Capture) HopsWanted() uint32 {
	return c.hopSignal(func(n *bpf.CaptureNode) *uint32 { return &n.HopsWanted })
}

// HopsMixed changes before data of an application begins to come by TCP while
// there is some to read that came directly. A short read of a socket says
// nothing then: what came by TCP is read by a call of its own.
func (c *Capture) HopsMixed() uint32 {
	return c.hopSignal(func(n *bpf.CaptureNode) *uint32 { return &n.HopsMixed })
}

func (c *Capture) hopSignal(of func(*bpf.CaptureNode) *uint32) uint32 {
	c.node.mu.RLock()
	defer c.node.mu.RUnlock()
	if c.node.mem == nil {
		return 0
	}
	return atomic.LoadUint32(of(c.node.CaptureNode))
}

// HopWanted says whether a hop should leave: the application does not keep up,
// or its socket is not fit any more.
func (c *Capture) HopWanted(h Hop) (bool, error) {
	q, err := c.askHop(h, false)
	return q.Wanted != 0, err
}

// LeaveHop makes a connection ordinary TCP, for good, in steps. While waiting is
// true the proxy must not write to it: the application has not read what was
// redirected to it. Until done is true LeaveHop wants to be called again.
//
// From the first call on nothing is redirected, save by an application that is
// inside of sendmsg(2) at that moment. So it may be called only by whoever writes
// to the proxy's socket.
func (c *Capture) LeaveHop(h Hop) (waiting, done bool, err error) {
	q, err := c.askHop(h, true)
	if err != nil || q.Found == 0 {
		return false, true, err
	}
	if q.Unread != 0 {
		return true, false, nil
	}
	application, proxy := h.keys()
	if err := c.kernel.maps[bpf.CaptureMapHoppingApps].Delete(&application); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return false, true, fmt.Errorf("take application's socket out: %w", err)
	}
	if q, err = c.askHop(h, true); err != nil {
		return false, true, err
	}
	if q.Pending != 0 {
		return false, false, nil
	}
	if err := c.kernel.maps[bpf.CaptureMapHopping].Delete(&proxy); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return false, true, fmt.Errorf("take own socket out: %w", err)
	}
	if err := c.kernel.maps[bpf.CaptureMapHops].Delete(h.Client); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return false, true, fmt.Errorf("forget hop: %w", err)
	}
	return false, true, nil
}

func (c *Capture) askHop(h Hop, leave bool) (q bpf.CaptureHopQuery, err error) {
	control := c.hops.Load()
	if control == nil {
		return q, nil
	}
	q.Client, q.Leave = h.Client, uint32(flag(leave))
	if h.Dialled {
		q.Application = uint32(bpf.CaptureSideSIDE_SERVER)
	}
	if _, err := control.Run(&ebpf.RunOptions{Context: &q, ContextOut: &q}); err != nil {
		return q, fmt.Errorf("ask about hop: %w", err)
	}
	return q, nil
}

// HopTraffic is what went over spliced hops.
type HopTraffic struct {
	// Spliced and Left are connections, by who dialled.
	Spliced, Left uint64
	// Messages and Redirected, in bytes, are by who sent.
	Messages, Redirected uint64
	// Fallbacks are by who sends.
	Fallbacks map[Fallback]uint64
}

// hopTraffic reads the counters of all CPUs.
func (c *Capture) hopTraffic() (applications, proxy HopTraffic, err error) {
	for sender, t := range map[bpf.CaptureHopSender]*HopTraffic{
		bpf.CaptureHopSenderHOP_APPLICATION: &applications, bpf.CaptureHopSenderHOP_PROXY: &proxy,
	} {
		var cpus []bpf.CaptureHopTraffic
		if err := c.kernel.maps[bpf.CaptureMapHopTraffic].Lookup(uint32(sender), &cpus); err != nil {
			return applications, proxy, fmt.Errorf("read hop counters: %w", err)
		}
		t.Fallbacks = make(map[Fallback]uint64)
		for _, cpu := range cpus {
			t.Spliced += cpu.Spliced
			t.Left += cpu.Left
			t.Messages += cpu.Messages
			t.Redirected += cpu.Redirected
			for why, n := range cpu.Fallbacks {
				if n > 0 {
					t.Fallbacks[Fallback(why)] += n
				}
			}
		}
	}
	return applications, proxy, nil
}
