// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/meshproxy/meshproxy/discovery"
	"github.com/meshproxy/meshproxy/discovery/diskcache"
	"github.com/meshproxy/meshproxy/discovery/static"
	"github.com/meshproxy/meshproxy/nodeproxy/config"
	"github.com/meshproxy/meshproxy/sockmap/cgroup"
)

// startDiscovery prepares the sources; they run once everything else stands
// (follow).
func (n *Node) startDiscovery(ctx context.Context) error {
	c := n.settingsFile()
	if err := os.MkdirAll(c.StateDir, 0o700); err != nil {
		return err
	}
	if err := os.MkdirAll(c.RunDir, 0o755); err != nil {
		return err
	}
	n.cache = diskcache.New(diskcache.Options{Dir: c.StateDir, Logger: n.log})
	n.static = static.New(n.staticOptions(c))
	sources := []discovery.Source{n.static}
	last := n.cache.Load()
	if err := n.openConsul(c, last); err != nil {
		return err
	}
	if n.consul != nil {
		sources = append(sources, n.consul)
	}
	var err error
	n.merger, err = discovery.NewMerger(discovery.Options{
		Node: c.MeshNode(), Domain: c.DNS.Domain,
		Sources:     sources,
		VirtualIPs:  virtualIPs(c),
		Assignments: assignments{n.cache.Assignments(), n},
		Last:        last,
		Logger:      n.log,
	})
	if err != nil {
		return err
	}
	n.views = newViews(func() config.DefaultIdentity { return n.settingsFile().Identity.Default })
	n.views.current.Store(n.views.derive(n.merger.Store().Load(), c.Defaults.MaxConnectionsPerWorkload, n.pressure.bufferLimit()))
	return nil
}

// startSources lets the sources speak.
func (n *Node) startSources(ctx context.Context) error {
	changed, cancel := n.merger.Store().Subscribe()
	n.changed = changed
	n.tasks.Go(func() {
		defer cancel()
		_ = n.merger.Run(ctx)
	})
	return nil
}

// assignments are kept on disk by the process that serves.
type assignments struct {
	discovery.Assignments
	node *Node
}

// Save implements discovery.Assignments.
func (a assignments) Save(list []discovery.Assignment) error {
	if a.node.relieved() {
		return nil
	}
	return a.Assignments.Save(list)
}

func (n *Node) staticOptions(c *config.Config) static.Options {
	o := c.Static()
	o.Logger = n.log
	return o
}

func virtualIPs(c *config.Config) (ranges []netip.Prefix) {
	for _, p := range []netip.Prefix{c.DNS.VirtualIPv4, c.DNS.VirtualIPv6} {
		if p.IsValid() {
			ranges = append(ranges, p)
		}
	}
	return ranges
}

// ownCgroups is where capture works. The proxy must be below its root: sockops
// and getpeername act on its sockets too.
func ownCgroups(c *config.Config) (h hierarchy, err error) {
	if h.mount, err = cgroup.Root(); err != nil {
		return h, err
	}
	if c.Cgroup.Root == config.CgroupAuto {
		h.root = h.mount
		return h, nil
	}
	if h.root, err = filepath.EvalSymlinks(c.Cgroup.Root); err != nil {
		return h, fmt.Errorf("cgroup.root: %w", err)
	}
	self, err := cgroup.Self()
	if err != nil {
		return h, err
	}
	self = filepath.Join(h.mount, self)
	if inside, err := filepath.Rel(h.root, self); err != nil || inside == ".." || strings.HasPrefix(inside, "../") {
		return h, fmt.Errorf("cgroup.root %s: meshproxy itself runs in %s, which is not below it; servers would not see their clients", h.root, self)
	}
	return h, nil
}
