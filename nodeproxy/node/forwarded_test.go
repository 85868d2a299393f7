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

// TestSpeaksFor: whose word counts for what.
func TestSpeaksFor(t *testing.T) {
	nodes := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/24"), netip.MustParsePrefix("fd00::/64")}
	for _, tc := range []struct {
		name            string
		nodes           []netip.Prefix
		peer, header    string
		client, speaker string
	}{
		{"nobody said where nodes are", nil, "192.0.2.1:9", `for="10.1.2.3:1"`, "10.1.2.3:1", "192.0.2.1:9"},
		{"of himself", nil, "192.0.2.1:9", `for="192.0.2.1:1"`, "192.0.2.1:1", ""},
		{"nothing is said", nil, "192.0.2.1:9", "", "192.0.2.1:9", ""},
		{"a node", nodes, "10.0.0.7:9", `for="10.1.2.3:1"`, "10.1.2.3:1", ""},
		{"a node, mapped", nodes, "[::ffff:10.0.0.7]:9", `for="10.1.2.3:1"`, "10.1.2.3:1", ""},
		{"a node, IPv6", nodes, "[fd00::7]:9", `for="10.1.2.3:1"`, "10.1.2.3:1", ""},
		{"no node", nodes, "10.0.1.7:9", `for="10.1.2.3:1"`, "10.0.1.7:9", ""},
		{"no node, of himself", nodes, "[::ffff:10.0.1.7]:9", `for="10.0.1.7:1"`, "10.0.1.7:1", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := &inbound{client: addrPort(tc.peer)}
			s.speaksFor(tc.header, tc.nodes)
			if s.client != addrPort(tc.client) || s.speaker.IsValid() != (tc.speaker != "") || tc.speaker != "" && s.speaker != addrPort(tc.speaker) {
				t.Errorf("client %v, speaker %v", s.client, s.speaker)
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
