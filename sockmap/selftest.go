// SPDX-License-Identifier: Apache-2.0

package sockmap

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/meshproxy/meshproxy/bpf"
)

// SelfTest is what became of splicing connections of our own, through the
// programs and maps that the workloads' connections take.
type SelfTest struct {
	Ran, Passed bool
	Error       string
	// Accepted is how many bytes a receiver that does not read let its sender
	// send, per family.
	Accepted map[string]int
	Took     time.Duration
}

// slack is what a sender may get rid of, while nobody reads, beyond what the
// buffers of both ends hold. TCP's own bound is their sum; where the kernel does
// not charge the receiver (before d888b7af7c14) there is none.
const slack = 1 << 20

// patience bounds each step of the self-test.
const patience = patient(2 * time.Second)

// SocketFunc makes a TCP socket of a family.
type SocketFunc func(family int) (fd int, err error)

// TestSplice tests whether splicing keeps the order of the bytes, tells a reader
// how much there is and gives it all, holds back a sender, and closes one
// direction at a time; it turns splicing on if all of it does for IPv4 and IPv6.
// socket makes the sockets, in the namespace of the calling process and by a
// process below the capture's cgroup; nil means this process.
//
// The outcome is in Stats; the error is only about what kept it from being
// tested.
//
// The sockets are made non-blocking, as those of workloads are that are
// spliced.
func (c *Capture) TestSplice(socket SocketFunc) error {
	if socket == nil {
		socket = func(family int) (int, error) {
			return unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.usable(); err != nil {
		return err
	}
	if !c.splicing.Loaded {
		return fmt.Errorf("%w: %s", ErrNoSplice, c.splicing.Reason)
	}
	if c.node.Splicing == bpf.CaptureSplicingSPLICING_OFF {
		c.node.Splicing = bpf.CaptureSplicingSPLICING_TEST
	}
	start := time.Now()
	test := SelfTest{Ran: true, Accepted: make(map[string]int)}
	var errs []error
	for _, f := range []struct {
		name string
		addr string
	}{{"IPv4", "127.0.0.1:0"}, {"IPv6", "[::1]:0"}} {
		n, err := c.testFamily(socket, netip.MustParseAddrPort(f.addr))
		if errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EADDRNOTAVAIL) {
			continue // the node has no IPv6
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", f.name, err))
		}
		test.Accepted[f.name] = n
	}
	if err := errors.Join(errs...); err != nil {
		test.Error = err.Error()
	}
	test.Passed = test.Error == "" && len(test.Accepted) > 0
	test.Took = time.Since(start)
	c.splicing.Test = test
	c.setSplicing()
	return nil
}

func (c *Capture) testFamily(socket SocketFunc, at netip.AddrPort) (accepted int, err error) {
	p, err := c.testPair(socket, at)
	if err != nil {
		return 0, err
	}
	defer p.close()
	if err := p.converse(); err != nil {
		return 0, fmt.Errorf("order: %w", err)
	}
	if s, err := c.spliceOf(p.client); err != nil || s.Messages == 0 || s.Fallback != 0 {
		return 0, errors.New("the connection was not spliced: this process is not below the capture's cgroup, or the kernel refused")
	}
	if err := p.count(); err != nil {
		return 0, fmt.Errorf("FIONREAD: %w", err)
	}
	if err := p.mix(); err != nil {
		return 0, fmt.Errorf("turning to TCP: %w", err)
	}
	if s, err := c.spliceOf(p.client); err != nil || s.Fallback != 0 {
		return 0, errors.New("turning back from TCP: the kernel counts what was redirected as TCP's")
	}
	if accepted, err = p.flood(); err != nil {
		return accepted, fmt.Errorf("backpressure: %w", err)
	}
	if s, err := c.spliceOf(p.client); err != nil || s.Fallback != bpf.CaptureFallbackFALLBACK_MEMORY {
		return accepted, errors.New("backpressure: the receiver's charge can't be read")
	}
	if err := p.halfClose(); err != nil {
		return accepted, fmt.Errorf("half-close: %w", err)
	}
	return accepted, nil
}

// spliceOf reads the state of an end.
func (c *Capture) spliceOf(fd int) (s bpf.CaptureSplice, err error) {
	err = c.kernel.maps[bpf.CaptureMapSplices].Lookup(uint32(fd), &s)
	return s, err
}

// testPair connects two sockets as the mesh connects two workloads.
func (c *Capture) testPair(socket SocketFunc, at netip.AddrPort) (_ *testPair, err error) {
	family := unix.AF_INET6
	if at.Addr().Is4() {
		family = unix.AF_INET
	}
	p := &testPair{client: -1, server: -1}
	defer func() {
		if err != nil {
			p.close()
		}
	}()
	listener, err := socket(family)
	if err != nil {
		return nil, fmt.Errorf("make socket: %w", err)
	}
	defer unix.Close(listener)
	if p.client, err = socket(family); err != nil {
		return nil, fmt.Errorf("make socket: %w", err)
	}
	if err := c.OwnSocket(listener); err != nil {
		return nil, err
	}
	if err := unix.SetNonblock(p.client, true); err != nil {
		return nil, fmt.Errorf("set non-blocking: %w", err)
	}
	if p.forget, err = c.recordTest(p.client); err != nil {
		return nil, err
	}
	if err := unix.Bind(listener, toSockaddr(at)); err != nil {
		return nil, fmt.Errorf("bind: %w", err)
	}
	if err := unix.Listen(listener, 1); err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	to, err := unix.Getsockname(listener)
	if err != nil {
		return nil, fmt.Errorf("read address: %w", err)
	}
	// The accepting side looks for a flow only on ports that somebody guards.
	c.portFilter[portOf(to)] = 1
	if err := unix.Connect(p.client, to); err != nil && !errors.Is(err, unix.EINPROGRESS) {
		return nil, fmt.Errorf("connect: %w", err)
	}
	if err := patience.await(listener, unix.POLLIN); err != nil {
		return nil, fmt.Errorf("accept: %w", err)
	}
	if p.server, _, err = unix.Accept4(listener, unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK); err != nil {
		return nil, fmt.Errorf("accept: %w", err)
	}
	return p, nil
}

// recordTest does for a socket what connect(2) does for those of workloads.
func (c *Capture) recordTest(fd int) (forget func(), err error) {
	netns, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil {
		return nil, fmt.Errorf("read namespace cookie: %w", err)
	}
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
	if err != nil {
		return nil, fmt.Errorf("read cookie: %w", err)
	}
	err = c.mark(fd, bpf.CaptureSocket{
		Flags: bpf.CaptureSocketFlagsSOCKET_OWN | bpf.CaptureSocketFlagsSOCKET_DIRECT, Netns: netns,
	})
	if err != nil {
		return nil, err
	}
	directs := c.kernel.maps[bpf.CaptureMapDirects]
	if err := directs.Put(cookie, bpf.CaptureDirect{Netns: netns, EndpointNetns: netns}); err != nil {
		return nil, fmt.Errorf("record connection: %w", err)
	}
	return func() { _ = directs.Delete(cookie) }, nil
}

func toSockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
	}
	return &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port())}
}

func portOf(sa unix.Sockaddr) uint16 {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return uint16(sa.Port)
	case *unix.SockaddrInet6:
		return uint16(sa.Port)
	}
	return 0
}

type testPair struct {
	client, server int
	forget         func()
}

func (p *testPair) close() {
	if p.forget != nil {
		p.forget()
	}
	for _, fd := range []int{p.client, p.server} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
}

// converse sends messages of many sizes both ways.
func (p *testPair) converse() error {
	r := rand.New(rand.NewPCG(1, 2))
	for _, size := range []int{1, 64, 1 << 10, 4093, 16 << 10, 7, 60_000} {
		for _, way := range [][2]int{{p.client, p.server}, {p.server, p.client}} {
			message := make([]byte, size)
			for i := range message {
				message[i] = byte(r.Uint32())
			}
			if err := patience.write(way[0], message); err != nil {
				return fmt.Errorf("write %d bytes: %w", size, err)
			}
			if err := patience.expect(way[1], message); err != nil {
				return err
			}
		}
	}
	return nil
}

// count asks how much there is to read of a message that was redirected. Kernels
// before 929e30f93125 (7.0, and stable ones as 6.6.128 and 6.12.75) tell none of
// it. Somebody who goes by that, as nginx does after each full read, waits for an
// edge that doesn't come.
func (p *testPair) count() error {
	message := []byte("how much is this?")
	if err := patience.write(p.client, message); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	n, err := unix.IoctlGetInt(p.server, unix.TIOCINQ)
	if err != nil {
		return fmt.Errorf("ask: %w", err)
	}
	if n != len(message) {
		return fmt.Errorf("the kernel tells %d of %d bytes that were redirected", n, len(message))
	}
	return patience.expect(p.server, message)
}

// mix has data by TCP follow redirected data, and looks whether one read gets
// both: a reader may take less than it asked for to be all that there is, and
// wait. Then it redirects again, which the programs do only if the receiver's
// copied_seq tells what was read of TCP's data; before 2026 (6.19, and some
// stable kernels) it ran ahead, by what was redirected.
func (p *testPair) mix() error {
	redirected, byTCP := []byte("redirected, "), []byte("by TCP")
	if err := patience.write(p.client, redirected); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	before, err := received(p.server)
	if err != nil {
		return err
	}
	// To a socket that may block nothing is redirected.
	err = errors.Join(unix.SetNonblock(p.server, false), patience.write(p.client, byTCP), unix.SetNonblock(p.server, true))
	if err != nil {
		return fmt.Errorf("write: %w", err)
	}
	if err := patience.delivered(p.server, before+uint64(len(byTCP))); err != nil {
		return err
	}
	got := make([]byte, 64)
	n, err := unix.Read(p.server, got)
	if err != nil {
		return fmt.Errorf("read: %w", err)
	}
	if want := append(redirected, byTCP...); !bytes.Equal(got[:n], want) {
		return fmt.Errorf("a read gives %q of %q", got[:n], want)
	}
	again := []byte("redirected again")
	if err := patience.write(p.client, again); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	return patience.expect(p.server, again)
}

// flood sends until the sender is held back, and then reads everything.
func (p *testPair) flood() (accepted int, err error) {
	var sent []byte
	chunk := make([]byte, 16<<10)
	for most := 0; len(sent) <= most+slack; {
		for i := range chunk {
			chunk[i] = byte((len(sent) + i) * 131 >> 7)
		}
		n, err := unix.Write(p.client, chunk)
		if errors.Is(err, unix.EAGAIN) {
			break
		}
		if err != nil {
			return len(sent), fmt.Errorf("write: %w", err)
		}
		sent = append(sent, chunk[:n]...)
		if most, err = p.buffers(); err != nil {
			return len(sent), err
		}
	}
	most, err := p.buffers()
	if err != nil {
		return len(sent), err
	}
	if len(sent) > most+slack {
		return len(sent), fmt.Errorf("a receiver that does not read took %d bytes", len(sent))
	}
	return len(sent), patience.expect(p.server, sent)
}

// buffers is what the client's and the server's buffers may hold now; the
// former grows as TCP sends.
func (p *testPair) buffers() (int, error) {
	send, err := unix.GetsockoptInt(p.client, unix.SOL_SOCKET, unix.SO_SNDBUF)
	if err != nil {
		return 0, fmt.Errorf("read buffer size: %w", err)
	}
	receive, err := unix.GetsockoptInt(p.server, unix.SOL_SOCKET, unix.SO_RCVBUF)
	if err != nil {
		return 0, fmt.Errorf("read buffer size: %w", err)
	}
	return send + receive, nil
}

// halfClose ends one direction and uses the other.
func (p *testPair) halfClose() error {
	if err := unix.Shutdown(p.client, unix.SHUT_WR); err != nil {
		return fmt.Errorf("shut down: %w", err)
	}
	if n, err := patience.read(p.server, make([]byte, 1)); n != 0 || err != nil {
		return fmt.Errorf("read %d bytes at the end of stream: %w", n, err)
	}
	answer := []byte("answer")
	if _, err := unix.Write(p.server, answer); err != nil {
		return fmt.Errorf("write after the other end's shutdown: %w", err)
	}
	return patience.expect(p.client, answer)
}
