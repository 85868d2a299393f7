// SPDX-License-Identifier: Apache-2.0

package sockmap

import (
	"errors"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/meshproxy/meshproxy/discovery/mesh"
	"github.com/meshproxy/meshproxy/sockmap/netns"
	"github.com/meshproxy/meshproxy/sockmap/sockdiag"
)

// TestOwnerWorkload: who asks the DNS proxy, as that sees it.
func TestOwnerWorkload(t *testing.T) {
	w := newWorld(t)
	w.start()
	user := w.workload("user")
	user.Selectors = []mesh.Selector{{Kind: mesh.SelectUser, Value: "4711"}}
	w.apply(State{Workloads: []Workload{w.workload("web"), user}})
	diag, err := sockdiag.OpenBy(netns.Direct{}, w.ns.FD())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(diag.Close)
	udp, tcp := map[string]int{}, map[string]int{}
	for _, at := range []string{"127.0.0.1:15053", "[::1]:15053"} {
		fd := w.proxy.socket(domainOf(at), unix.SOCK_DGRAM)
		w.proxy.with(fd, w.OwnSocket)
		if err := w.proxy.bind(fd, at); err != nil {
			t.Fatal(err)
		}
		udp[at], tcp[at] = fd, w.listenOwn(w.proxy, at)
	}
	nested := w.process("web/deep/down")
	for _, asker := range []struct {
		name string
		*actor
	}{
		{"web", w.process("web")},
		{"web", nested},
		{"user", startActor(t, w.cgroup("anywhere"), w.ns, 4711)},
	} {
		for _, test := range []struct{ server, proxy string }{
			{"192.0.2.53:53", "127.0.0.1:15053"},
			{"[2001:db8:53::1]:53", "[::1]:15053"},
			{"[::ffff:192.0.2.53]:53", "127.0.0.1:15053"},
		} {
			proxy := netip.MustParseAddrPort(test.proxy)
			is := func(how string, p sockdiag.Protocol, client netip.AddrPort) {
				t.Helper()
				client = netip.AddrPortFrom(client.Addr().Unmap(), client.Port())
				owner, err := diag.Owner(p, client, proxy)
				if err != nil {
					t.Errorf("%s asks %s, %s: %v", asker.name, test.server, how, err)
					return
				}
				if got, ok := w.OwnerWorkload(owner); !ok || got != name(asker.name) {
					t.Errorf("%s asks %s, %s: %v, %v; owner %+v", asker.name, test.server, how, got, ok, owner)
				}
			}
			for _, how := range []string{"connected", "unconnected"} {
				fd := asker.socket(domainOf(test.server), unix.SOCK_DGRAM)
				query := call{Op: "sendto", FD: fd, Addr: netip.MustParseAddrPort(test.server), Data: "question"}
				if how == "connected" {
					if err := asker.connect(fd, test.server); err != nil {
						t.Fatal(err)
					}
					query.Op = "write"
				}
				asker.must(query)
				q := w.proxy.must(call{Op: "recvfrom", FD: udp[test.proxy]})
				is(how, sockdiag.UDP, q.Addr)
			}
			if _, err := asker.dial(test.server); err != nil {
				t.Fatal(err)
			}
			_, client := w.proxy.accept(tcp[test.proxy])
			is("TCP", sockdiag.TCP, client)
		}
	}
	nobody := netip.MustParseAddrPort("127.0.0.1:9")
	for _, p := range []sockdiag.Protocol{sockdiag.UDP, sockdiag.TCP} {
		if _, err := diag.Owner(p, nobody, netip.MustParseAddrPort("127.0.0.1:15054")); !errors.Is(err, sockdiag.ErrGone) {
			t.Errorf("owner of no socket: %v", err)
		}
	}
}
