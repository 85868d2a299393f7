// SPDX-License-Identifier: Apache-2.0

package sockmap

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/cilium/ebpf"

	"github.com/meshproxy/meshproxy/bpf"
	"github.com/meshproxy/meshproxy/discovery/mesh"
	"github.com/meshproxy/meshproxy/sockmap/sockdiag"
)

// Connections between workloads of this node that go without the proxy: who
// may make them, which there are, and how one is closed.

func (c *Capture) planLocals(d *Destination) (value bpf.CaptureLocals, err error) {
	if d.OnlyLocal && len(d.Locals) <= MaxLocals {
		value.Only = 1
	}
	for _, l := range d.Locals[:min(len(d.Locals), MaxLocals)] {
		id, err := c.names.assign(kindWorkload, l.Workload)
		if err != nil {
			return value, fmt.Errorf("workload %s: %w", l.Workload, err)
		}
		value.At[value.Count] = bpf.CaptureLocal{Netns: c.netnsOf(l), Workload: id, Address: toAddress(l.Addr)}
		value.Count++
	}
	return value, nil
}

func (c *Capture) planAccess(p *plan, a *Access) error {
	id, err := c.names.assign(kindWorkload, a.Source)
	if err != nil {
		return fmt.Errorf("workload %s: %w", a.Source, err)
	}
	if a.Verdict == Ask {
		return nil
	}
	key := bpf.CaptureAccessKey{Netns: c.netnsOf(a.Local), Workload: id, Address: toAddress(a.Local.Addr)}
	p.accesses[key] = bpf.CaptureAccess(a.Verdict)
	return nil
}

func (c *Capture) netnsOf(l Local) uint64 {
	if l.NetNS == 0 {
		return c.ownNetNS
	}
	return l.NetNS
}

// DirectConnection is one that goes without the proxy, spliced or not.
type DirectConnection struct {
	// Cookie is that of the client's socket.
	Cookie   uint64
	Source   mesh.Name
	Service  mesh.Name
	Endpoint Local
	// Client and Dialled are what the client's socket has as its address, and
	// what it asked for.
	Client, Dialled netip.AddrPort
	Established     bool
	// Spliced says that it began so, and that its client doesn't block; an end may
	// have turned to TCP since.
	Spliced bool
	// Sent is what the source has sent, but for the last 64 KiB or less, and
	// of what was never spliced only when it is closed.
	Sent, Received uint64
	// Age is the time since connect(2).
	Age time.Duration

	netns uint64 // of the client
	ipv6  bool
}

// DirectConnections lists what is open or being opened.
func (c *Capture) DirectConnections() ([]DirectConnection, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, ErrClosed
	}
	now, err := monotonic()
	if err != nil {
		return nil, err
	}
	raw, err := contents[uint64, bpf.CaptureDirect](c.kernel.maps[bpf.CaptureMapDirects])
	if err != nil {
		return nil, err
	}
	list := make([]DirectConnection, 0, len(raw))
	for cookie, d := range raw {
		if d.Closed == 0 && d.Workload != 0 { // else the self-test's
			list = append(list, c.directConnection(cookie, &d, now))
		}
	}
	return list, nil
}

func (c *Capture) directConnection(cookie uint64, d *bpf.CaptureDirect, now uint64) DirectConnection {
	has := func(f bpf.CaptureDirectFlags) bool { return d.Flags&f != 0 }
	return DirectConnection{
		Cookie: cookie, Source: c.names.name(d.Workload), Service: c.names.name(d.Service),
		Endpoint: Local{Addr: fromAddress(d.Remote), Workload: c.names.name(d.Endpoint), NetNS: d.EndpointNetns},
		Client:   fromAddress(d.Local), Dialled: fromAddress(d.Dialled),
		Established: has(bpf.CaptureDirectFlagsDIRECT_ESTABLISHED),
		Spliced:     has(bpf.CaptureDirectFlagsDIRECT_SPLICED),
		Sent:        d.Sent, Received: d.Received,
		Age:   time.Duration(now - min(now, d.Opened)),
		netns: d.Netns, ipv6: has(bpf.CaptureDirectFlagsDIRECT_IPV6),
	}
}

// ReportDirect says whether *DirectOpened and *DirectClosed events are wanted for
// each direct connection.
func (c *Capture) ReportDirect(wanted bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.usable(); err != nil {
		return err
	}
	c.node.Reports = flag(wanted)
	return nil
}

// CloseDirect closes a connection: its client gets ECONNABORTED, its server a
// reset, or the other way round if the client's namespace is not attached. The error wraps sockdiag.ErrGone when it is not there, or not yet: a
// connection that has not sent its SYN can't be closed, and is listed again.
func (c *Capture) CloseDirect(d *DirectConnection) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return ErrClosed
	}
	err := c.closeIn(d.netns, func(s *sockdiag.Socket) error {
		return s.Destroy(&sockdiag.Connection{Local: d.Client, Remote: d.Endpoint.Addr, IPv6: d.ipv6, Cookie: d.Cookie})
	})
	if errors.Is(err, ErrUnknownNetNS) {
		// No workload is there any more. The other end's is still known.
		return c.closeIn(d.Endpoint.NetNS, func(s *sockdiag.Socket) error { return destroyServer(s, d) })
	}
	return err
}

func (c *Capture) closeIn(netns uint64, destroy func(*sockdiag.Socket) error) error {
	ns := c.namespaces[netns]
	if ns == nil || ns.fd == nil {
		return ErrUnknownNetNS
	}
	s, err := sockdiag.OpenBy(c.opts.Namespaces, ns.entry())
	if err != nil {
		return fmt.Errorf("close connection: %w", err)
	}
	defer s.Close()
	return destroy(s)
}

// destroyServer closes a connection at its server, whose cookie nobody has noted.
func destroyServer(s *sockdiag.Socket, d *DirectConnection) error {
	ends, err := s.Connections(sockdiag.Filter{
		Local: whole(d.Endpoint.Addr), LocalPort: d.Endpoint.Addr.Port(), Remote: whole(d.Client), RemotePort: d.Client.Port(),
	})
	if err != nil {
		return err
	}
	if len(ends) == 0 {
		return sockdiag.ErrGone
	}
	return s.Destroy(&ends[0])
}

func whole(a netip.AddrPort) netip.Prefix { return netip.PrefixFrom(a.Addr(), a.Addr().BitLen()) }

// forgetNames forgets the names that are in use no more. A direct connection may
// outlive the workloads and the service that it belongs to.
func (c *Capture) forgetNames(inUse map[uint32]bool) error {
	if !c.names.strange(inUse) {
		return nil
	}
	raw, err := contents[uint64, bpf.CaptureDirect](c.kernel.maps[bpf.CaptureMapDirects])
	if err != nil {
		return err
	}
	for _, d := range raw {
		inUse[d.Workload], inUse[d.Service], inUse[d.Endpoint] = true, true, true
	}
	return c.names.retain(inUse)
}

// undialled is when a connection that never sent a SYN (there was no route, or
// the process died in between) is forgotten, and one whose server does not close
// its end.
const undialled = time.Minute

// sweepDirects removes what the kernel has no event for.
func (c *Capture) sweepDirects() error {
	m := c.kernel.maps[bpf.CaptureMapDirects]
	now, err := monotonic()
	if err != nil {
		return err
	}
	raw, err := contents[uint64, bpf.CaptureDirect](m)
	if err != nil {
		return err
	}
	for cookie, d := range raw {
		if d.Flags&bpf.CaptureDirectFlagsDIRECT_ADDRESSED != 0 && d.Closed == 0 || d.Opened+uint64(undialled) > now {
			continue
		}
		if err := m.Delete(cookie); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("delete connection: %w", err)
		}
	}
	return nil
}

// Traffic is what went from a workload to a service without the proxy. Bytes
// are added as they go, in steps of up to 64 KiB, and when an end closes.
type Traffic struct {
	Source, Service mesh.Name
	Opened, Closed  uint64
	// Spliced are those of Opened that began spliced; one whose client turned out
	// to block counts among Fallbacks as well.
	Spliced uint64
	// Sent is what the source sent.
	Sent, Received uint64
	// Redirected is how much of both did not go by TCP.
	Redirected uint64
	// Fallbacks counts how often an end of a connection, which has two, began
	// to send by TCP.
	Fallbacks map[Fallback]uint64
}

// Fallback says why an end of a connection sends by TCP.
type Fallback uint32

// The fallbacks.
const (
	FallbackPeer     = Fallback(bpf.CaptureFallbackFALLBACK_PEER)
	FallbackMemory   = Fallback(bpf.CaptureFallbackFALLBACK_MEMORY)
	FallbackPaused   = Fallback(bpf.CaptureFallbackFALLBACK_PAUSED)
	FallbackWorkload = Fallback(bpf.CaptureFallbackFALLBACK_WORKLOAD)
	FallbackBlocking = Fallback(bpf.CaptureFallbackFALLBACK_BLOCKING)
	FallbackFull     = Fallback(bpf.CaptureFallbackFALLBACK_FULL)
	FallbackClosing  = Fallback(bpf.CaptureFallbackFALLBACK_CLOSING)
	FallbackOptions  = Fallback(bpf.CaptureFallbackFALLBACK_OPTIONS)
	FallbackReader   = Fallback(bpf.CaptureFallbackFALLBACK_READER)
)

var fallbacks = map[Fallback]string{
	FallbackPeer:     "other end is not there",
	FallbackMemory:   "receiver does not keep up",
	FallbackPaused:   "splicing is off",
	FallbackWorkload: "off for the workload",
	FallbackBlocking: "socket may block",
	FallbackFull:     "too many spliced connections",
	FallbackClosing:  "connection is closing",
	FallbackOptions:  "socket has options that only TCP knows",
	FallbackReader:   "reader is not known yet, or uses splice(2)",
}

func (f Fallback) String() string {
	if s, ok := fallbacks[f]; ok {
		return s
	}
	return fmt.Sprintf("fallback %d", uint32(f))
}

// traffic sums the counters of all CPUs.
func (c *Capture) traffic() (list []Traffic, err error) {
	var (
		k    bpf.CaptureTrafficKey
		cpus []bpf.CaptureTraffic
		m    = c.kernel.maps[bpf.CaptureMapTraffic]
		it   = m.Iterate()
	)
	for it.Next(&k, &cpus) {
		t := Traffic{Source: c.names.name(k.Workload), Service: c.names.name(k.Service), Fallbacks: make(map[Fallback]uint64)}
		for _, cpu := range cpus {
			t.Opened += cpu.Opened
			t.Closed += cpu.Closed
			t.Spliced += cpu.Spliced
			t.Sent += cpu.Sent
			t.Received += cpu.Received
			t.Redirected += cpu.Redirected
			for why, n := range cpu.Fallbacks {
				if n > 0 {
					t.Fallbacks[Fallback(why)] += n
				}
			}
		}
		if k.Workload != 0 { // else the self-test's
			list = append(list, t)
		}
	}
	if err := it.Err(); err != nil && !errors.Is(err, ebpf.ErrIterationAborted) {
		return nil, fmt.Errorf("read %s: %w", m, err)
	}
	return list, nil
}
