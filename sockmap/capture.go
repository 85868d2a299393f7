// SPDX-License-Identifier: Apache-2.0

package sockmap

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/meshproxy/meshproxy/bpf"
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
	portExclusions *table[bpf.CapturePortExclusion, uint8]
	cidrExclusions *table[bpf.CaptureCidrExclusion, uint8]
	cgroups        *cgroups
	portFilter     []byte                        // in shared memory, one for each port
	declared       map[bpf.CapturePortKey]uint32 // of the last Apply
	namespaces     map[uint64]*namespace

	events     chan Event
	background *background
}

// Open makes the capture work, or takes over what an earlier process left
// working. Until the first Apply the kernel follows the state it has; until the
// first Heartbeat it treats the proxy as away.
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
	if c.place, err = openPlace(opts.BPFFS, opts.Instance); err != nil {
		return nil, err
	}
	if c.ownNetNS, err = netns.Cookie(netns.Own); err != nil {
		return nil, fmt.Errorf("read namespace cookie: %w", err)
	}
	if c.kernel, err = load(c.place, c.root, &opts); err != nil {
		return nil, err
	}
	if err := c.openTables(); err != nil {
		return nil, err
	}
	if err := c.adoptNamespaces(); err != nil {
		return nil, err
	}
	if c.background, err = c.startBackground(); err != nil {
		return nil, err
	}
	return c, nil
}

// openTables reads what is in the maps.
func (c *Capture) openTables() (err error) {
	maps := c.kernel.maps
	if c.node, err = mapNode(maps[bpf.CaptureMapNode]); err != nil {
		return err
	}
	c.node.configure(&c.opts)
	if c.portFilter, err = mapMemory(maps[bpf.CaptureMapPortFilter]); err != nil {
		return err
	}
	if c.names, err = openNames(maps[bpf.CaptureMapNames], &c.node.LastId); err != nil {
		return err
	}
	c.cgroups = &cgroups{m: maps[bpf.CaptureMapCgroups], root: c.root, node: c.node}
	return errors.Join(
		open(&c.paths, maps[bpf.CaptureMapRules]),
		open(&c.units, maps[bpf.CaptureMapUnits]),
		open(&c.users, maps[bpf.CaptureMapUsers]),
		open(&c.workloads, maps[bpf.CaptureMapWorkloads]),
		open(&c.destinations, maps[bpf.CaptureMapDestinations]),
		open(&c.portExclusions, maps[bpf.CaptureMapPortExclusions]),
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
	c.mu.Unlock()
	c.background.stop()
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
