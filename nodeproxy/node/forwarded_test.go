// SPDX-License-Identifier: Apache-2.0

package node

import (
	"net/netip"
	"testing"

	"github.com/meshproxy/meshproxy/discovery/mesh"
)

func TestForwardedFor(t *testing.T) {
	for _, tc := range []struct{ name, header, want string }{
		{"ours", forwarded(addrPort("10.0.0.1:4711"), name("web")), "10.0.0.1:4711"},
		{"ours, IPv6", forwarded(addrPort("[fd00::1]:4711"), name("web")), "[fd00::1]:4711"},
		{"case and spaces", ` For="10.0.0.1:4711" ; host=web`, "10.0.0.1:4711"},
		{"mapped", `for="[::ffff:10.0.0.1]:1"`, "10.0.0.1:1"},
		{"first hop counts", `for="10.0.0.1:1", for="10.0.0.2:2"`, "10.0.0.1:1"},
		{"no port", `for=10.0.0.1`, ""},
		{"obfuscated", `for=_hidden`, ""},
		{"loopback grants too much", `for="127.0.0.1:80"`, ""},
		{"IPv6 loopback", `for="[::1]:80"`, ""},
		{"zone", `for="[fe80::1%eth0]:80"`, ""},
		{"unspecified", `for="0.0.0.0:80"`, ""},
		{"empty", "", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, ok := forwardedFor(tc.header)
			want := netip.AddrPort{}
			if tc.want != "" {
				want = addrPort(tc.want)
			}
			if got != want || ok != want.IsValid() {
				t.Errorf("forwardedFor(%q) = %v, %v; want %v", tc.header, got, ok, want)
			}
		})
	}
}

func TestBelieved(t *testing.T) {
	nodes := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/24"), netip.MustParsePrefix("fd00::/64")}
	for _, tc := range []struct {
		name         string
		from         []netip.Prefix
		peer, client string
		want         bool
	}{
		{"nothing is configured", nil, "192.0.2.1", "10.1.2.3", true},
		{"a node", nodes, "10.0.0.7", "10.1.2.3", true},
		{"a node, mapped", nodes, "::ffff:10.0.0.7", "10.1.2.3", true},
		{"a node, IPv6", nodes, "fd00::7", "10.1.2.3", true},
		{"somebody else", nodes, "10.0.1.7", "10.1.2.3", false},
		{"somebody else, of himself", nodes, "::ffff:10.0.1.7", "10.0.1.7", true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := believed(tc.from, addr(tc.peer), addr(tc.client)); got != tc.want {
				t.Errorf("believed(%s, %s) = %v", tc.peer, tc.client, got)
			}
		})
	}
}

func TestBaggage(t *testing.T) {
	for _, n := range []mesh.Name{name("web"), {Namespace: "shop", Name: "web"}} {
		if got := baggageWorkload(baggage(n)); got != n.String() {
			t.Errorf("baggage of %s is read as %q", n, got)
		}
	}
	if got := baggageWorkload("service.name=a\"b,k8s.namespace.name=x"); got != "" {
		t.Errorf("a quote is accepted: %q", got)
	}
}

func FuzzForwardedFor(f *testing.F) {
	f.Add(`for="10.0.0.1:4711";host=web`)
	f.Add(`for="[fd00::1]:1", for=_x`)
	f.Fuzz(func(t *testing.T, header string) {
		ap, ok := forwardedFor(header)
		if ok && (!usable(ap.Addr()) || ap.Addr().Is4In6()) {
			t.Errorf("forwardedFor(%q) = %v", header, ap)
		}
		baggageWorkload(header)
	})
}
