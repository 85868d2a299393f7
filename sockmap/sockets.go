// SPDX-License-Identifier: Apache-2.0

package sockmap

import (
	"fmt"
	"net/netip"
	"syscall"

	"github.com/cilium/ebpf"

	"github.com/meshproxy/meshproxy/bpf"
)

// OwnSocket marks a socket as the proxy's own: its connections are never
// captured, and it may be bound to the proxy's ports.
func (c *Capture) OwnSocket(fd int) error {
	if m := c.marker.Load(); m != nil {
		return (*m)(fd, netip.AddrPort{})
	}
	return c.mark(fd, bpf.CaptureSocket{Flags: bpf.CaptureSocketFlagsSOCKET_OWN})
}

// OwnSocketWithSource marks a TCP socket as OwnSocket does, and makes a server
// of this node that it connects to see client in accept and getpeername. It
// must be called before connect(2).
func (c *Capture) OwnSocketWithSource(fd int, client netip.AddrPort) error {
	if m := c.marker.Load(); m != nil {
		return (*m)(fd, client)
	}
	flags := bpf.CaptureSocketFlagsSOCKET_OWN | bpf.CaptureSocketFlagsSOCKET_SOURCE
	if c.HasHops() {
		flags |= bpf.CaptureSocketFlagsSOCKET_HOP
	}
	return c.mark(fd, bpf.CaptureSocket{Flags: flags, Address: toAddress(client)})
}

// OthersSocket marks a socket of the process before as OwnSocket does, or, with
// a client, as OwnSocketWithSource. That process looks after hops in state of its
// own, so none is made of it.
func (c *Capture) OthersSocket(fd int, client netip.AddrPort) error {
	if !client.IsValid() {
		return c.OwnSocket(fd)
	}
	return c.mark(fd, bpf.CaptureSocket{
		Flags:   bpf.CaptureSocketFlagsSOCKET_OWN | bpf.CaptureSocketFlagsSOCKET_SOURCE,
		Address: toAddress(client),
	})
}

func (c *Capture) mark(fd int, s bpf.CaptureSocket) error {
	if err := c.kernel.maps[bpf.CaptureMapSockets].Update(uint32(fd), s, ebpf.UpdateAny); err != nil {
		return fmt.Errorf("mark own socket: %w", err)
	}
	return nil
}

// Control has the shape of net.Dialer.Control and net.ListenConfig.Control and
// calls OwnSocket.
func (c *Capture) Control(_, _ string, conn syscall.RawConn) error {
	var mark error
	if err := conn.Control(func(fd uintptr) { mark = c.OwnSocket(int(fd)) }); err != nil {
		return err
	}
	return mark
}

// ControlWithSource returns a net.Dialer.Control that calls
// OwnSocketWithSource.
func (c *Capture) ControlWithSource(client netip.AddrPort) func(network, address string, conn syscall.RawConn) error {
	return func(_, _ string, conn syscall.RawConn) error {
		var mark error
		if err := conn.Control(func(fd uintptr) { mark = c.OwnSocketWithSource(int(fd), client) }); err != nil {
			return err
		}
		return mark
	}
}
