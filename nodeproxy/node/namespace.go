// SPDX-License-Identifier: Apache-2.0

package node

import (
	"fmt"
	"net/netip"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/meshproxy/meshproxy/nodeproxy/loop"
	"github.com/meshproxy/meshproxy/sockmap/netns"
	"github.com/meshproxy/meshproxy/sockmap/sockdiag"
)

// namespace is a network namespace with workloads in it, and the proxy's
// listeners there. The node's own is one of them.
type namespace struct {
	cookie    uint64
	handle    *netns.Handle
	listeners *listeners
	accepting []func() // each stops accepting on one loop
	resolving []func() // each stops a socket of the resolver
	own       bool
	way       netns.Opener
	sources   sources
	diagMu    sync.Mutex
	diag      *sockdiag.Socket // for sockets
}

// fd returns what packages netns and loop take for the namespace.
func (n *namespace) fd() int {
	if n.own {
		return netns.Own
	}
	return n.handle.FD()
}

// socket makes a socket in the namespace.
func (n *namespace) socket(to netip.Addr) (int, error) {
	if n.own {
		return loop.Socket(to)
	}
	fd, err := n.way.Socket(n.fd(), familyOf(to), unix.SOCK_STREAM, 0)
	if err != nil {
		return -1, err
	}
	// As loop.Socket does: small messages must not wait for the ACK of the
	// one before.
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	return fd, nil
}

func familyOf(a netip.Addr) int {
	if a.Is6() {
		return unix.AF_INET6
	}
	return unix.AF_INET
}

// source returns the true source of a client: the address that it bound, or,
// where it left the choice to the kernel and so got loopback, the one that the
// kernel would have chosen without the mesh. family decides between IPv4 and
// IPv6, since a server can only be shown an address of its own.
func (n *namespace) source(client netip.AddrPort, family netip.Addr) netip.AddrPort {
	a := client.Addr().Unmap()
	if !a.IsLoopback() && a.Is4() == family.Is4() {
		return netip.AddrPortFrom(a, client.Port())
	}
	of := n.sources.towards(family)
	if !of.IsValid() {
		return netip.AddrPortFrom(a, client.Port())
	}
	return netip.AddrPortFrom(of, client.Port())
}

// close gives up what open has done; for a namespace whose processes are gone.
func (n *namespace) close() {
	for _, stop := range slices.Concat(n.accepting, n.resolving) {
		stop()
	}
	if n.listeners != nil {
		n.listeners.Close()
	}
	n.closeSockets()
	if n.handle == nil {
		return
	}
	if s, ok := n.way.(*stocked); ok && !n.own {
		s.forget(n.handle.Inode())
	}
	n.handle.Close()
}

var errNoNamespace = fmt.Errorf("network namespace is gone")
