// SPDX-License-Identifier: Apache-2.0

package sockmap

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/meshproxy/meshproxy/discovery/mesh"
)

// TestStaleHeartbeat: the proxy hangs. Its listeners exist, but nobody accepts.
func TestStaleHeartbeat(t *testing.T) {
	w := newWorld(t)
	w.opts.HeartbeatTimeout = time.Millisecond
	w.start()
	direct := w.workload("direct")
	direct.OnProxyDown = mesh.ProxyDownDirect
	vip := destination("240.240.0.1:80", "db")
	vip.Direct = netip.MustParseAddrPort("10.9.0.1:5432")
	endpoint := destination("10.9.0.1:5432", "db")
	endpoint.Direct = endpoint.Addr
	w.apply(State{
		Workloads:    []Workload{w.workload("web"), direct},
		Destinations: []Destination{vip, endpoint, destination("240.240.0.2:80", "remote")},
	})
	elapse(5 * time.Millisecond)

	web := w.process("web")
	for _, addr := range []string{"240.240.0.1:80", "10.9.0.1:5432", "[::ffff:240.240.0.1]:80"} {
		if _, err := web.dial(addr); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("dial %s: %v", addr, err)
		}
	}
	if n := w.refusals("web", ReasonProxyDown); n != 3 {
		t.Errorf("counted %d refusals", n)
	}
	db, listener := w.serving("db", "10.9.0.1:5432")
	a := w.process("direct")
	for _, addr := range []string{"240.240.0.1:80", "10.9.0.1:5432"} {
		fd, err := a.dial(addr)
		if err != nil {
			t.Fatal(err)
		}
		if got := a.peer(fd).String(); got != addr {
			t.Errorf("dialled %s, peer %s", addr, got)
		}
		if _, from := db.accept(listener); from != a.local(fd) {
			t.Errorf("server saw %s", from)
		}
	}
	if _, err := a.dial("240.240.0.2:80"); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("dial without a direct way: %v", err)
	}
	if n := w.connections("direct", OutcomeDirect); n != 2 {
		t.Errorf("counted %d direct connections", n)
	}
}

// TestKilledProxy: the listeners are gone while the heartbeat is still fresh.
func TestKilledProxy(t *testing.T) {
	w := newWorld(t) // its heartbeat is fresh for an hour
	w.start()
	direct := w.workload("direct")
	direct.OnProxyDown = mesh.ProxyDownDirect
	vip := destination("240.240.0.1:80", "db")
	vip.Direct = netip.MustParseAddrPort("10.9.0.1:5432")
	vip6 := destination("[2001:2::1]:80", "db")
	vip6.Direct = netip.MustParseAddrPort("[2001:db8::1]:5432")
	w.apply(State{Workloads: []Workload{w.workload("web"), direct}, Destinations: []Destination{vip, vip6}})
	web, a, server := w.process("web"), w.process("direct"), w.process("server")
	if _, err := a.dial("240.240.0.1:80"); err != nil {
		t.Fatal(err)
	}
	if _, err := w.accepted(unix.AF_INET); err != nil {
		t.Fatal(err)
	}
	w.proxy.kill()

	for _, addr := range []string{"240.240.0.1:80", "[2001:2::1]:80", "192.0.2.53:53"} {
		if _, err := web.dial(addr); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("dial %s: %v", addr, err)
		}
	}
	if n := w.refusals("web", ReasonProxyDown); n != 3 {
		t.Errorf("counted %d refusals", n)
	}
	for addr, endpoint := range map[string]string{"240.240.0.1:80": "10.9.0.1:5432", "[2001:2::1]:80": "[2001:db8::1]:5432"} {
		listener := server.listen(endpoint)
		fd, err := a.dial(addr)
		if err != nil {
			t.Fatalf("dial %s: %v", addr, err)
		}
		if got := a.peer(fd).String(); got != addr {
			t.Errorf("dialled %s, peer %s", addr, got)
		}
		if _, from := server.accept(listener); from != a.local(fd) {
			t.Errorf("server saw %s", from)
		}
	}
	resolver := server.socket(unix.AF_INET, unix.SOCK_DGRAM)
	if err := server.bind(resolver, "10.9.0.1:53"); err != nil {
		t.Fatal(err)
	}
	query := call{Op: "sendto", Addr: netip.MustParseAddrPort("10.9.0.1:53"), Data: "question"}
	query.FD = a.socket(unix.AF_INET, unix.SOCK_DGRAM)
	a.must(query)
	if r := server.must(call{Op: "recvfrom", FD: resolver}); r.Data != "question" {
		t.Errorf("resolver got %+v", r)
	}
}

// TestUnknownNetNS: a container that nobody has looked at yet.
func TestUnknownNetNS(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.apply(State{Workloads: []Workload{w.workload("web")}, Destinations: []Destination{destination("240.240.0.1:80", "db")}})
	ns := w.newNetNS()
	web := startActor(t, w.cgroup("web"), ns, 0)
	if _, err := web.dial("240.240.0.1:80"); !errors.Is(err, unix.ECONNREFUSED) {
		t.Fatalf("dial: %v", err)
	}
	e := event[*NetNSSeen](t, w.Capture)
	if e.PID != web.cmd.Process.Pid || e.Workload != name("web") || e.NetNS == w.cookie || e.Cgroup == 0 {
		t.Errorf("event %+v", e)
	}
	// The proxy comes, and then goes on as everywhere.
	proxy := startActor(t, w.cgroup("proxy"), ns, 0)
	cookie, err := w.AttachNetNS(ns.FD())
	if err != nil || cookie != e.NetNS {
		t.Fatalf("cookie %d, %v, want %d", cookie, err, e.NetNS)
	}
	listener := w.listenOwn(proxy, "127.0.0.1:15001")
	fd, err := web.dial("240.240.0.1:80")
	if err != nil {
		t.Fatal(err)
	}
	conn, client := proxy.accept(listener)
	f, err := w.Flow(cookie, client, proxy.local(conn))
	if err != nil || f.OriginalDst.String() != "240.240.0.1:80" {
		t.Errorf("flow %+v, %v", f, err)
	}
	if got := web.peer(fd).String(); got != "240.240.0.1:80" {
		t.Errorf("peer %s", got)
	}
	if err := w.DetachNetNS(cookie); err != nil {
		t.Fatal(err)
	}
	if _, err := web.dial("240.240.0.1:80"); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("dial after detaching: %v", err)
	}
	if err := w.DetachNetNS(cookie); !errors.Is(err, ErrUnknownNetNS) {
		t.Errorf("detach again: %v", err)
	}
}

// TestFlowsFull: more connections at once than there is room for.
func TestFlowsFull(t *testing.T) {
	w := newWorld(t)
	w.opts.MaxFlows = 4
	w.start()
	w.apply(State{Workloads: []Workload{w.workload("web")}, Destinations: []Destination{destination("240.240.0.1:80", "db")}})
	web := w.process("web")
	var open []int
	refused := false
	// One CPU may keep some entries back, so not exactly 4. Connections are refused
	// for a while after one found no room, which may be over before the next one.
	for deadline := time.Now().Add(time.Duration(patiently)); time.Now().Before(deadline) && len(open) < 1000; {
		fd, err := web.dial("240.240.0.1:80")
		if errors.Is(err, unix.ECONNREFUSED) {
			refused = true
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, fd)
	}
	if !refused || w.refusals("web", ReasonFlowsFull) != 1 {
		t.Fatalf("%d connections, none refused", len(open))
	}
	s, err := w.Stats()
	if err != nil || s.FlowsFull == 0 {
		t.Errorf("stats %+v, %v", s, err)
	}
	// Accepting makes room again; the one that found none is known by that.
	lost := 0
	if kept := len(open) - int(s.FlowsFull); kept > 12 {
		t.Errorf("%d flows have room", kept)
	}
	for range open {
		if _, err := w.accepted(unix.AF_INET); errors.Is(err, ErrNoFlow) {
			lost++
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if uint64(lost) != s.FlowsFull {
		t.Errorf("%d connections without a flow, counted %d", lost, s.FlowsFull)
	}
	elapse(150 * time.Millisecond)
	if _, err := web.dial("240.240.0.1:80"); err != nil {
		t.Errorf("dial when there is room again: %v", err)
	}
}

// TestFlowOfFailedConnect: a SYN that nobody answers must not stay on record.
func TestFlowOfFailedConnect(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.apply(State{Workloads: []Workload{w.workload("web")}, Destinations: []Destination{destination("240.240.0.1:80", "db")}})
	w.proxy.close(w.outbound[unix.AF_INET])
	web := w.process("web")
	if _, err := web.dial("240.240.0.1:80"); !errors.Is(err, unix.ECONNREFUSED) {
		t.Fatalf("dial: %v", err)
	}
	if s, err := w.Stats(); err != nil || s.Flows != 0 {
		t.Errorf("%d flows, %v", s.Flows, err)
	}
}

func TestGuard(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.apply(State{OwnPorts: []uint16{20001}})
	w.proxy.kill()
	thief := w.process("thief")
	for _, addr := range []string{
		"127.0.0.1:15001", "0.0.0.0:15006", "[::1]:15001", "[::]:15008", "[::ffff:127.0.0.1]:20000", "127.0.0.1:15053",
	} {
		for _, typ := range []int{unix.SOCK_STREAM, unix.SOCK_DGRAM} {
			if err := thief.bind(thief.socket(domainOf(addr), typ), addr); !errors.Is(err, unix.EPERM) {
				t.Errorf("bind to %s: %v", addr, err)
			}
		}
	}
	if err := thief.bind(thief.socket(unix.AF_INET, unix.SOCK_STREAM), "127.0.0.1:15002"); err != nil {
		t.Errorf("bind to a port of nobody: %v", err)
	}
	// A workload's own port for mutual TLS is one for TCP.
	if err := thief.bind(thief.socket(unix.AF_INET6, unix.SOCK_STREAM), "[::]:20001"); !errors.Is(err, unix.EPERM) {
		t.Errorf("bind to a workload's port for mutual TLS: %v", err)
	}
	if err := thief.bind(thief.socket(unix.AF_INET6, unix.SOCK_DGRAM), "[::]:20001"); err != nil {
		t.Errorf("bind to the same port for UDP: %v", err)
	}
	if n := w.refusals("", ReasonPortTaken); n != 13 {
		t.Errorf("counted %d", n)
	}
	w.apply(State{})
	if err := thief.bind(thief.socket(unix.AF_INET6, unix.SOCK_STREAM), "[::]:20001"); err != nil {
		t.Errorf("bind to a port that no workload has any more: %v", err)
	}
	// The next proxy takes them.
	w.proxy = w.process("proxy")
	w.listenOwn(w.proxy, "127.0.0.1:15001")
	// Elsewhere they are anybody's.
	other := startActor(t, w.cgroup("thief"), w.newNetNS(), 0)
	if err := other.bind(other.socket(unix.AF_INET, unix.SOCK_STREAM), "127.0.0.1:15001"); err != nil {
		t.Errorf("bind in another namespace: %v", err)
	}
}
