// SPDX-License-Identifier: Apache-2.0

package sockmap

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/meshproxy/meshproxy/discovery/mesh"
	"github.com/meshproxy/meshproxy/sockmap/netns"
)

// neighbour adds another machine, at the other end of a veth: 10.8.0.2 and
// fd00::2, with the node at .1 and ::1.
func (w *world) neighbour() *actor {
	w.t.Helper()
	ns, err := netns.New()
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { ns.Close() })
	w.link(w.ns, func(h *netlink.Handle) error {
		peer, err := h.LinkByName("veth1")
		if err != nil {
			return err
		}
		return errors.Join(h.LinkSetNsFd(peer, ns.FD()), address(h, "veth0", "10.8.0.1/24", "fd00::1/64"))
	})
	w.link(ns, func(h *netlink.Handle) error { return address(h, "veth1", "10.8.0.2/24", "fd00::2/64") })
	return startActor(w.t, hierarchy(), ns, 0)
}

func address(h *netlink.Handle, device string, addrs ...string) error {
	l, err := h.LinkByName(device)
	if err != nil {
		return err
	}
	for _, a := range addrs {
		addr, err := netlink.ParseAddr(a)
		if err != nil {
			return err
		}
		addr.Flags = unix.IFA_F_NODAD
		if err := h.AddrAdd(l, addr); err != nil {
			return err
		}
	}
	return h.LinkSetUp(l)
}

// serving returns a process of a workload and its listener.
func (w *world) serving(workload, addr string) (*actor, int) {
	w.t.Helper()
	a := w.process(workload)
	return a, a.listen(addr)
}

func TestInboundStrict(t *testing.T) {
	w := newWorld(t)
	old, oldListener := w.serving("web", "0.0.0.0:79") // before there was any mesh
	w.start()
	deny := w.workload("deny")
	deny.InboundLocal = mesh.Deny
	off := w.workload("off")
	off.Inbound = mesh.InboundOff
	declared := w.workload("declared")
	declared.InboundPorts = []uint16{90}
	declared.NetNS = w.cookie
	excluding := w.workload("excluding")
	excluding.Exclude = mesh.Exclusions{InboundPorts: []uint16{86}, InboundCIDRs: []netip.Prefix{netip.MustParsePrefix("fd00::/64")}}
	w.apply(State{Workloads: []Workload{w.workload("web"), deny, off, declared, excluding}})

	far, near := w.neighbour(), w.process("nobody")
	web, four := w.serving("web", "0.0.0.0:80")
	w.serving("web", "[::]:81")
	one, only := w.serving("web", "10.8.0.1:82")
	denying, denied := w.serving("deny", "0.0.0.0:83")
	open, openListener := w.serving("off", "[::]:84")
	nobody, free := w.serving("nobody", "[::]:85")
	ex, exPort := w.serving("excluding", "0.0.0.0:86")
	exNet, exNetPort := w.serving("excluding", "[::]:87")
	w.serving("nobody", "0.0.0.0:90") // on a port that is declared
	unbound := w.process("web")
	auto := unbound.socket(unix.AF_INET, unix.SOCK_STREAM)
	unbound.must(call{Op: "listen", FD: auto}) // without bind
	autoAddr := netip.AddrPortFrom(netip.MustParseAddr("10.8.0.1"), unbound.local(auto).Port()).String()

	for _, addr := range []string{
		"10.8.0.1:79", "10.8.0.1:80", "10.8.0.1:81", "[fd00::1]:81", "10.8.0.1:82", "10.8.0.1:83",
		"10.8.0.1:87", "10.8.0.1:90", autoAddr,
	} {
		if _, err := far.dial(addr); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("plaintext from elsewhere to %s: %v", addr, err)
		}
	}
	if _, err := near.dial("127.0.0.1:83"); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("local plaintext where it is denied: %v", err)
	}
	for workload, want := range map[string]map[Reason]uint64{
		"web": {ReasonPlaintext: 6}, "deny": {ReasonPlaintext: 1, ReasonLocal: 1}, "declared": {ReasonPlaintext: 1},
	} {
		for reason, n := range want {
			if got := w.refusals(workload, reason); got != n {
				t.Errorf("%s: %d refusals for %s, want %d", workload, got, reason, n)
			}
		}
	}
	if e := event[*Refused](t, w.Capture); e.Reason != ReasonPlaintext || e.Address.Addr() != netip.MustParseAddr("10.8.0.2") {
		t.Errorf("event %+v", e)
	}

	untouched(t, near, "127.0.0.1:80", web, four)
	untouched(t, near, "127.0.0.1:79", old, oldListener)
	untouched(t, near, "10.8.0.1:82", one, only)
	untouched(t, far, "10.8.0.1:84", open, openListener)
	untouched(t, far, "[fd00::1]:84", open, openListener)
	untouched(t, far, "[fd00::1]:85", nobody, free)
	untouched(t, far, "10.8.0.1:86", ex, exPort)
	untouched(t, far, "[fd00::1]:87", exNet, exNetPort)

	// What the proxy itself dials passes, with and without a name.
	if _, err := w.dialOwn("10.9.0.1:83", netip.AddrPort{}); err != nil {
		t.Errorf("the proxy is refused: %v", err)
	}
	if conn, from := denying.accept(denied); !from.Addr().Is4() || from.Addr() != netip.MustParseAddr("10.9.0.1") {
		t.Errorf("server saw %s on %d", from, conn)
	}
}
