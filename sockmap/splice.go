// SPDX-License-Identifier: Apache-2.0

package sockmap

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/meshproxy/meshproxy/bpf"
)

// ErrNoSplice means that this kernel cannot splice safely.
var ErrNoSplice = errors.New("connections can't be spliced")

// SpliceState says whether new connections between workloads of this node are
// spliced. They go without the proxy in either case.
type SpliceState struct {
	On bool
	// Paused is why PauseSplicing turned it off.
	Paused string
	// Loaded says that the kernel took the program.
	Loaded bool
	// Reason is why it is not on.
	Reason string
	// Hops says that connections between applications and the proxy are spliced,
	// HopsReason why not.
	Hops       bool
	HopsReason string
	// Blind is why it can't be seen who reads with splice(2), if it can't; then
	// connections of such workloads are spliced, and stall.
	Blind string
	// Test is what the self-test measured.
	Test SelfTest
}

// openSplice loads the programs of splice.c onto the map of spliced sockets,
// where they stay with the map. A kernel that does not take them can't splice.
// What an earlier process turned on stays on until the self-test says otherwise.
func (c *Capture) openSplice() {
	c.splicing = SpliceState{Reason: "not tested yet"}
	if !c.opts.features.direct {
		c.node.Splicing = bpf.CaptureSplicingSPLICING_OFF
		c.node.Hopping = bpf.CaptureSplicingSPLICING_OFF
		c.splicing.Reason = "this kernel's verifier does not take the direct way"
		return
	}
	if err := c.attachSplice(); err != nil {
		c.node.Splicing = bpf.CaptureSplicingSPLICING_OFF
		c.node.Hopping = bpf.CaptureSplicingSPLICING_OFF
		c.splicing.Reason = err.Error()
		return
	}
	c.splicing.Loaded = true
	if err := c.watchReaders(); err != nil {
		c.splicing.Blind = err.Error()
	}
	if err := c.openHops(); err != nil {
		c.node.Hopping = bpf.CaptureSplicingSPLICING_OFF
		c.splicing.HopsReason = err.Error()
	} else if c.hopsPaused != "" {
		c.splicing.HopsReason = c.hopsPaused
	}
	c.splicing.Hops = c.node.Hopping == bpf.CaptureSplicingSPLICING_ON
	c.splicing.On = c.node.Splicing == bpf.CaptureSplicingSPLICING_ON
	c.inherited = c.splicing.On
}

func (c *Capture) attachSplice() error {
	spec, err := bpf.LoadSplice()
	if err != nil {
		return fmt.Errorf("read splice program: %w", err)
	}
	var objs struct {
		Splice *ebpf.Program `ebpf:"splice"`
		Queue  *ebpf.Program `ebpf:"queue"`
	}
	if err := spec.LoadAndAssign(&objs, c.sharedMaps(spec)); err != nil {
		return fmt.Errorf("load splice programs: %w", err)
	}
	defer objs.Splice.Close()
	defer objs.Queue.Close()
	// A socket has the programs that the map had when it was inserted: nothing
	// may be redirected to one that has no queue program.
	for _, p := range []struct {
		program *ebpf.Program
		attach  ebpf.AttachType
		sockets string
	}{
		{objs.Queue, ebpf.AttachSkSKBStreamVerdict, bpf.CaptureMapSpliced},
		{objs.Queue, ebpf.AttachSkSKBStreamVerdict, bpf.CaptureMapHoppingApps},
		{objs.Splice, ebpf.AttachSkMsgVerdict, bpf.CaptureMapSpliced},
	} {
		err := link.RawAttachProgram(link.RawAttachProgramOptions{
			Target: c.kernel.maps[p.sockets].FD(), Program: p.program, Attach: p.attach,
		})
		if err != nil {
			return fmt.Errorf("attach splice program: %w", err)
		}
	}
	return nil
}

// PauseSplicing turns every spliced connection to TCP and makes no new ones,
// for the given reason, until it is called with none. No byte is lost or out of
// order.
func (c *Capture) PauseSplicing(why string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.usable(); err != nil {
		return err
	}
	c.splicing.Paused = why
	c.setSplicing()
	return nil
}

// setSplicing puts in force what is known.
func (c *Capture) setSplicing() {
	s := &c.splicing
	c.inherited = c.inherited && !s.Test.Ran && s.Paused == ""
	s.On = s.Loaded && (s.Test.Passed || c.inherited) && s.Paused == ""
	mode := bpf.CaptureSplicingSPLICING_OFF
	switch {
	case s.On:
		mode = bpf.CaptureSplicingSPLICING_ON
		s.Reason = ""
	case s.Paused != "":
		s.Reason = s.Paused
	case s.Test.Error != "":
		s.Reason = "self-test: " + s.Test.Error
	}
	c.node.Splicing = mode
	c.setHops()
}

// switched says whether a workload's splicing is about to be turned on or off.
func (c *Capture) switched(want map[uint32]bpf.CaptureWorkload) bool {
	const flags = bpf.CaptureWorkloadFlagsWORKLOAD_UNSPLICED | bpf.CaptureWorkloadFlagsWORKLOAD_BYPASS
	for id, w := range want {
		if have, ok := c.workloads.have[id]; ok && (have.Flags^w.Flags)&flags != 0 {
			return true
		}
	}
	return false
}
