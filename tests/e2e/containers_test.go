// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/meshproxy/meshproxy/tests/testnet"
)

// spreadMesh has a workload whose processes are in two containers and on the
// host itself, at the same time.
const spreadMesh = `
authorization: {default: allow}
nodes: [{name: a, address: 10.77.0.1}, {name: b, address: 10.77.0.2}]
workloads:
  - name: app
    node: a
    match: [{cgroupPrefix: "{{.Cgroup "a" "red"}}"}, {cgroupPrefix: "{{.Cgroup "a" "blue"}}"}, {cgroup: "{{.Cgroup "a" "bare"}}"}]
  - {name: far, node: b, match: [{cgroup: "{{.Cgroup "b" "far"}}"}]}
services:
  - name: app
    ports: [{port: 80}]
    endpoints:
      - {address: %s, port: 8080, node: a, workload: app}
      - {address: %s, port: 8080, node: a, workload: app}
      - {address: 10.77.0.1, port: 8080, node: a, workload: app}
  - {name: far, ports: [{port: 80}], endpoints: [{address: 10.77.0.2, port: 8080, node: b, workload: far}]}
`

// TestWorkloadInSeveralNamespaces: each part of it is captured where it is, and
// dialled where it listens.
func TestWorkloadInSeveralNamespaces(t *testing.T) {
	l := newLab(t, "nodes: []", "a", "b")
	a, b := l.net.Host("a"), l.net.Host("b")
	boxes := map[string]*testnet.Container{}
	for _, name := range []string{"red", "blue"} {
		box, err := a.Container(name)
		if err != nil {
			t.Fatal(err)
		}
		boxes[name] = box
	}
	l.writeMesh(fmt.Sprintf(spreadMesh, boxes["red"].Addr4(), boxes["blue"].Addr4()))
	l.start("a", "")
	l.start("b", "")
	l.serve(b, "far", "-name", "far", "-tcp", "0.0.0.0:8080")
	parts := []struct {
		name    string
		where   place
		cgroup  string
		address netip.Addr
	}{
		{"red", boxes["red"], "app", boxes["red"].Addr4()},
		{"blue", boxes["blue"], "app", boxes["blue"].Addr4()},
		{"bare", a, "bare", a.Addr4()},
	}
	for _, p := range parts {
		l.serve(p.where, p.cgroup, "-name", p.name, "-tcp", "0.0.0.0:8080")
	}
	for _, p := range parts {
		l.works(p.where, p.cgroup, "far:80") // the first ones may come too early
	}
	for _, p := range parts {
		t.Run(p.name, func(t *testing.T) {
			l := l.in(t)
			if s := seen(t, l.dial(p.where, p.cgroup, "-address", "far:80", "-send", "hello")); host(t, s.Accepted) != p.address.String() {
				t.Errorf("far accepted %s, want %s", s.Accepted, p.address)
			}
			at := netip.AddrPortFrom(p.address, 8080).String()
			if s := seen(t, l.dial(b, "far", "-address", at, "-send", "hello")); s.Server != p.name || host(t, s.Accepted) != "10.77.0.2" {
				t.Errorf("%s: answered by %s, which accepted %s", at, s.Server, s.Accepted)
			}
			if d := l.dial(b, "nobody", "-address", at, "-send", "hello"); d.OK {
				t.Errorf("%s takes plaintext from another machine", at)
			}
		})
	}
}

// TestNamespacesAtOnce: many containers whose first packets come at the same time,
// each of which the kernel reports and the search for processes finds: nothing is
// opened twice.
func TestNamespacesAtOnce(t *testing.T) {
	const count = 12
	l := newLab(t, "nodes: []", "a", "b")
	a, b := l.net.Host("a"), l.net.Host("b")
	var boxes []*testnet.Container
	mesh := `
authorization: {default: allow}
nodes: [{name: a, address: 10.77.0.1}, {name: b, address: 10.77.0.2}]
services: [{name: far, ports: [{port: 80}], endpoints: [{address: 10.77.0.2, port: 8080, node: b, workload: far}]}]
workloads:
  - {name: far, node: b, match: [{cgroup: "{{.Cgroup "b" "far"}}"}]}
`
	for i := range count {
		name := fmt.Sprintf("box-%d", i)
		box, err := a.Container(name)
		if err != nil {
			t.Fatal(err)
		}
		boxes = append(boxes, box)
		mesh += fmt.Sprintf("  - {name: %[1]s, node: a, match: [{cgroupPrefix: \"{{.Cgroup \"a\" \"%[1]s\"}}\"}]}\n", name)
	}
	l.writeMesh(mesh)
	n := l.start("a", "")
	l.start("b", "")
	l.serve(b, "far", "-name", "far", "-tcp", "0.0.0.0:8080")
	for _, box := range boxes {
		l.background(box, "app", "call", "-fresh", "-tcp", "10.77.0.2:8080", "-rate", "20", "-timeout", "30s")
	}
	for _, box := range boxes {
		l.works(box, "app", "far:80")
	}
	if log := n.Stderr().String() + n.Stdout().String(); strings.Contains(log, "open network namespace") {
		t.Errorf("a namespace could not be opened:\n%s", log)
	}
}
