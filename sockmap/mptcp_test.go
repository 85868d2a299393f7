// SPDX-License-Identifier: Apache-2.0

package sockmap

import (
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

// mptcp makes a socket as Go's listeners are by default since 1.24, and
// clients of applications that ask for it.
func (a *actor) mptcp(domain int) int {
	a.t.Helper()
	return a.must(call{Op: "socket", Domain: domain, Type: unix.SOCK_STREAM, Protocol: unix.IPPROTO_MPTCP}).FD
}

// TestMPTCPClient: the kernel connects a subflow, which is what the hooks see;
// the application has the socket above it.
func TestMPTCPClient(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.apply(State{
		Workloads:    []Workload{w.workload("web")},
		Destinations: []Destination{destination("240.240.0.1:80", "db"), destination("[2001:2::1]:80", "db")},
	})
	web := w.process("web")
	for _, test := range []struct {
		addr   string
		domain int // of the socket
		proxy  int // of the listener
	}{
		{"240.240.0.1:80", unix.AF_INET, unix.AF_INET},
		{"[2001:2::1]:80", unix.AF_INET6, unix.AF_INET6},
		{"[::ffff:240.240.0.1]:80", unix.AF_INET6, unix.AF_INET},
	} {
		t.Run(test.addr, func(t *testing.T) {
			fd := web.mptcp(test.domain)
			if err := web.connect(fd, test.addr); err != nil {
				t.Fatal(err)
			}
			conn, client := w.proxy.accept(w.outbound[test.proxy])
			flow, err := w.Flow(w.cookie, client, w.proxy.local(conn))
			if err != nil {
				t.Fatal(err)
			}
			want := netip.MustParseAddrPort(test.addr)
			if flow.WorkloadName != name("web") || flow.OriginalDst != netip.AddrPortFrom(want.Addr().Unmap(), want.Port()) {
				t.Errorf("flow %+v", flow)
			}
			if got := web.peer(fd); got != want {
				t.Errorf("dialled %s, peer %s", want, got)
			}
			web.must(call{Op: "write", FD: fd, Data: "hello"})
			if r := w.proxy.must(call{Op: "recvfrom", FD: conn}); r.Data != "hello" {
				t.Errorf("proxy got %+v", r)
			}
		})
	}
}

// TestMPTCPServer: the proxy dials it with plain TCP, and others stay out.
func TestMPTCPServer(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.apply(State{Workloads: []Workload{w.workload("web")}})
	far := w.neighbour()
	web := w.process("web")
	for _, at := range []string{"0.0.0.0:80", "[::]:81"} {
		t.Run(at, func(t *testing.T) {
			listener := web.mptcp(domainOf(at))
			if err := web.bind(listener, at); err != nil {
				t.Fatal(err)
			}
			web.must(call{Op: "listen", FD: listener})
			port := netip.MustParseAddrPort(at).Port()
			source := netip.MustParseAddrPort("198.51.100.7:4711")
			if _, err := w.dialOwn(netip.AddrPortFrom(netip.MustParseAddr("10.9.0.1"), port).String(), source); err != nil {
				t.Fatal(err)
			}
			conn, from := web.accept(listener)
			if from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port()); from != source {
				t.Errorf("accepted %s, want %s", from, source)
			}
			if got := web.peer(conn); netip.AddrPortFrom(got.Addr().Unmap(), got.Port()) != source {
				t.Errorf("peer %s, want %s", got, source)
			}
			for _, socket := range []int{far.socket(unix.AF_INET, unix.SOCK_STREAM), far.mptcp(unix.AF_INET)} {
				if err := far.connect(socket, netip.AddrPortFrom(netip.MustParseAddr("10.8.0.1"), port).String()); err == nil {
					t.Error("plaintext from elsewhere was taken")
				}
			}
		})
	}
}
