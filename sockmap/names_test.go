// SPDX-License-Identifier: Apache-2.0

package sockmap

import (
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

// TestTrueSource: a server sees the client for which the proxy dials, whatever
// the address it is bound to and the family of its socket.
func TestTrueSource(t *testing.T) {
	w := newWorld(t)
	old, before := w.serving("web", "10.9.0.1:79")
	w.start()
	w.apply(State{Workloads: []Workload{w.workload("web")}})
	web, loopback := w.serving("web", "127.0.0.1:80")
	dual, any := w.serving("web", "[::]:81")
	six, only := w.serving("web", "[2001:db8::1]:82")
	for _, test := range []struct {
		name     string
		server   *actor
		listener int
		dial     string
		source   string
		want     string
	}{
		{"loopback", web, loopback, "127.0.0.1:80", "192.0.2.7:4711", "192.0.2.7:4711"},
		{"adopted listener", old, before, "10.9.0.1:79", "192.0.2.7:4711", "192.0.2.7:4711"},
		{"IPv6", six, only, "[2001:db8::1]:82", "[2001:db8:7::7]:4711", "[2001:db8:7::7]:4711"},
		{"dual stack, IPv6", dual, any, "[::1]:81", "[2001:db8:7::7]:4711", "[2001:db8:7::7]:4711"},
		{"dual stack, IPv4", dual, any, "127.0.0.1:81", "192.0.2.7:4711", "[::ffff:192.0.2.7]:4711"},
		{"dual stack, IPv6 client to IPv4", dual, any, "127.0.0.1:81", "[2001:db8:7::7]:4711", "[2001:db8:7::7]:4711"},
	} {
		t.Run(test.name, func(t *testing.T) {
			fd, err := w.dialOwn(test.dial, netip.MustParseAddrPort(test.source))
			if err != nil {
				t.Fatal(err)
			}
			conn, from := test.server.accept(test.listener)
			if from.String() != test.want {
				t.Errorf("accept gave %s, want %s", from, test.want)
			}
			if got := test.server.peer(conn).String(); got != test.want {
				t.Errorf("getpeername gave %s, want %s", got, test.want)
			}
			if got := w.proxy.peer(fd).String(); got != test.dial {
				t.Errorf("the proxy sees %s, want %s", got, test.dial)
			}
		})
	}
	if s, err := w.Stats(); err != nil || s.Flows != 0 {
		t.Errorf("%d flows are left, %v", s.Flows, err)
	}
}

// TestIPv4ServerOfIPv6Client: an IPv4 socket can't show an IPv6 client; it shows
// the proxy.
func TestIPv4ServerOfIPv6Client(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.apply(State{Workloads: []Workload{w.workload("web")}})
	web, listener := w.serving("web", "127.0.0.1:80")
	fd, err := w.dialOwn("127.0.0.1:80", netip.MustParseAddrPort("[2001:db8:7::7]:4711"))
	if err != nil {
		t.Fatal(err)
	}
	if _, from := web.accept(listener); from != w.proxy.local(fd) {
		t.Errorf("accept gave %s", from)
	}
}

// TestFlowOutlivesClient: a client that has closed before it was accepted.
func TestFlowOutlivesClient(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.apply(State{Workloads: []Workload{w.workload("web")}, Destinations: []Destination{destination("240.240.0.1:80", "db")}})
	web := w.process("web")
	fd, err := web.dial("240.240.0.1:80")
	if err != nil {
		t.Fatal(err)
	}
	web.must(call{Op: "write", FD: fd, Data: "fire and forget"})
	web.close(fd)
	if f, err := w.accepted(unix.AF_INET); err != nil || f.Service != name("db") {
		t.Errorf("flow %+v, %v", f, err)
	}
}
