// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"strings"
	"testing"

	"github.com/meshproxy/meshproxy/tests/meshnode"
)

// faultMesh has a client on node a, and servers that it calls on both nodes.
const faultMesh = `
authorization: {default: allow}
nodes: [{name: a, address: 10.77.0.1}, {name: b, address: 10.77.0.2}]
workloads:
  - {name: client, node: a, match: [{cgroup: "{{.Cgroup "a" "client"}}"}]}
  - {name: other, node: a, match: [{cgroup: "{{.Cgroup "a" "other"}}"}]}
  - {name: near, node: a, match: [{cgroup: "{{.Cgroup "a" "near"}}"}]}
  - {name: far, node: b, match: [{cgroup: "{{.Cgroup "b" "far"}}"}]}
services:
  - {name: near, ports: [{port: 80}], endpoints: [{address: 10.77.0.1, port: 8080, node: a, workload: near}]}
  - {name: far, ports: [{port: 80}], endpoints: [{address: 10.77.0.2, port: 8080, node: b, workload: far}]}
`

// twoFaultNodes starts faultMesh with its servers; the options are a's, and b's
// configuration has what is added.
func twoFaultNodes(t *testing.T, o meshnode.Options, ofB ...string) *lab {
	t.Helper()
	l := newLab(t, faultMesh, "a", "b")
	l.startAs("a", o)
	l.start("b", strings.Join(ofB, ""))
	l.serve(l.net.Host("a"), "near", "-name", "near", "-tcp", "10.77.0.1:8080")
	l.serve(l.net.Host("b"), "far", "-name", "far", "-tcp", "10.77.0.2:8080")
	return l
}

// TestApplicationNotListening: the client sees a reset at once, both nodes know
// why, and nothing has to be restarted when the application comes.
func TestApplicationNotListening(t *testing.T) {
	l := newLab(t, faultMesh, "a", "b")
	l.start("a", "")
	l.start("b", "")
	a, b := l.net.Host("a"), l.net.Host("b")

	l.fails(a, "client", "far:80", resetLater)
	l.refused("a", "outbound peer_unavailable")
	l.refused("b", "inbound connect_refused")
	l.logged(l.nodes["a"], "peer_unavailable", "source=client", "service=far")
	l.logged(l.nodes["b"], "connect_refused", "destination=far")

	l.fails(a, "client", "near:80", resetLater)
	l.refused("a", "outbound connect_refused")
	l.logged(l.nodes["a"], "connect_refused", "source=client", "service=near")

	l.serve(b, "far", "-name", "far", "-tcp", "10.77.0.2:8080")
	l.serve(a, "near", "-name", "near", "-tcp", "10.77.0.1:8080")
	for _, name := range []string{"far", "near"} {
		if d := l.dial(a, "client", "-address", name+":80", "-send", "hello"); seen(t, d).Server != name {
			t.Errorf("%s answered by %q", name, seen(t, d).Server)
		}
	}
}
