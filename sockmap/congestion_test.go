// SPDX-License-Identifier: Apache-2.0

package sockmap

import (
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/meshproxy/meshproxy/sockmap/netns"
)

// A namespace is born with the machine's default, cubic or BBR as a rule, and
// may be given only what is allowed to everybody: Reno is.

const defaultCongestion = "/proc/sys/net/ipv4/tcp_congestion_control"

// systemCongestion is the default in the world's namespace.
func (w *world) systemCongestion() (algorithm string) {
	w.t.Helper()
	if err := netns.Do(w.ns.FD(), func() error {
		text, err := os.ReadFile(defaultCongestion)
		algorithm = strings.TrimSpace(string(text))
		return err
	}); err != nil {
		w.t.Fatal(err)
	}
	return algorithm
}

func congestion(fd int) (string, error) {
	s, err := unix.GetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION)
	return strings.TrimRight(s, "\x00"), err
}

func wantCongestion(t *testing.T, whose string, fd int, want string) {
	t.Helper()
	if got, err := congestion(fd); err != nil || got != want {
		t.Errorf("%s: congestion control is %q, %v; want %q", whose, got, err, want)
	}
}

// TestCongestion: what stays within the node is not slowed down by what the
// system uses for what leaves it.
func TestCongestion(t *testing.T) {
	w := newHopWorld(t)
	for _, k := range hopKinds {
		h := w.hop(k)
		wantCongestion(t, k.name+", application", h.app, "reno")
		wantCongestion(t, k.name+", proxy", h.proxy, "reno")
	}
}

func TestCongestionDirect(t *testing.T) {
	w := newSplicing(t)
	for addr, at := range map[string]string{virtual4: direct4, virtual6: direct6} {
		p := w.pair(addr, at)
		wantCongestion(t, addr+", client", p.client, "reno")
		wantCongestion(t, addr+", server", p.server, "reno")
	}
}

// TestCongestionChosen: an algorithm that somebody has chosen for a socket stays,
// by inheritance from its listener too.
func TestCongestionChosen(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.apply(State{
		Workloads:    []Workload{w.workload("front"), w.workload("back")},
		Destinations: []Destination{destination(virtual4, "db")},
	})
	chosen := w.systemCongestion()
	if err := netns.Do(w.ns.FD(), func() error { return os.WriteFile(defaultCongestion, []byte("reno"), 0) }); err != nil {
		t.Fatal(err)
	}
	choose := func(fd int) error {
		return unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, chosen)
	}
	front, back := w.process("front"), w.process("back")

	fd := front.socket(unix.AF_INET, unix.SOCK_STREAM)
	front.with(fd, choose)
	if err := front.connect(fd, virtual4); err != nil {
		t.Fatal(err)
	}
	front.with(fd, func(fd int) error { wantCongestion(t, "client", fd, chosen); return nil })

	listener := back.listen(direct4)
	back.with(listener, choose)
	if _, err := w.dialOwn(direct4, netip.AddrPort{}); err != nil {
		t.Fatal(err)
	}
	accepted, _ := back.accept(listener)
	back.with(accepted, func(fd int) error { wantCongestion(t, "server", fd, chosen); return nil })
}

// TestCongestionOutside: what the proxy dials elsewhere has the system's, though
// a workload listens on a port of that number.
func TestCongestionOutside(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.apply(State{Workloads: []Workload{w.workload("back")}})
	w.process("back").listen(direct4)
	w.link(w.ns, func(h *netlink.Handle) error {
		veth, err := h.LinkByName("veth0")
		if err != nil {
			return err
		}
		addr, err := netlink.ParseAddr("10.9.1.1/24")
		if err != nil {
			return err
		}
		if err := h.AddrAdd(veth, addr); err != nil {
			return err
		}
		return h.LinkSetUp(veth)
	})
	port := netip.MustParseAddrPort(direct4).Port()
	for addr, want := range map[string]string{
		direct4: "reno", netip.AddrPortFrom(netip.MustParseAddr("10.9.1.2"), port).String(): w.systemCongestion(),
	} {
		fd := w.proxy.socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK)
		w.proxy.with(fd, func(fd int) error {
			if err := w.OwnSocket(fd); err != nil {
				return err
			}
			// Not the actor, which would wait for an answer.
			if err := unix.Connect(fd, sockaddr(fd, netip.MustParseAddrPort(addr))); err != unix.EINPROGRESS {
				return err
			}
			wantCongestion(t, addr, fd, want)
			return nil
		})
	}
}
