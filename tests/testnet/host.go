// SPDX-License-Identifier: Apache-2.0

package testnet

import (
	"fmt"
	"net/netip"
	"path/filepath"
)

// WireLink is the name of the link by which a host reaches the others.
const WireLink = "wire0"

// Host is a machine of a topology.
type Host struct {
	*Namespace
	index      int
	bpffs      string
	containers int
}

// Addr4 returns the host's IPv4 address.
func (h *Host) Addr4() netip.Addr { return netip.AddrFrom4([4]byte{10, 77, 0, byte(h.index)}) }

// Addr6 returns the host's IPv6 address.
func (h *Host) Addr6() netip.Addr {
	return netip.MustParseAddr(fmt.Sprintf("fd00:77::%x", h.index))
}

// BPFFS returns the path of the host's own bpffs, the same inside and outside.
func (h *Host) BPFFS() string { return h.bpffs }

// Container is a network namespace behind a host, with a cgroup below the
// host's, as a container engine makes them.
type Container struct {
	*Namespace
	host  *Host
	index int
}

// Container makes a container on the host. It reaches other hosts and
// containers through the host, which forwards without translating addresses.
func (h *Host) Container(name string) (*Container, error) {
	t := h.topology
	t.mu.Lock()
	h.containers++
	index := h.containers
	t.mu.Unlock()
	n, err := newNamespace(t, name, filepath.Join(h.dir, name), h.Cgroup(name))
	if err != nil {
		return nil, err
	}
	t.mu.Lock()
	t.others = append(t.others, n)
	t.mu.Unlock()
	c := &Container{Namespace: n, host: h, index: index}
	if err := joinContainer(h, c); err != nil {
		return nil, fmt.Errorf("join container %s: %w", name, err)
	}
	return c, nil
}

// Host returns the host that the container is on.
func (c *Container) Host() *Host { return c.host }

// Addr4 returns the container's IPv4 address.
func (c *Container) Addr4() netip.Addr {
	return netip.AddrFrom4([4]byte{10, 77, byte(c.host.index), byte(10 + c.index)})
}

// Addr6 returns the container's IPv6 address.
func (c *Container) Addr6() netip.Addr {
	return netip.MustParseAddr(fmt.Sprintf("fd00:77:%x::%x", c.host.index, 10+c.index))
}

// Link returns the name of the host's end of the container's link.
func (c *Container) Link() string { return fmt.Sprintf("cont%d", c.index) }
