// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"testing"

	"github.com/meshproxy/meshproxy/tests/testnet"
)

// inboundMesh has one workload per inbound mode on node a, and node b with a
// client in the mesh.
const inboundMesh = `
authorization: {default: allow}
nodes: [{name: a, address: 10.77.0.1}, {name: b, address: 10.77.0.2}]
workloads:
  - {name: strict, node: a, match: [{cgroup: "{{.Cgroup "a" "strict"}}"}]}
  - {name: closed, node: a, inboundLocal: deny, match: [{cgroup: "{{.Cgroup "a" "closed"}}"}]}
  - {name: permissive, node: a, inbound: permissive, match: [{cgroup: "{{.Cgroup "a" "permissive"}}"}]}
  - {name: off, node: a, inbound: "off", match: [{cgroup: "{{.Cgroup "a" "off"}}"}]}
  - {name: excluded, node: a, exclude: {inboundPorts: [7104]}, match: [{cgroup: "{{.Cgroup "a" "excluded"}}"}]}
  - {name: client, node: b, match: [{cgroup: "{{.Cgroup "b" "client"}}"}]}
services:
  - {name: strict, ports: [{port: 80}], endpoints: [{address: 10.77.0.1, port: 7100, node: a, workload: strict}]}
  - {name: permissive, ports: [{port: 80}], endpoints: [{address: 10.77.0.1, port: 7102, node: a, workload: permissive}]}
`

// TestInboundModes dials each workload from a client in the mesh, from another
// machine, from a container of the same machine and from a local process that
// is no workload.
func TestInboundModes(t *testing.T) {
	l := newLab(t, inboundMesh, "a", "b")
	a, b := l.net.Host("a"), l.net.Host("b")
	box, err := a.Container("box")
	if err != nil {
		t.Fatal(err)
	}
	// This one is older than the mesh and is never restarted.
	l.serve(a, "strict", "-name", "strict", "-tcp", "0.0.0.0:7100")
	l.start("a", "")
	l.start("b", "")
	l.serve(a, "closed", "-name", "closed", "-tcp", "0.0.0.0:7101")
	l.serve(a, "permissive", "-name", "permissive", "-tcp", "0.0.0.0:7102", "-tcp", "0.0.0.0:7105")
	l.serve(a, "off", "-name", "off", "-tcp", "0.0.0.0:7103")
	l.serve(a, "excluded", "-name", "excluded", "-tcp", "0.0.0.0:7104")

	const refused = "ECONNREFUSED"
	for _, tc := range []struct {
		workload string
		port     int
		machine  string // what a plaintext client on another machine gets
		local    string // and a local one
	}{
		{"strict", 7100, refused, ""},
		{"closed", 7101, refused, refused},
		{"permissive", 7102, "", ""},
		{"permissive", 7105, "", ""}, // no service has this port
		{"off", 7103, "", ""},
		{"excluded", 7104, "", ""},
	} {
		address := fmt.Sprintf("10.77.0.1:%d", tc.port)
		for _, from := range []struct {
			name  string
			where place
			want  string
		}{
			{"machine", b, tc.machine},
			{"container", box, tc.machine},
			{"local", a, tc.local},
		} {
			t.Run(fmt.Sprintf("%s %d from %s", tc.workload, tc.port, from.name), func(t *testing.T) {
				d := l.in(t).dial(from.where, "nobody", "-address", address, "-send", "hello")
				if from.want != "" {
					if d.OK || d.Error != from.want {
						t.Errorf("got ok=%v %s, want %s", d.OK, d.Error, from.want)
					}
					return
				}
				if s := seen(t, d); s.Accepted != d.Local || s.Peer != d.Local {
					t.Errorf("the server saw %s and %s, the client is %s", s.Accepted, s.Peer, d.Local)
				}
			})
		}
	}
	t.Run("strict from the mesh", func(t *testing.T) {
		if s := seen(t, l.in(t).dial(b, "client", "-address", "strict:80", "-send", "hello")); host(t, s.Accepted) != "10.77.0.2" {
			t.Errorf("the server accepted %s", s.Accepted)
		}
	})
	t.Run("refusals are counted", func(t *testing.T) {
		l := l.in(t)
		l.refused("a", "inbound plaintext_refused")
		l.refused("a", "inbound local_denied")
	})
}

// containerMesh has a workload in a network namespace of its own, as a server
// and as a client.
const containerMesh = `
authorization: {default: allow}
nodes: [{name: a, address: 10.77.0.1}, {name: b, address: 10.77.0.2}]
workloads:
  - {name: box, node: a, match: [{cgroupPrefix: "{{.Cgroup "a" "box"}}"}]}
  - {name: near, node: a, match: [{cgroup: "{{.Cgroup "a" "near"}}"}]}
  - {name: far, node: b, match: [{cgroup: "{{.Cgroup "b" "far"}}"}]}
services:
  - {name: box, ports: [{port: 80}], endpoints: [{address: %s, port: 8080, node: a, workload: box}]}
  - {name: far, ports: [{port: 80}], endpoints: [{address: 10.77.0.2, port: 8080, node: b, workload: far}]}
  - {name: near, ports: [{port: 80}], endpoints: [{address: 10.77.0.1, port: 9090, node: a, workload: near}]}
`

// TestContainer: listeners are opened in the container's namespace, and both
// ends see true addresses.
func TestContainer(t *testing.T) {
	l := newLab(t, "nodes: []", "a", "b")
	l.testContainer(func() { l.start("a", throughProxy) })
}

// TestContainerByHelper: the same of a node that may not enter namespaces.
func TestContainerByHelper(t *testing.T) {
	l := newLab(t, "nodes: []", "a", "b")
	l.testContainer(func() { l.startAsService("a", helperCapabilities, throughProxy) })
}

func (l *lab) testContainer(startA func()) {
	t := l.T
	a, b := l.net.Host("a"), l.net.Host("b")
	box, err := a.Container("box")
	if err != nil {
		t.Fatal(err)
	}
	l.writeMesh(fmt.Sprintf(containerMesh, box.Addr4()))
	startA()
	l.start("b", "")
	l.serve(box, "app", "-name", "box", "-tcp", "0.0.0.0:8080")
	l.serve(b, "far", "-name", "far", "-tcp", "0.0.0.0:8080")
	l.serve(a, "near", "-name", "near", "-tcp", "0.0.0.0:9090")

	// The first connections may come before the proxy is in the namespace: they
	// are refused, never let past the mesh.
	l.eventually("dial from the container", func() error {
		if d := l.dial(box, "app", "-address", "far:80", "-send", "hello"); !d.OK {
			return fmt.Errorf("%s at %s", d.Error, d.Stage)
		}
		return nil
	})
	for _, tc := range []struct {
		name, address, server, client string
		where                         place
		cgroup                        string
	}{
		{"to another node", "far:80", "far", box.Addr4().String(), box, "app"},
		{"to its own node", "near:80", "near", box.Addr4().String(), box, "app"},
		{"from its own node", "box:80", "box", "10.77.0.1", a, "near"},
		{"from another node", "box:80", "box", "10.77.0.2", b, "far"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := seen(t, l.in(t).dial(tc.where, tc.cgroup, "-address", tc.address, "-send", "hello"))
			if s.Server != tc.server || host(t, s.Accepted) != tc.client {
				t.Errorf("%s accepted %s, want %s to accept %s", s.Server, s.Accepted, tc.server, tc.client)
			}
		})
	}
	t.Run("plaintext from another machine", func(t *testing.T) {
		d := l.in(t).dial(b, "nobody", "-address", box.Addr4().String()+":8080", "-send", "hello")
		if d.OK || d.Error != "ECONNREFUSED" {
			t.Errorf("got ok=%v %s", d.OK, d.Error)
		}
	})
	t.Run("plaintext from the container's own host", func(t *testing.T) {
		d := l.in(t).dial(a, "nobody", "-address", box.Addr4().String()+":8080", "-send", "hello")
		if d.OK {
			t.Errorf("a process that is no workload reached a strict workload in a namespace of its own")
		}
	})
}

// TestEncryption: a marker is on the wire without the mesh and not with it.
func TestEncryption(t *testing.T) {
	l := newLab(t, inboundMesh, "a", "b")
	a, b := l.net.Host("a"), l.net.Host("b")
	l.start("a", "")
	l.start("b", "")
	l.serve(a, "strict", "-name", "strict", "-tcp", "0.0.0.0:7100")
	l.serve(a, "off", "-name", "off", "-tcp", "0.0.0.0:7103")
	capture, err := a.StartCapture(testnet.WireLink, "marker-in-the-mesh", "marker-in-the-clear")
	if err != nil {
		t.Fatal(err)
	}
	defer capture.Stop()
	seen(t, l.dial(b, "client", "-address", "strict:80", "-send", "marker-in-the-mesh"))
	seen(t, l.dial(b, "nobody", "-address", "10.77.0.1:7103", "-send", "marker-in-the-clear"))
	if err := capture.Sync(l.ctx()); err != nil {
		t.Fatal(err)
	}
	if _, _, dropped := capture.Totals(); dropped > 0 {
		t.Fatalf("%d packets were not looked at", dropped)
	}
	if capture.Contains("marker-in-the-clear") == 0 {
		t.Error("the control's marker is not on the wire: the capture sees nothing")
	}
	if n := capture.Contains("marker-in-the-mesh"); n > 0 {
		t.Errorf("the mesh's marker is on the wire %d times", n)
	}
}
