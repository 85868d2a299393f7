// SPDX-License-Identifier: Apache-2.0

package sockmap

import (
	"errors"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/meshproxy/meshproxy/discovery/mesh"
)

func TestDNS(t *testing.T) {
	w := newWorld(t)
	w.start()
	excluding := w.workload("excluding")
	excluding.Exclude.OutboundPorts = []uint16{53}
	bypassed := w.workload("bypassed")
	bypassed.Bypass = true
	w.apply(State{Workloads: []Workload{w.workload("web"), excluding, bypassed}})
	resolver := map[int]int{}
	for domain, addr := range map[int]string{unix.AF_INET: "127.0.0.1:15053", unix.AF_INET6: "[::1]:15053"} {
		fd := w.proxy.socket(domain, unix.SOCK_DGRAM)
		w.proxy.with(fd, w.OwnSocket)
		if err := w.proxy.bind(fd, addr); err != nil {
			t.Fatal(err)
		}
		resolver[domain] = fd
	}
	tcp := w.listenOwn(w.proxy, "127.0.0.1:15053")
	web := w.process("web")

	for _, test := range []struct {
		server string
		domain int
	}{
		{"192.0.2.53:53", unix.AF_INET},
		{"127.0.0.53:53", unix.AF_INET},
		{"[2001:db8:53::1]:53", unix.AF_INET6},
		{"[::ffff:192.0.2.53]:53", unix.AF_INET},
	} {
		server := netip.MustParseAddrPort(test.server)
		answer := func(t *testing.T) {
			t.Helper()
			q := w.proxy.must(call{Op: "recvfrom", FD: resolver[test.domain]})
			if q.Data != "question" {
				t.Fatalf("resolver got %+v", q)
			}
			w.proxy.must(call{Op: "sendto", FD: resolver[test.domain], Addr: q.Addr, Data: "answer"})
		}
		t.Run("connected "+test.server, func(t *testing.T) {
			fd := web.socket(domainOf(test.server), unix.SOCK_DGRAM)
			if err := web.connect(fd, test.server); err != nil {
				t.Fatal(err)
			}
			if got := web.peer(fd); got != server {
				t.Errorf("peer %s", got)
			}
			web.must(call{Op: "write", FD: fd, Data: "question"})
			answer(t)
			if r := web.must(call{Op: "recvfrom", FD: fd}); r.Data != "answer" || r.Addr != server {
				t.Errorf("client got %+v", r)
			}
		})
		t.Run("unconnected "+test.server, func(t *testing.T) {
			fd := web.socket(domainOf(test.server), unix.SOCK_DGRAM)
			for range 2 {
				web.must(call{Op: "sendto", FD: fd, Addr: server, Data: "question"})
				answer(t)
				if r := web.must(call{Op: "recvfrom", FD: fd}); r.Data != "answer" || r.Addr != server {
					t.Errorf("client got %+v", r)
				}
			}
		})
	}
	t.Run("TCP", func(t *testing.T) {
		fd, err := web.dial("192.0.2.53:53")
		if err != nil {
			t.Fatal(err)
		}
		if got := web.peer(fd).String(); got != "192.0.2.53:53" {
			t.Errorf("peer %s", got)
		}
		conn, client := w.proxy.accept(tcp)
		if client != web.local(fd) {
			t.Errorf("resolver accepted %s", client)
		}
		if _, err := w.Flow(w.cookie, client, w.proxy.local(conn)); !errors.Is(err, ErrNoFlow) {
			t.Errorf("flow of a query: %v", err)
		}
	})
	t.Run("untouched", func(t *testing.T) {
		server := w.process("server")
		real := server.socket(unix.AF_INET, unix.SOCK_DGRAM)
		if err := server.bind(real, "10.9.0.1:53"); err != nil {
			t.Fatal(err)
		}
		other := server.socket(unix.AF_INET, unix.SOCK_DGRAM)
		if err := server.bind(other, "10.9.0.1:5353"); err != nil {
			t.Fatal(err)
		}
		for _, who := range []string{"nobody", "excluding", "bypassed"} {
			a := w.process(who)
			fd := a.socket(unix.AF_INET, unix.SOCK_DGRAM)
			a.must(call{Op: "sendto", FD: fd, Addr: netip.MustParseAddrPort("10.9.0.1:53"), Data: who})
			if r := server.must(call{Op: "recvfrom", FD: real}); r.Data != who {
				t.Errorf("server got %+v", r)
			}
		}
		fd := web.socket(unix.AF_INET, unix.SOCK_DGRAM)
		web.must(call{Op: "sendto", FD: fd, Addr: netip.MustParseAddrPort("10.9.0.1:5353"), Data: "mdns"})
		if r := server.must(call{Op: "recvfrom", FD: other}); r.Data != "mdns" || r.Addr.Port() != web.local(fd).Port() {
			t.Errorf("server got %+v", r)
		}
		server.must(call{Op: "sendto", FD: other, Addr: r4(web.local(fd).Port()), Data: "back"})
		if r := web.must(call{Op: "recvfrom", FD: fd}); r.Addr.String() != "10.9.0.1:5353" {
			t.Errorf("client got %+v", r)
		}
	})
	if n := w.connections("web", OutcomeDNS); n != 4+8+1 {
		t.Errorf("counted %d queries", n)
	}
}

func r4(port uint16) netip.AddrPort {
	return netip.AddrPortFrom(netip.MustParseAddr("10.9.0.1"), port)
}

func TestDNSWithoutProxy(t *testing.T) {
	w := newWorld(t)
	w.start()
	direct := w.workload("direct")
	direct.OnProxyDown = mesh.ProxyDownDirect
	w.apply(State{Workloads: []Workload{w.workload("web"), direct}})
	if err := w.Retire(); err != nil {
		t.Fatal(err)
	}
	server, web := w.process("server"), w.process("web")
	real := server.socket(unix.AF_INET, unix.SOCK_DGRAM)
	if err := server.bind(real, "10.9.0.1:53"); err != nil {
		t.Fatal(err)
	}
	query := call{Op: "sendto", Addr: netip.MustParseAddrPort("10.9.0.1:53"), Data: "question"}
	query.FD = web.socket(unix.AF_INET, unix.SOCK_DGRAM)
	refused := unix.ECONNREFUSED
	if !probeFeatures().setRetval {
		refused = unix.EPERM
	}
	if _, err := web.do(query); !errors.Is(err, refused) {
		t.Errorf("send: %v", err)
	}
	if err := web.connect(query.FD, "10.9.0.1:53"); !errors.Is(err, refused) {
		t.Errorf("connect: %v", err)
	}
	a := w.process("direct")
	query.FD = a.socket(unix.AF_INET, unix.SOCK_DGRAM)
	a.must(query)
	if r := server.must(call{Op: "recvfrom", FD: real}); r.Data != "question" {
		t.Errorf("server got %+v", r)
	}
}
