// SPDX-License-Identifier: Apache-2.0

package testnet

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// gatewayAddrs are those that a host has on every container link.
func (h *Host) gatewayAddrs() []netip.Prefix {
	return []netip.Prefix{
		netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 77, byte(h.index), 1}), 32),
		netip.PrefixFrom(netip.MustParseAddr(fmt.Sprintf("fd00:77:%x::1", h.index)), 128),
	}
}

// containerNets are the networks of a host's containers.
func (h *Host) containerNets() []netip.Prefix {
	return []netip.Prefix{
		netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 77, byte(h.index), 0}), 24),
		netip.MustParsePrefix(fmt.Sprintf("fd00:77:%x::/64", h.index)),
	}
}

func (h *Host) wireAddrs() []netip.Prefix {
	return []netip.Prefix{netip.PrefixFrom(h.Addr4(), 24), netip.PrefixFrom(h.Addr6(), 64)}
}

// joinPair connects two hosts directly.
func joinPair(a, b *Host) error {
	if err := addVeth(a.Namespace, WireLink, b.Namespace, WireLink); err != nil {
		return err
	}
	hosts := []*Host{a, b}
	for _, h := range hosts {
		if err := configureHost(h, hosts); err != nil {
			return err
		}
	}
	return nil
}

// joinBridge connects hosts through a bridge that lies in wire.
func joinBridge(wire *Namespace, hosts []*Host) error {
	const bridge = "bridge0"
	err := wire.Do(func() error {
		if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: bridge}}); err != nil {
			return fmt.Errorf("add bridge: %w", err)
		}
		return linkUp(bridge)
	})
	if err != nil {
		return err
	}
	for _, h := range hosts {
		port := fmt.Sprintf("port%d", h.index)
		if err := addVeth(h.Namespace, WireLink, wire, port); err != nil {
			return err
		}
		err := wire.Do(func() error {
			l, err := netlink.LinkByName(port)
			if err != nil {
				return fmt.Errorf("find bridge port: %w", err)
			}
			b, err := netlink.LinkByName(bridge)
			if err != nil {
				return fmt.Errorf("find bridge: %w", err)
			}
			if err := netlink.LinkSetMaster(l, b); err != nil {
				return fmt.Errorf("add bridge port: %w", err)
			}
			return linkUp(port)
		})
		if err != nil {
			return err
		}
		if err := configureHost(h, hosts); err != nil {
			return err
		}
	}
	return nil
}

// addVeth makes a veth pair with an end in each namespace. It is made inside,
// so that its names need only be unique there.
func addVeth(a *Namespace, nameA string, b *Namespace, nameB string) error {
	return a.Do(func() error {
		veth := &netlink.Veth{
			LinkAttrs:     netlink.LinkAttrs{Name: nameA},
			PeerName:      nameB,
			PeerNamespace: netlink.NsFd(b.nsFD),
		}
		if err := netlink.LinkAdd(veth); err != nil {
			return fmt.Errorf("add veth %s: %w", nameA, err)
		}
		return nil
	})
}

// SetLink sets a link of the namespace up or down. A host whose WireLink is
// down is gone for the others: nothing answers, nothing is refused. Its
// addresses stay, and the routes that go with it are put back when it comes up
// again.
func (n *Namespace) SetLink(name string, up bool) error {
	return n.Do(func() error {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return fmt.Errorf("find link %s: %w", name, err)
		}
		if !up {
			if n.down == nil {
				n.down = map[string][]netlink.Route{}
			}
			if n.down[name], err = netlink.RouteList(l, netlink.FAMILY_ALL); err != nil {
				return fmt.Errorf("list routes: %w", err)
			}
			if err := netlink.LinkSetDown(l); err != nil {
				return fmt.Errorf("set link %s down: %w", name, err)
			}
			return nil
		}
		if err := linkUp(name); err != nil {
			return err
		}
		for _, r := range n.down[name] {
			if err := netlink.RouteReplace(&r); err != nil && r.Protocol != unix.RTPROT_KERNEL {
				return fmt.Errorf("put back route to %s: %w", r.Dst, err)
			}
		}
		delete(n.down, name)
		return nil
	})
}

// configureHost gives a host its addresses, lets it forward for its
// containers, and routes to those of the others.
func configureHost(h *Host, all []*Host) error {
	return h.Do(func() error {
		if err := hostSysctls(); err != nil {
			return err
		}
		if err := setAddrs(WireLink, h.wireAddrs()); err != nil {
			return err
		}
		for _, other := range all {
			if other == h {
				continue
			}
			via := []netip.Addr{other.Addr4(), other.Addr6()}
			for i, dst := range other.containerNets() {
				if err := addRoute(WireLink, dst, via[i]); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

// joinContainer connects a container to its host as many container networks
// do: the host's end has the same address on every link, and there is one
// route per container.
func joinContainer(h *Host, c *Container) error {
	const link = "eth0"
	if err := addVeth(h.Namespace, c.Link(), c.Namespace, link); err != nil {
		return err
	}
	own := []netip.Prefix{netip.PrefixFrom(c.Addr4(), 32), netip.PrefixFrom(c.Addr6(), 128)}
	err := h.Do(func() error {
		if err := setAddrs(c.Link(), h.gatewayAddrs()); err != nil {
			return err
		}
		for _, p := range own {
			if err := addRoute(c.Link(), p, netip.Addr{}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return c.Do(func() error {
		if err := hostSysctls(); err != nil {
			return err
		}
		if err := setAddrs(link, own); err != nil {
			return err
		}
		for _, gateway := range h.gatewayAddrs() {
			if err := addRoute(link, gateway, netip.Addr{}); err != nil {
				return err
			}
			everywhere, err := gateway.Addr().Prefix(0)
			if err != nil {
				return err
			}
			if err := addRoute(link, everywhere, gateway.Addr()); err != nil {
				return err
			}
		}
		return nil
	})
}

func hostSysctls() error {
	for _, s := range [][2]string{
		{"net/ipv4/ip_forward", "1"},
		{"net/ipv6/conf/all/disable_ipv6", "0"},
		{"net/ipv6/conf/default/disable_ipv6", "0"},
		{"net/ipv6/conf/all/forwarding", "1"},
		// Addresses are usable at once, and stay when a link goes down.
		{"net/ipv6/conf/all/keep_addr_on_down", "1"},
		{"net/ipv6/conf/default/keep_addr_on_down", "1"},
		{"net/ipv6/conf/all/accept_dad", "0"},
		{"net/ipv6/conf/default/accept_dad", "0"},
	} {
		if err := writeSysctl(s[0], s[1]); err != nil {
			return err
		}
	}
	return nil
}

// setAddrs gives a link of the calling thread's namespace its addresses and
// sets it up.
func setAddrs(link string, addrs []netip.Prefix) error {
	l, err := netlink.LinkByName(link)
	if err != nil {
		return fmt.Errorf("find link %s: %w", link, err)
	}
	if err := netlink.LinkSetUp(l); err != nil {
		return fmt.Errorf("set link %s up: %w", link, err)
	}
	for _, p := range addrs {
		addr := &netlink.Addr{IPNet: ipNet(p), Flags: unix.IFA_F_NODAD}
		if err := netlink.AddrAdd(l, addr); err != nil {
			return fmt.Errorf("add address %s to %s: %w", p, link, err)
		}
	}
	return nil
}

// addRoute adds a route in the calling thread's namespace; an invalid gateway
// means that dst is on the link itself.
func addRoute(link string, dst netip.Prefix, gateway netip.Addr) error {
	l, err := netlink.LinkByName(link)
	if err != nil {
		return fmt.Errorf("find link %s: %w", link, err)
	}
	r := &netlink.Route{LinkIndex: l.Attrs().Index, Dst: ipNet(dst)}
	if gateway.IsValid() {
		r.Gw = gateway.AsSlice()
	} else {
		r.Scope = netlink.SCOPE_LINK
	}
	if err := netlink.RouteAdd(r); err != nil {
		return fmt.Errorf("add route to %s by %s: %w", dst, link, err)
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
