// SPDX-License-Identifier: Apache-2.0

package sockmap

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/meshproxy/meshproxy/bpf"
	"github.com/meshproxy/meshproxy/sockmap/netcookie"
	"github.com/meshproxy/meshproxy/sockmap/netns"
)

// Capture is the kernel's side of the node, as seen from the process that owns
// it. Its methods may be called from any goroutine.
type Capture struct {
	opts     Options
	log      *slog.Logger
	place    *place
	root     *cgroupRoot
	kernel   *kernelState
	node     *nodeMemory
	ownNetNS uint64

	mu             sync.Mutex // guards what follows, and serialises changes
	closed         bool
	names          *names
	rules          *rules // of the last Apply
	paths          *table[bpf.CaptureRuleKey, bpf.CaptureRule]
	units          *table[bpf.CaptureUnitKey, bpf.CaptureRule]
	users          *table[uint32, uint32]
	workloads      *table[uint32, bpf.CaptureWorkload]
	destinations   *table[bpf.CaptureDestinationKey, bpf.CaptureDestination]
	locals         *table[bpf.CaptureDestinationKey, bpf.CaptureLocals]
	accesses       *table[bpf.CaptureAccessKey, bpf.CaptureAccess]
	portExclusions *table[bpf.CapturePortExclusion, uint8]
	ownPorts       *table[uint16, uint8]
	cidrExclusions *table[bpf.CaptureCidrExclusion, uint8]
	cgroups        *cgroups
	portFilter     []byte                        // in shared memory, one for each port
	declared       map[bpf.CapturePortKey]uint32 // of the last Apply
	namespaces     map[uint64]*namespace
	splicing       SpliceState
	hopsPaused     string         // why, for hops; SpliceState.Paused is for the rest
	inherited      bool           // splicing is on since an earlier process, and not tested since
	delayed        []func() error // until sockets are seen by the programs
	yielded        bool
	kept           []io.Closer // links of what was yielded

	// hops asks and tells about hops; nil while there are none.
	hops atomic.Pointer[ebpf.Program]

	// twoSteps: the kernel can't look up and delete at once.
	twoSteps atomic.Bool

	// marker, if set, marks sockets in the state of the process that took over.
	marker atomic.Pointer[Marker]

	events     chan Event
	background *background
}

// Open makes the capture work, or takes over what an earlier process left
// working. Until the first Apply the kernel follows the state it has, which may
// be that of another layout; until the first Heartbeat it treats the proxy as
// away. With Options.Lock everything is as it was until TakeOver.
//
// The error wraps ErrBusy when another process owns the instance, ErrNotBPFFS
// or cgroup.ErrNotCgroup2 when a path is none of that kind, ErrNotAttached when
// the kernel took a program but does not run it.
func Open(opts Options) (_ *Capture, err error) {
	if err := opts.complete(); err != nil {
		return nil, fmt.Errorf("check options: %w", err)
	}
	c := &Capture{
		opts:       opts,
		log:        opts.Logger,
		namespaces: make(map[uint64]*namespace),
		hopsPaused: "not asked for",
		events:     make(chan Event, 256),
	}
	defer func() {
		if err != nil {
			c.release()
		}
	}()
	if c.root, err = openRoot(opts.CgroupRoot); err != nil {
		return nil, err
	}
	if err := mountBPFFS(opts.BPFFS, c.log); err != nil {
		return nil, err
	}
	if opts.Lock != nil {
		c.place, err = inheritPlace(opts.BPFFS, opts.Instance, opts.Lock)
	} else {
		c.place, err = openPlace(opts.BPFFS, opts.Instance)
	}
	if err != nil {
		return nil, err
	}
	if c.ownNetNS, err = netcookie.Of(netns.Own); err != nil {
		return nil, unprivileged(fmt.Errorf("read namespace cookie: %w", err))
	}
	if c.kernel, err = load(c.place, c.root, &opts); err != nil {
		return nil, unprivileged(err)
	}
	if err := c.mapMemory(); err != nil {
		return nil, err
	}
	if err := c.openTables(); err != nil {
		return nil, err
	}
	if c.place.shared {
		return c, nil
	}
	if c.replaces() {
		if err := c.kernel.permit(); err != nil {
			return nil, err
		}
		return c, nil
	}
	if err := c.install(); err != nil {
		return nil, err
	}
	if err := c.dropOthers(); err != nil {
		return nil, err
	}
	return c, nil
}

// replaces says that state of another layout is in force, which stays so until
// there is something to put in its place.
func (c *Capture) replaces() bool {
	return c.kernel.pending != nil && !c.kernel.adopted && len(c.kernel.pending.earlier) > 0
}

// install puts the programs in force, with mu held or before anybody else has
// the Capture.
func (c *Capture) install() (err error) {
	c.node.configure(&c.opts)
	if c.place.shared && c.kernel.adopted {
		// The process before has changed them since they were read.
		if err := c.openTables(); err != nil {
			return err
		}
	}
	if err := c.kernel.install(c.place, c.root, c.guardAll, c.enterAll); err != nil {
		return err
	}
	if err := c.adoptNamespaces(); err != nil {
		return err
	}
	c.openSplice()
	c.background, err = c.startBackground()
	return err
}

// mapMemory maps what is shared with the programs as memory.
func (c *Capture) mapMemory() (err error) {
	if c.node, err = mapNode(c.kernel.maps[bpf.CaptureMapNode]); err != nil {
		return err
	}
	c.portFilter, err = mapMemory(c.kernel.maps[bpf.CaptureMapPortFilter])
	return err
}

// openTables reads what is in the maps.
func (c *Capture) openTables() (err error) {
	maps := c.kernel.maps
	if c.names == nil {
		c.names, err = openNames(maps[bpf.CaptureMapNames], &c.node.LastId)
	} else {
		err = c.names.read(maps[bpf.CaptureMapNames])
	}
	if err != nil {
		return err
	}
	c.cgroups = &cgroups{m: maps[bpf.CaptureMapCgroups], root: c.root, node: c.node}
	return errors.Join(
		open(&c.paths, maps[bpf.CaptureMapRules]),
		open(&c.units, maps[bpf.CaptureMapUnits]),
		open(&c.users, maps[bpf.CaptureMapUsers]),
		open(&c.workloads, maps[bpf.CaptureMapWorkloads]),
		open(&c.destinations, maps[bpf.CaptureMapDestinations]),
		open(&c.locals, maps[bpf.CaptureMapLocals]),
		open(&c.accesses, maps[bpf.CaptureMapAccesses]),
		open(&c.portExclusions, maps[bpf.CaptureMapPortExclusions]),
		open(&c.ownPorts, maps[bpf.CaptureMapOwnPorts]),
		open(&c.cidrExclusions, maps[bpf.CaptureMapCidrExclusions]),
	)
}

func open[K, V comparable](t **table[K, V], m *ebpf.Map) (err error) {
	*t, err = openTable[K, V](m)
	return err
}

// Close lets go of the kernel's state and leaves it in force. The channel of
// Events is closed.
func (c *Capture) Close() error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil
	}
	c.closed = true
	background := c.background
	c.background = nil
	c.mu.Unlock()
	if background != nil {
		background.stop()
	} else if !c.yielded {
		close(c.events)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.release()
	return nil
}

// release undoes as much of Open as has been done.
func (c *Capture) release() {
	for _, n := range c.namespaces {
		n.close()
	}
	if control := c.hops.Swap(nil); control != nil {
		control.Close()
	}
	for _, k := range c.kept {
		k.Close()
	}
	if c.node != nil {
		c.node.close()
	}
	if c.portFilter != nil {
		unix.Munmap(c.portFilter)
	}
	if c.kernel != nil {
		c.kernel.close()
	}
	if c.place != nil {
		c.place.close()
	}
	if c.root != nil {
		c.root.dir.Close()
	}
}
