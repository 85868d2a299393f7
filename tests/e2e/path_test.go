// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"net/netip"
	"testing"

	"github.com/meshproxy/meshproxy/tests/workload"
)

// twoNodes has a service on each node, one on both, and one in a container.
const twoNodes = `
nodes:
  - {name: a, address: 10.77.0.1}
  - {name: b, address: 10.77.0.2}
workloads:
  - {name: front, node: a, match: [{cgroup: "{{.Cgroup "a" "front"}}"}],
     upstreams: [{listen: "127.0.0.1:9191", service: back, port: 80}]}
  - {name: other, node: a, match: [{cgroup: "{{.Cgroup "a" "other"}}"}],
     upstreams: [{listen: "127.0.0.1:9191", service: store, port: 6000}]}
  - {name: store, node: a, match: [{cgroup: "{{.Cgroup "a" "store"}}"}]}
  - {name: clerk, node: a, match: [{user: "4242"}]}
  - {name: back, node: b, match: [{cgroup: "{{.Cgroup "b" "back"}}"}]}
services:
  - name: back
    ports: [{name: main, port: 80}, {name: six, port: 86}, {name: shy, port: 81}]
    endpoints:
      - {address: 10.77.0.2, ports: {main: 8080, six: 8086, shy: 8081}, workload: back, node: b}
  - name: back6
    ports: [{port: 80}]
    endpoints: [{address: "fd00:77::2", port: 8086, workload: back, node: b}]
  - name: store
    ports: [{name: main, port: 6000}, {name: shy, port: 6001}]
    endpoints: [{address: 10.77.0.1, ports: {main: 6000, shy: 6001}, workload: store, node: a}]
authorization: {default: allow}
`

// seen is what a server said about the connection.
func seen(t *testing.T, d workload.Dialed) workload.Seen {
	t.Helper()
	if !d.OK {
		t.Fatalf("dial %s: %s at %s", d.Target, d.Error, d.Stage)
	}
	var s workload.Seen
	if err := json.Unmarshal([]byte(d.Reply), &s); err != nil {
		t.Fatalf("reply %q: %v", d.Reply, err)
	}
	return s
}

// host is the address part of an address and port.
func host(t *testing.T, ap string) string {
	t.Helper()
	a, err := netip.ParseAddrPort(ap)
	if err != nil {
		t.Fatalf("%q: %v", ap, err)
	}
	return a.Addr().Unmap().String()
}

// TestPaths dials in every way that an application can, and compares what both
// ends see with what they would see without a mesh.
func TestPaths(t *testing.T) {
	l := newLab(t, twoNodes, "a", "b")
	a, b := l.net.Host("a"), l.net.Host("b")
	l.serve(a, "store", "-name", "store", "-tcp", "10.77.0.1:6000", "-tcp", "127.0.0.1:6001")
	l.start("a", "")
	l.start("b", "")
	l.serve(b, "back", "-name", "back", "-tcp", "10.77.0.2:8080", "-tcp", "127.0.0.1:8081", "-tcp", "[fd00:77::2]:8086", "-tcp", "10.77.0.2:8086")

	for _, tc := range []struct {
		name   string
		from   string // cgroup
		uid    uint32
		dial   []string
		server string
		client string // as the server sees it
		peer   string // as the client sees it; empty: what it dialled
	}{
		{"by name", "front", 0, []string{"-address", "back:80"}, "back", "10.77.0.1", "virtual"},
		{"by name in the domain", "front", 0, []string{"-address", "back.mesh.internal:80"}, "back", "10.77.0.1", "virtual"},
		{"nested cgroup", "front/deep/er", 0, []string{"-address", "back:80"}, "back", "10.77.0.1", "virtual"},
		{"endpoint's own address", "front", 0, []string{"-address", "10.77.0.2:8080"}, "back", "10.77.0.1", ""},
		{"endpoint's own IPv6 address", "front", 0, []string{"-address", "[fd00:77::2]:8086"}, "back", "fd00:77::1", ""},
		{"IPv4-mapped", "front", 0, []string{"-address", "10.77.0.2:8080", "-mapped"}, "back", "10.77.0.1", ""},
		{"IPv6 endpoint by name", "front", 0, []string{"-address", "back6:80"}, "back", "fd00:77::1", "virtual"},
		{"application bound to loopback", "front", 0, []string{"-address", "back:81"}, "back", "10.77.0.1", "virtual"},
		{"bound source", "front", 0, []string{"-address", "back:80", "-bind", "10.77.0.1"}, "back", "10.77.0.1", "virtual"},
		{"bound device", "front", 0, []string{"-address", "10.77.0.2:8080", "-device", "wire0"}, "back", "10.77.0.1", ""},
		{"explicit upstream", "front", 0, []string{"-address", "127.0.0.1:9191"}, "back", "10.77.0.1", ""},
		{"the same upstream address of another workload", "other", 0, []string{"-address", "127.0.0.1:9191"}, "store", "10.77.0.1", ""},
		{"on the same node", "front", 0, []string{"-address", "store:6000"}, "store", "10.77.0.1", "virtual"},
		{"on the same node, bound to loopback", "front", 0, []string{"-address", "store:6001"}, "store", "10.77.0.1", "virtual"},
		{"workload by user", "anywhere", 4242, []string{"-address", "back:80"}, "back", "10.77.0.1", "virtual"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := l.in(t).dialAs(a, tc.from, tc.uid, append(tc.dial, "-send", "hello")...)
			s := seen(t, d)
			if s.Server != tc.server || s.Body != "hello" {
				t.Errorf("answered by %q with %q", s.Server, s.Body)
			}
			for what, got := range map[string]string{"accept": s.Accepted, "getpeername": s.Peer} {
				if host(t, got) != tc.client {
					t.Errorf("the server's %s shows %s, want %s", what, got, tc.client)
				}
			}
			want := tc.peer
			if want == "" {
				want = host(t, tc.dial[1])
			}
			got := host(t, d.Peer)
			if virtual := got[:4] == "240." || got[:6] == "2001:2"; want == "virtual" != virtual || !virtual && got != want {
				t.Errorf("the client's getpeername shows %s, want %s", got, want)
			}
		})
	}
}

// TestRefusals: what leads nowhere is refused at once, and with the errno that
// an application would expect.
func TestRefusals(t *testing.T) {
	l := newLab(t, twoNodes, "a", "b")
	a, b := l.net.Host("a"), l.net.Host("b")
	l.start("a", "")
	l.start("b", "")
	l.serve(b, "back", "-name", "back", "-tcp", "10.77.0.2:9999")

	for _, tc := range []struct {
		name, address string
		stage, err    string
	}{
		{"virtual IP, unknown port", "back:4711", "connect", "ECONNREFUSED"},
		{"unknown name", "nobody.mesh.internal:80", "resolve", "NXDOMAIN"},
		{"application not listening", "back:80", "read", "ECONNRESET"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := l.in(t).dial(a, "front", "-address", tc.address, "-send", "hello")
			if d.Error == "ECONNRESET" {
				d.Stage = "read" // the reset may come before the request is sent
			}
			if d.OK || d.Stage != tc.stage || d.Error != tc.err {
				t.Errorf("got ok=%v, %s at %s; want %s at %s", d.OK, d.Error, d.Stage, tc.err, tc.stage)
			}
		})
	}
}

// TestOthersAreUntouched: a process that is no workload, a bypassed workload
// and an excluded destination see the network as it is.
func TestOthersAreUntouched(t *testing.T) {
	l := newLab(t, `
nodes: [{name: a, address: 10.77.0.1}, {name: b, address: 10.77.0.2}]
workloads:
  - {name: front, node: a, match: [{cgroup: "{{.Cgroup "a" "front"}}"}], exclude: {outboundPorts: [7001], outboundCIDRs: [10.77.0.2/32]}}
  - {name: off, node: a, bypass: true, match: [{cgroup: "{{.Cgroup "a" "off"}}"}]}
  - {name: strict-egress, node: a, egress: registered-only, match: [{cgroup: "{{.Cgroup "a" "strict-egress"}}"}]}
  - {name: plain, node: a, match: [{cgroup: "{{.Cgroup "a" "plain"}}"}]}
services:
  - {name: back, ports: [{port: 7000}], endpoints: [{address: 10.77.0.2, port: 7000, node: b, identity: "spiffe://mesh.internal/ns/default/sa/back"}]}
`, "a", "b")
	a, b := l.net.Host("a"), l.net.Host("b")
	l.start("a", "")
	// No mesh on b: whatever arrives there did not go through one.
	l.serve(b, "back", "-name", "back", "-tcp", "10.77.0.2:7000", "-tcp", "10.77.0.2:7001", "-tcp", "10.77.0.2:7002")

	for _, tc := range []struct{ name, from, address, err string }{
		{"no workload, endpoint of the mesh", "nobody", "10.77.0.2:7000", ""},
		{"bypassed workload", "off", "10.77.0.2:7000", ""},
		{"excluded network", "front", "10.77.0.2:7000", ""},
		{"excluded port", "front", "10.77.0.2:7001", ""},
		{"passthrough", "plain", "10.77.0.2:7002", ""},
		{"registered only", "strict-egress", "10.77.0.2:7002", "ECONNREFUSED"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := l.in(t).dial(a, tc.from, "-address", tc.address, "-send", "hello")
			if tc.err != "" {
				if d.OK || d.Error != tc.err {
					t.Errorf("got ok=%v %s, want %s", d.OK, d.Error, tc.err)
				}
				return
			}
			s := seen(t, d)
			if s.Accepted != d.Local {
				t.Errorf("the server accepted %s, the client is %s", s.Accepted, d.Local)
			}
		})
	}
}
