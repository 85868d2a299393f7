// SPDX-License-Identifier: Apache-2.0

package sockmap

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/meshproxy/meshproxy/bpf"
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

// TestInboundPermissive: plaintext goes to the proxy, which decides.
func TestInboundPermissive(t *testing.T) {
	w := newWorld(t)
	w.start()
	permissive := w.workload("web")
	permissive.Inbound = mesh.InboundPermissive
	direct := w.workload("direct")
	direct.Inbound, direct.OnProxyDown = mesh.InboundPermissive, mesh.ProxyDownDirect
	w.apply(State{Workloads: []Workload{permissive, direct}})
	far := w.neighbour()
	web, listener := w.serving("web", "[::]:80")
	open, openListener := w.serving("direct", "0.0.0.0:81")

	if _, err := far.dial("10.8.0.1:80"); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("dial without a listener to steer to: %v", err)
	}
	plain := w.listenOwn(w.proxy, "[::]:15006")
	w.proxy.with(plain, func(fd int) error { return w.SetInboundListener(w.cookie, fd) })
	for _, addr := range []string{"10.8.0.1:80", "[fd00::1]:80", "10.8.0.1:81"} {
		fd, err := far.dial(addr)
		if err != nil {
			t.Fatalf("dial %s: %v", addr, err)
		}
		conn, from := w.proxy.accept(plain)
		if got := w.proxy.local(conn); got.Port() != netip.MustParseAddrPort(addr).Port() || got.Addr().Unmap() != netip.MustParseAddrPort(addr).Addr() {
			t.Errorf("steered %s, the proxy sees %s", addr, got)
		}
		if got := far.local(fd); got.Addr() != from.Addr().Unmap() {
			t.Errorf("the proxy sees client %s, want %s", from, got)
		}
	}
	if n := w.connections("web", OutcomeSteered); n != 2 {
		t.Errorf("counted %d steered connections", n)
	}
	untouched(t, w.process("nobody"), "127.0.0.1:80", web, listener)

	if err := w.Retire(); err != nil {
		t.Fatal(err)
	}
	if _, err := far.dial("10.8.0.1:80"); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("dial while the proxy is away: %v", err)
	}
	if n := w.refusals("web", ReasonProxyDown); n != 2 {
		t.Errorf("counted %d refusals", n)
	}
	untouched(t, far, "10.8.0.1:81", open, openListener)
}

// TestInboundChanges: modes and bypass work at once, on listeners that stay.
func TestInboundChanges(t *testing.T) {
	w := newWorld(t)
	w.start()
	far := w.neighbour()
	web, listener := w.serving("web", "0.0.0.0:80")
	strict, off, bypassed := w.workload("web"), w.workload("web"), w.workload("web")
	off.Inbound, bypassed.Bypass = mesh.InboundOff, true
	for _, step := range []struct {
		name    string
		state   State
		refused bool
	}{
		{"unknown", State{}, false},
		{"strict", State{Workloads: []Workload{strict}}, true},
		{"off", State{Workloads: []Workload{off}}, false},
		{"strict again", State{Workloads: []Workload{strict}}, true},
		{"bypass", State{Workloads: []Workload{bypassed}}, false},
		{"strict at last", State{Workloads: []Workload{strict}}, true},
		{"no workload any more", State{}, false},
	} {
		t.Run(step.name, func(t *testing.T) {
			w.apply(step.state)
			if !step.refused {
				untouched(t, far, "10.8.0.1:80", web, listener)
				return
			}
			if _, err := far.dial("10.8.0.1:80"); !errors.Is(err, unix.ECONNREFUSED) {
				t.Errorf("dial: %v", err)
			}
		})
	}
}

// TestPortChangesHands: a port that a workload had is somebody else's now.
func TestPortChangesHands(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.apply(State{Workloads: []Workload{w.workload("web")}})
	far := w.neighbour()
	web, _ := w.serving("web", "0.0.0.0:80")
	if _, err := far.dial("10.8.0.1:80"); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("dial: %v", err)
	}
	web.stop()
	nobody, listener := w.serving("nobody", "0.0.0.0:80")
	untouched(t, far, "10.8.0.1:80", nobody, listener)
	nobody.stop()
	w.apply(State{Workloads: []Workload{w.workload("web")}})
	if ports, err := contents[bpf.CapturePortKey, bpf.CapturePort](w.kernel.maps[bpf.CaptureMapPorts]); err != nil || len(ports) != 0 {
		t.Errorf("ports are left: %v, %v", ports, err)
	}
}

// TestFollowListeners: who listens changes though the state does not.
func TestFollowListeners(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.apply(State{Workloads: []Workload{w.workload("web")}})
	web, _ := w.serving("web", "0.0.0.0:80")
	guarded := func() int {
		t.Helper()
		if err := w.FollowListeners(); err != nil {
			t.Fatal(err)
		}
		ports, err := contents[bpf.CapturePortKey, bpf.CapturePort](w.kernel.maps[bpf.CaptureMapPorts])
		if err != nil {
			t.Fatal(err)
		}
		return len(ports)
	}
	if n := guarded(); n != 1 {
		t.Errorf("%d ports are guarded, want that of the listener", n)
	}
	// Somebody empties the map behind our back: who listens is found again.
	if err := w.forgetPorts(w.cookie); err != nil {
		t.Fatal(err)
	}
	if n := guarded(); n != 1 {
		t.Errorf("%d ports are guarded, want that of the listener again", n)
	}
	web.stop()
	if n := guarded(); n != 0 {
		t.Errorf("%d ports are guarded, want none", n)
	}
}

// TestContainer: everything works in a namespace of a workload's own, whose
// packets from the node come over a veth.
func TestContainer(t *testing.T) {
	w := newWorld(t)
	w.start()
	ns := w.newNetNS()
	node := w.process("nobody")
	w.link(w.ns, func(h *netlink.Handle) error {
		peer, err := h.LinkByName("veth1")
		if err != nil {
			return err
		}
		if err := h.LinkSetName(peer, "eth0"); err != nil {
			return err
		}
		return errors.Join(h.LinkSetNsFd(peer, ns.FD()), address(h, "veth0", "10.7.0.1/24"))
	})
	w.link(ns, func(h *netlink.Handle) error { return address(h, "eth0", "10.7.0.2/24") })

	upstream := destination("127.0.0.1:9191", "cache")
	upstream.Workload = mesh.Name{Name: "pod"}
	w.apply(State{
		Workloads:    []Workload{w.workload("pod")},
		Destinations: []Destination{destination("240.240.0.1:80", "db"), upstream},
	})
	// It listens before anybody knows of it or of its namespace.
	pod := startActor(t, w.cgroup("pod/container"), ns, 0)
	listener := pod.listen("0.0.0.0:80")
	proxy := startActor(t, w.cgroup("proxy"), ns, 0)
	cookie, err := w.AttachNetNS(ns.FD())
	if err != nil {
		t.Fatal(err)
	}
	outbound := w.listenOwn(proxy, "127.0.0.1:15001")
	for addr, service := range map[string]string{"240.240.0.1:80": "db", "127.0.0.1:9191": "cache"} {
		fd, err := pod.dial(addr)
		if err != nil {
			t.Fatal(err)
		}
		conn, client := proxy.accept(outbound)
		if f, err := w.Flow(cookie, client, proxy.local(conn)); err != nil || f.Service != name(service) || f.WorkloadName != name("pod") {
			t.Errorf("flow %+v, %v", f, err)
		}
		if got := pod.peer(fd).String(); got != addr {
			t.Errorf("peer %s, want %s", got, addr)
		}
	}
	if _, err := node.dial("10.7.0.2:80"); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("plaintext from the node: %v", err)
	}
	fd := proxy.socket(unix.AF_INET, unix.SOCK_STREAM)
	proxy.with(fd, func(fd int) error { return w.OwnSocketWithSource(fd, netip.MustParseAddrPort("192.0.2.7:4711")) })
	if err := proxy.connect(fd, "127.0.0.1:80"); err != nil {
		t.Fatal(err)
	}
	if _, from := pod.accept(listener); from.String() != "192.0.2.7:4711" {
		t.Errorf("server saw %s", from)
	}
}
