// SPDX-License-Identifier: Apache-2.0

package testnet

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// syncEtherType marks the frame by which Sync finds out how far a capture is:
// "local experimental 1" of IEEE 802.
const syncEtherType = 0x88b5

// Capture sees every packet of one link, in both directions.
//
// It looks for markers: strings that are searched in the payload of each
// flow, also where one spans two packets. What is seen isn't kept, so that a
// capture may run as long as it likes.
type Capture struct {
	ns      *Namespace
	link    string
	fd      int // receives; non-blocking, owned by file
	file    *os.File
	sender  int
	index   int
	markers [][]byte
	done    chan struct{}

	mu      sync.Mutex
	flows   map[flowKey]*Flow
	found   []uint64 // per marker
	packets uint64
	bytes   uint64
	sync    uint64 // the last synchronization frame seen
	sent    uint64 // the last one sent
	synced  chan struct{}
	stopped bool
	dropped uint64
}

// StartCapture captures on a link of the namespace and looks for markers.
func (n *Namespace) StartCapture(link string, markers ...string) (*Capture, error) {
	c := &Capture{
		ns:     n,
		link:   link,
		done:   make(chan struct{}),
		flows:  map[flowKey]*Flow{},
		found:  make([]uint64, len(markers)),
		synced: make(chan struct{}),
	}
	for _, m := range markers {
		if m == "" {
			return nil, errors.New("start capture: empty marker")
		}
		c.markers = append(c.markers, []byte(m))
	}
	if err := n.Do(c.open); err != nil {
		return nil, fmt.Errorf("start capture on %s %s: %w", n.name, link, err)
	}
	go c.read()
	n.topology.mu.Lock()
	n.topology.captures = append(n.topology.captures, c)
	n.topology.mu.Unlock()
	return c, nil
}

func (c *Capture) open() error {
	iface, err := net.InterfaceByName(c.link)
	if err != nil {
		return fmt.Errorf("find link: %w", err)
	}
	c.index = iface.Index
	c.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("open packet socket: %w", err)
	}
	c.file = os.NewFile(uintptr(c.fd), "capture")
	c.sender, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		_ = c.file.Close()
		return fmt.Errorf("open packet socket: %w", err)
	}
	// A large buffer, because a packet that is dropped here is a marker that
	// isn't found.
	_ = unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20)
	addr := &unix.SockaddrLinklayer{Protocol: bigEndian16(unix.ETH_P_ALL), Ifindex: c.index}
	if err := unix.Bind(c.fd, addr); err != nil {
		_, _ = c.file.Close(), unix.Close(c.sender)
		return fmt.Errorf("bind packet socket: %w", err)
	}
	return nil
}

func bigEndian16(v uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, v))
}

func (c *Capture) read() {
	defer close(c.done)
	// With segmentation offload a veth carries packets of up to 64 KiB, and
	// more with BIG TCP.
	buf := make([]byte, 512<<10)
	for {
		n, err := c.file.Read(buf)
		if err != nil {
			return
		}
		c.mu.Lock()
		c.frame(buf[:n])
		c.mu.Unlock()
	}
}

func (c *Capture) frame(b []byte) {
	if len(b) < 14 {
		return
	}
	if binary.BigEndian.Uint16(b[12:]) == syncEtherType {
		// Another capture on this link may send some too.
		if len(b) >= 32 && binary.BigEndian.Uint64(b[14:]) == uint64(os.Getpid()) && binary.BigEndian.Uint32(b[22:]) == uint32(c.fd) {
			c.sync = uint64(binary.BigEndian.Uint32(b[26:]))
			close(c.synced)
			c.synced = make(chan struct{})
		}
		return
	}
	c.packets++
	c.bytes += uint64(len(b))
	key, payload, ok := parseFrame(b)
	if !ok {
		return
	}
	f := c.flows[key]
	if f == nil {
		f = &Flow{Protocol: key.protocol, Source: key.source, Destination: key.destination}
		c.flows[key] = f
	}
	f.Packets++
	f.Bytes += uint64(len(payload))
	c.search(f, payload)
}

// search looks for the markers in what a flow has carried. A few bytes of the
// packet before are kept for markers that straddle two. Retransmissions and
// packets out of order, which veth doesn't have without a queueing
// discipline, can only hide a marker that straddles.
func (c *Capture) search(f *Flow, payload []byte) {
	if len(payload) == 0 {
		return
	}
	longest := 0
	for _, m := range c.markers {
		longest = max(longest, len(m))
	}
	for i, m := range c.markers {
		c.found[i] += countAcross(f.tail, payload, m)
	}
	f.tail = append(f.tail, payload[max(0, len(payload)-longest):]...)
	f.tail = f.tail[max(0, len(f.tail)-longest):]
}

// Sync waits until every packet is counted that was on the link before.
func (c *Capture) Sync(ctx context.Context) error {
	frame := make([]byte, 60)
	c.mu.Lock()
	c.sent++
	want := c.sent
	binary.BigEndian.PutUint16(frame[12:], syncEtherType)
	binary.BigEndian.PutUint64(frame[14:], uint64(os.Getpid()))
	binary.BigEndian.PutUint32(frame[22:], uint32(c.fd))
	binary.BigEndian.PutUint32(frame[26:], uint32(want))
	stopped := c.stopped
	c.mu.Unlock()
	if stopped {
		return nil
	}
	// From a socket of its own: a packet socket doesn't see what it sends.
	if err := unix.Sendto(c.sender, frame, 0, &unix.SockaddrLinklayer{Ifindex: c.index, Halen: 6}); err != nil {
		return fmt.Errorf("synchronize capture: %w", err)
	}
	for {
		c.mu.Lock()
		seen, synced := c.sync, c.synced
		c.mu.Unlock()
		if seen >= want {
			return nil
		}
		select {
		case <-synced:
		case <-c.done:
			return nil
		case <-ctx.Done():
			return fmt.Errorf("synchronize capture: %w", ctx.Err())
		}
	}
}

// Stop ends the capture; its counters stay readable.
func (c *Capture) Stop() {
	c.mu.Lock()
	if c.stopped {
		c.mu.Unlock()
		<-c.done
		return
	}
	c.dropped += c.readDrops()
	c.stopped = true
	c.mu.Unlock()
	_ = c.file.Close()
	<-c.done
	_ = unix.Close(c.sender)
}

// readDrops asks the kernel, which forgets the number when it tells it.
func (c *Capture) readDrops() uint64 {
	stats, err := unix.GetsockoptTpacketStats(c.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
	if err != nil {
		return 0
	}
	return uint64(stats.Drops)
}

// Contains returns how often a marker was seen. The marker must be one of
// those that the capture was started with.
func (c *Capture) Contains(marker string) uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, m := range c.markers {
		if string(m) == marker {
			return c.found[i]
		}
	}
	panic(fmt.Sprintf("testnet: capture doesn't look for marker %q", marker))
}

// Totals returns what was seen, and how many packets were lost because the
// capture was too slow: "a marker is absent" is only true when that is 0.
func (c *Capture) Totals() (packets, bytes, dropped uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.stopped {
		c.dropped += c.readDrops()
	}
	return c.packets, c.bytes, c.dropped
}

// Flows returns the flows seen so far for which keep returns true.
func (c *Capture) Flows(keep func(Flow) bool) []Flow {
	c.mu.Lock()
	defer c.mu.Unlock()
	var flows []Flow
	for _, f := range c.flows {
		if keep(*f) {
			flows = append(flows, *f)
		}
	}
	return flows
}
