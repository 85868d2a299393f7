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

func TestOutbound(t *testing.T) {
	w := newWorld(t)
	w.start()
	anyPort := destination("240.240.0.2:0", "db")
	anyPort.AnyPort = true
	w.apply(State{
		Workloads:    []Workload{w.workload("web")},
		Destinations: []Destination{destination("240.240.0.1:80", "db"), destination("[2001:2::1]:80", "db"), anyPort},
	})
	web := w.process("web")
	nested := w.process("web/deeply/nested")
	for _, test := range []struct {
		name   string
		actor  *actor
		dial   string
		domain int
		source string
		device string
	}{
		{name: "IPv4", actor: web, dial: "240.240.0.1:80", domain: unix.AF_INET},
		{name: "IPv6", actor: web, dial: "[2001:2::1]:80", domain: unix.AF_INET6},
		{name: "IPv4-mapped", actor: web, dial: "[::ffff:240.240.0.1]:80", domain: unix.AF_INET},
		{name: "any port", actor: web, dial: "240.240.0.2:4711", domain: unix.AF_INET},
		{name: "nested cgroup", actor: nested, dial: "240.240.0.1:80", domain: unix.AF_INET},
		{name: "bound source", actor: web, dial: "240.240.0.1:80", domain: unix.AF_INET, source: "10.9.0.1:0"},
		{name: "bound IPv6 source", actor: web, dial: "[2001:2::1]:80", domain: unix.AF_INET6, source: "[2001:db8::1]:0"},
		{name: "bound to a device", actor: web, dial: "240.240.0.1:80", domain: unix.AF_INET, device: "veth0"},
		{name: "bound to loopback", actor: web, dial: "240.240.0.1:80", domain: unix.AF_INET, device: "lo"},
	} {
		t.Run(test.name, func(t *testing.T) {
			fd := test.actor.socket(domainOf(test.dial), unix.SOCK_STREAM)
			if test.source != "" {
				if err := test.actor.bind(fd, test.source); err != nil {
					t.Fatal(err)
				}
			}
			if test.device != "" {
				test.actor.must(call{Op: "device", FD: fd, Data: test.device})
			}
			if err := test.actor.connect(fd, test.dial); err != nil {
				t.Fatal(err)
			}
			if got := test.actor.peer(fd).String(); got != test.dial {
				t.Errorf("client sees peer %s, want %s", got, test.dial)
			}
			flow, err := w.accepted(test.domain)
			if err != nil {
				t.Fatal(err)
			}
			dst := netip.MustParseAddrPort(test.dial)
			dst = netip.AddrPortFrom(dst.Addr().Unmap(), dst.Port())
			if flow.OriginalDst != dst || flow.WorkloadName != name("web") || flow.Service != name("db") || flow.ClientCookie == 0 {
				t.Errorf("flow %+v", flow)
			}
			if (flow.Device != 0) != (test.device == "veth0") {
				t.Errorf("device %d in the flow", flow.Device)
			}
			test.actor.close(fd)
		})
	}
	if n := w.connections("web", OutcomeCaptured); n != 9 {
		t.Errorf("counted %d captured connections", n)
	}
}

// untouched dials an address at which somebody listens, and wants to get there.
func untouched(t *testing.T, client *actor, addr string, server *actor, listener int) {
	t.Helper()
	fd, err := client.dial(addr)
	if err != nil {
		t.Fatalf("dial %s: %v", addr, err)
	}
	if got := client.peer(fd).String(); got != addr {
		t.Errorf("dialled %s, peer is %s", addr, got)
	}
	conn, from := server.accept(listener)
	// An IPv6 listener sees an IPv4 client by its mapped address.
	if got := client.local(fd); got != netip.AddrPortFrom(from.Addr().Unmap(), from.Port()) {
		t.Errorf("client is %s, server saw %s", got, from)
	}
	server.close(conn)
	client.close(fd)
}

func TestOutboundLeavesAlone(t *testing.T) {
	w := newWorld(t)
	w.start()
	excluding := w.workload("excluding")
	excluding.Exclude = mesh.Exclusions{
		OutboundPorts: []uint16{81},
		OutboundCIDRs: []netip.Prefix{netip.MustParsePrefix("10.9.0.0/24"), netip.MustParsePrefix("2001:db8::/64")},
	}
	bypassed := w.workload("bypassed")
	bypassed.Bypass = true
	w.apply(State{
		Workloads: []Workload{w.workload("web"), excluding, bypassed},
		Destinations: []Destination{
			destination("10.9.0.1:80", "db"), destination("127.0.0.1:80", "db"), destination("[2001:db8::1]:80", "db"),
			destination("10.9.0.1:81", "db"),
		},
	})
	server := w.process("server")
	four, six := server.listen("0.0.0.0:80"), server.listen("[::]:8080")
	excluded, unknown := server.listen("0.0.0.0:81"), server.listen("0.0.0.0:82")
	server.must(call{Op: "close", FD: six})
	six = server.socket(unix.AF_INET6, unix.SOCK_STREAM)
	if err := server.bind(six, "[2001:db8::1]:80"); err != nil {
		t.Fatal(err)
	}
	server.must(call{Op: "listen", FD: six})
	nobody, web := w.process("nobody"), w.process("web")
	for _, test := range []struct {
		name     string
		client   *actor
		addr     string
		listener int
	}{
		{"no workload", nobody, "10.9.0.1:80", four},
		{"no workload, IPv6", nobody, "[2001:db8::1]:80", six},
		{"loopback", web, "127.0.0.1:80", four},
		{"unknown destination", web, "10.9.0.1:82", unknown},
		{"excluded port", w.process("excluding"), "10.9.0.1:81", excluded},
		{"excluded network", w.process("excluding"), "10.9.0.1:80", four},
		{"excluded IPv6 network", w.process("excluding"), "[2001:db8::1]:80", six},
		{"bypass", w.process("bypassed"), "10.9.0.1:80", four},
	} {
		t.Run(test.name, func(t *testing.T) { untouched(t, test.client, test.addr, server, test.listener) })
	}
	t.Run("own socket in a workload's cgroup", func(t *testing.T) {
		fd := web.socket(unix.AF_INET, unix.SOCK_STREAM)
		web.with(fd, w.OwnSocket)
		if err := web.connect(fd, "10.9.0.1:80"); err != nil {
			t.Fatal(err)
		}
		if conn, from := server.accept(four); from != web.local(fd) {
			t.Errorf("server saw %s on %d", from, conn)
		}
	})
	t.Run("UDP", func(t *testing.T) {
		udp := server.socket(unix.AF_INET, unix.SOCK_DGRAM)
		if err := server.bind(udp, "10.9.0.1:80"); err != nil {
			t.Fatal(err)
		}
		fd := web.socket(unix.AF_INET, unix.SOCK_DGRAM)
		if err := web.connect(fd, "10.9.0.1:80"); err != nil {
			t.Fatal(err)
		}
		web.must(call{Op: "write", FD: fd, Data: "hello"})
		if r := server.must(call{Op: "recvfrom", FD: udp}); r.Data != "hello" || r.Addr != web.local(fd) {
			t.Errorf("received %+v", r)
		}
	})
	for workload, want := range map[string]map[Outcome]uint64{
		"web":       {OutcomePassthrough: 1, OutcomeCaptured: 0},
		"excluding": {OutcomeExcluded: 3, OutcomeCaptured: 0},
	} {
		for outcome, n := range want {
			if got := w.connections(workload, outcome); got != n {
				t.Errorf("%s: %d connections %s, want %d", workload, got, outcome, n)
			}
		}
	}
}

// TestPassthroughKeepsDevice: a source address and a device that the
// application chose.
func TestPassthroughKeepsDevice(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.apply(State{Workloads: []Workload{w.workload("web")}})
	server, web := w.process("server"), w.process("web")
	listener := server.listen("10.9.0.1:80")
	fd := web.socket(unix.AF_INET, unix.SOCK_STREAM)
	web.must(call{Op: "device", FD: fd, Data: "lo"})
	if err := web.bind(fd, "127.0.0.3:0"); err != nil {
		t.Fatal(err)
	}
	if err := web.connect(fd, "10.9.0.1:80"); err != nil {
		t.Fatal(err)
	}
	if _, from := server.accept(listener); from.Addr() != netip.MustParseAddr("127.0.0.3") {
		t.Errorf("source is %s", from)
	}
	if r := web.must(call{Op: "getdevice", FD: fd}); r.Data != "lo" {
		t.Errorf("device is %q", r.Data)
	}
}

func TestOutboundRefuses(t *testing.T) {
	w := newWorld(t)
	w.start()
	closed := w.workload("closed")
	closed.Egress = mesh.EgressRegisteredOnly
	w.apply(State{
		Workloads: []Workload{w.workload("web"), closed},
		Destinations: []Destination{
			destination("240.240.0.1:80", "db"), destination("240.240.0.1:0", "db"),
			destination("[2001:2::1]:0", "db"),
		},
	})
	server := w.process("server")
	local := server.listen("127.0.0.1:82")
	server.listen("10.9.0.1:82")
	for _, test := range []struct {
		workload string
		addr     string
		reason   Reason
	}{
		{"web", "240.240.0.1:81", ReasonUnknownPort},
		{"web", "[2001:2::1]:81", ReasonUnknownPort},
		{"web", "[::ffff:240.240.0.1]:81", ReasonUnknownPort},
		{"closed", "10.9.0.1:82", ReasonUnregistered},
		{"closed", "[2001:db8::1]:82", ReasonUnregistered},
	} {
		t.Run(test.workload+" "+test.addr, func(t *testing.T) {
			before := w.refusals(test.workload, test.reason)
			if _, err := w.process(test.workload).dial(test.addr); !errors.Is(err, unix.ECONNREFUSED) {
				t.Errorf("dial: %v", err)
			}
			if n := w.refusals(test.workload, test.reason) - before; n != 1 {
				t.Errorf("counted %d refusals", n)
			}
			want := netip.MustParseAddrPort(test.addr)
			e := event[*Refused](t, w.Capture)
			if e.Workload != name(test.workload) || e.Reason != test.reason || e.PID == 0 ||
				e.Address != netip.AddrPortFrom(want.Addr().Unmap(), want.Port()) {
				t.Errorf("event %+v", e)
			}
		})
	}
	// The node itself is not outside of the mesh.
	untouched(t, w.process("closed"), "127.0.0.1:82", server, local)
}

// event returns the next event of a type.
func event[E Event](t *testing.T, c *Capture) E {
	t.Helper()
	limit := time.After(time.Duration(patiently))
	for {
		select {
		case e := <-c.Events():
			if e, ok := e.(E); ok {
				return e
			}
		case <-limit:
			t.Fatal("no such event")
		}
	}
}

func TestUpstreams(t *testing.T) {
	w := newWorld(t)
	w.start()
	upstream := func(workload, addr, service string) Destination {
		d := destination(addr, service)
		d.Workload = mesh.Name{Name: workload}
		return d
	}
	w.apply(State{
		Workloads: []Workload{w.workload("a"), w.workload("b"), w.workload("c")},
		Destinations: []Destination{
			upstream("a", "127.0.0.1:9191", "web"), upstream("b", "127.0.0.1:9191", "db"),
			upstream("a", "[::1]:9191", "web6"),
			upstream("a", "240.240.0.1:80", "mine"), destination("240.240.0.1:80", "everybody's"),
		},
	})
	for _, test := range []struct {
		workload, dial, service string
		domain                  int
	}{
		{"a", "127.0.0.1:9191", "web", unix.AF_INET},
		{"b", "127.0.0.1:9191", "db", unix.AF_INET},
		{"a", "[::1]:9191", "web6", unix.AF_INET6},
		{"a", "[::ffff:127.0.0.1]:9191", "web", unix.AF_INET},
		{"a", "0.0.0.0:9191", "web", unix.AF_INET},
		{"a", "240.240.0.1:80", "mine", unix.AF_INET},
		{"c", "240.240.0.1:80", "everybody's", unix.AF_INET},
	} {
		t.Run(test.workload+" "+test.dial, func(t *testing.T) {
			if _, err := w.process(test.workload).dial(test.dial); err != nil {
				t.Fatal(err)
			}
			if f, err := w.accepted(test.domain); err != nil || f.Service != name(test.service) || f.WorkloadName != name(test.workload) {
				t.Errorf("flow %+v, %v", f, err)
			}
		})
	}
	if _, err := w.process("c").dial("127.0.0.1:9191"); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("another's upstream: %v", err)
	}
}

func TestWorkloadByUser(t *testing.T) {
	w := newWorld(t)
	w.start()
	user := w.workload("user")
	user.Selectors = []mesh.Selector{{Kind: mesh.SelectUser, Value: "4711"}}
	inner := w.workload("inner")
	s := State{Workloads: []Workload{user, inner}, Destinations: []Destination{destination("240.240.0.1:80", "db")}}
	w.apply(s)
	dial := func(cgroup string, uid uint32, want string) {
		t.Helper()
		a := startActor(t, w.cgroup(cgroup), w.ns, uid)
		fd := a.socket(unix.AF_INET, unix.SOCK_STREAM)
		if want == "" {
			if err := a.connect(fd, "240.240.0.1:80"); !errors.Is(err, unix.ENETUNREACH) {
				t.Errorf("dial: %v", err)
			}
			return
		}
		if err := a.connect(fd, "240.240.0.1:80"); err != nil {
			t.Fatal(err)
		}
		if f, err := w.accepted(unix.AF_INET); err != nil || f.WorkloadName != name(want) {
			t.Errorf("uid %d in %s: flow %+v, %v", uid, cgroup, f, err)
		}
	}
	dial("any", 4711, "user")
	dial("inner", 4711, "inner") // the cgroup goes first
	dial("any", 4712, "")
	s.Workloads = s.Workloads[1:]
	w.apply(s)
	dial("any", 4711, "")
}
