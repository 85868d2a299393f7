// SPDX-License-Identifier: Apache-2.0

package testnet

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// tcpListen is TCP_LISTEN of the kernel's include/net/tcp_states.h.
const tcpListen = 10

// pollInterval is how often a condition is looked at that the kernel doesn't
// announce.
const pollInterval = 2 * time.Millisecond

// Until calls condition until it holds, and returns its last error when the
// context ends first. It is for what can only be asked, not waited for.
func Until(ctx context.Context, condition func() error) error {
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		err := condition()
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", ctx.Err(), err)
		}
	}
}

// WaitListen waits until a TCP listener of the namespace has the given port
// and address, or the unspecified one. It asks the kernel (INET_DIAG) and
// makes no connection.
func (n *Namespace) WaitListen(ctx context.Context, addr netip.AddrPort) error {
	err := Until(ctx, func() error {
		all, err := n.Listeners()
		if err != nil {
			return err
		}
		for _, l := range all {
			if l.Port() == addr.Port() && (l.Addr() == addr.Addr() || l.Addr().IsUnspecified()) {
				return nil
			}
		}
		return fmt.Errorf("nothing listens on %s", addr)
	})
	if err != nil {
		return fmt.Errorf("wait for listener on %s: %w", n.name, err)
	}
	return nil
}

// Listeners returns the addresses of all TCP listeners of the namespace.
func (n *Namespace) Listeners() (addrs []netip.AddrPort, err error) {
	err = n.Do(func() error {
		for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
			sockets, err := netlink.SocketDiagTCP(family)
			if err != nil {
				return fmt.Errorf("list sockets: %w", err)
			}
			for _, s := range sockets {
				if s.State != tcpListen {
					continue
				}
				ip, ok := netip.AddrFromSlice(net.IP(s.ID.Source))
				if ok {
					addrs = append(addrs, netip.AddrPortFrom(ip.Unmap(), s.ID.SourcePort))
				}
			}
		}
		return nil
	})
	return addrs, err
}
