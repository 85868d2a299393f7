// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/meshproxy/meshproxy/discovery"
	"github.com/meshproxy/meshproxy/discovery/diskcache"
	"github.com/meshproxy/meshproxy/discovery/mesh"
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
	n.static = static.New(staticOptions(c, n))
	var err error
	n.merger, err = discovery.NewMerger(discovery.Options{
		Node: nodeOf(c), Domain: c.DNS.Domain,
		Sources:     []discovery.Source{n.static},
		VirtualIPs:  virtualIPs(c),
		Assignments: n.cache.Assignments(),
		Last:        n.cache.Load(),
		Logger:      n.log,
	})
	if err != nil {
		return err
	}
	n.views = newViews(spiffeid.ID{})
	n.views.current.Store(n.views.derive(n.merger.Store().Load(), c.Defaults.MaxConnectionsPerWorkload, bufferedPerWorkload))
	n.tasks.Go(func() { n.cache.Run(ctx, n.merger.Store()) })
	return nil
}

func staticOptions(c *config.Config, n *Node) static.Options {
	o := static.Options{
		Node: nodeOf(c), TunnelPort: c.Listeners.InboundHBONE.Port(), Logger: n.log,
		Defaults: static.WorkloadDefaults{
			Inbound: c.Defaults.Inbound, InboundLocal: c.Defaults.InboundLocal,
			Egress: c.Defaults.Egress, OnProxyDown: c.Defaults.OnProxyDown,
		},
	}
	for _, f := range c.MeshFiles() {
		o.Files = append(o.Files, static.File{Path: f, Partial: f == c.File})
	}
	return o
}

func nodeOf(c *config.Config) mesh.Node {
	return mesh.Node{
		Name: c.Node.Name, Address: c.Node.Address, Addresses: c.Node.Addresses,
		Locality: c.Node.Locality, TrustDomain: c.Node.TrustDomain,
	}
}

func virtualIPs(c *config.Config) (ranges []netip.Prefix) {
	for _, p := range []netip.Prefix{c.DNS.VirtualIPv4, c.DNS.VirtualIPv6} {
		if p.IsValid() {
			ranges = append(ranges, p)
		}
	}
	return ranges
}

// ownCgroupRoot is where capture works, and where the hierarchy is mounted.
// The proxy must be below the former: sockops and getpeername act on its
// sockets too.
func ownCgroupRoot(c *config.Config) (root, mount string, err error) {
	if mount, err = cgroup.Root(); err != nil {
		return "", "", err
	}
	root = c.Cgroup.Root
	if root == config.CgroupAuto {
		return mount, mount, nil
	}
	if root, err = filepath.EvalSymlinks(root); err != nil {
		return "", "", fmt.Errorf("cgroup.root: %w", err)
	}
	self, err := cgroup.Self()
	if err != nil {
		return "", "", err
	}
	if inside, err := filepath.Rel(root, filepath.Join(mount, self)); err != nil || len(inside) >= 2 && inside[:2] == ".." {
		return "", "", fmt.Errorf("cgroup.root %s: meshproxy itself runs in %s, which is not below it; servers would not see their clients", root, filepath.Join(mount, self))
	}
	return root, mount, nil
}
