// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"strings"
	"testing"

	"github.com/meshproxy/meshproxy/nodeproxy/admin/api"
	"github.com/meshproxy/meshproxy/tests/meshnode"
)

// adoptedMesh has servers that are known by their cgroup, by their user, and in a
// container, and an endpoint that is a workload's where somebody else listens.
const adoptedMesh = `
nodes: [{name: a, address: 10.77.0.1}]
workloads:
  - {name: good, match: [{cgroup: "{{.Cgroup "a" "good"}}"}]}
  - {name: bad, match: [{cgroup: "{{.Cgroup "a" "bad"}}"}]}
  - {name: near, match: [{cgroup: "{{.Cgroup "a" "near"}}"}]}
  - {name: clerk, match: [{user: "4242"}]}
  - {name: boxed, match: [{cgroupPrefix: "{{.Cgroup "a" "box"}}"}]}
services:
  - {name: near, ports: [{port: 80}], endpoints: [{address: 10.77.0.1, port: 8080, node: a, workload: near}]}
  - {name: near6, ports: [{port: 80}], endpoints: [{address: "fd00:77::1", port: 8086, node: a, workload: near}]}
  - {name: clerk, ports: [{port: 80}], endpoints: [{address: 10.77.0.1, port: 8082, node: a, workload: clerk}]}
  - {name: boxed, ports: [{port: 80}], endpoints: [{address: %s, port: 8080, node: a, workload: boxed}]}
  - {name: taken, ports: [{port: 80}], endpoints: [{address: 10.77.0.1, port: 8081, node: a, workload: near}]}
`

// TestDirectAdopted: listeners that are older than the node are whose they are, by
// cgroup and user. Connections to them are spliced, under the policy about that
// workload.
func TestDirectAdopted(t *testing.T) {
	l := newLab(t, "nodes: []", "a")
	a := l.net.Host("a")
	box, err := a.Container("box")
	if err != nil {
		t.Fatal(err)
	}
	l.writeMesh(fmt.Sprintf(adoptedMesh, box.Addr4()) + allowGood)
	l.serve(a, "near", "-echo", "0.0.0.0:8080", "-echo", "[fd00:77::1]:8086")
	l.serveAs(a, "anywhere", 4242, "-echo", "10.77.0.1:8082")
	l.serve(a, "nobody", "-echo", "10.77.0.1:8081")
	l.serve(box, "app", "-echo", "0.0.0.0:8080")
	l.start("a", "splicing: auto")

	routes := map[string]route{}
	for service, server := range map[string]string{"near": "near", "near6": "near", "clerk": "clerk", "boxed": "boxed"} {
		address := l.virtualIP("a", service)
		if service == "near6" {
			address = "[" + l.virtualIPs("a", service)[1] + "]"
		}
		r := route{service, a, "good", address + ":80"}
		l.learn(r)
		routes[service] = r
		call := l.call(a, "good", "-echo", r.address, "-rate", "50")
		l.eventually("the connection to "+service+" is listed", func() error {
			all, err := l.nodes["a"].Admin.Connections(l.ctx(), api.ConnectionFilter{Service: service, Path: "splice"})
			if err != nil || len(all.Connections) != 1 {
				return fmt.Errorf("%+v, %v", all, err)
			}
			if c := all.Connections[0]; c.Source != "good" || c.Destination != server || c.DestinationIdentity != meshnode.Identity(server) {
				t.Errorf("%+v", c)
			}
			return nil
		})
		l.fails(a, "bad", r.address, refusedAtOnce)
		l.awaitCall(call, mark(call), "a call that succeeds", succeeded)
		l.undisturbed(call, 0)
	}
	t.Run("whose listener is somebody else's", func(t *testing.T) {
		l := l.in(t)
		before := l.splice("a").Opened
		l.dial(a, "good", "-address", l.virtualIP("a", "taken")+":80", "-send", "hello")
		if s := l.splice("a"); s.Opened != before {
			t.Errorf("a connection went directly: %+v", s)
		}
	})
	t.Run("policy changes", func(t *testing.T) {
		l := l.in(t)
		l.writeMesh(strings.Replace(l.mesh, "sa/good", "sa/bad", 1))
		l.eventually("nothing is open", func() error {
			if s := l.splice("a"); s.Active != 0 {
				return fmt.Errorf("%+v", s)
			}
			return nil
		})
		for _, r := range routes {
			l.fails(a, "good", r.address, refusedAtOnce)
			r.cgroup = "bad"
			l.learn(r)
		}
	})
}
