// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/meshproxy/meshproxy/nodeproxy/admin/api"
)

// departureMesh has two clients that can be left out, one of them in a container,
// and servers that take connections of workloads only, and of anybody. What is
// filled in is the rest of the mesh.
const departureMesh = `
nodes: [{name: a, address: 10.77.0.1}]
workloads:
  - {name: stays, match: [{cgroup: "{{.Cgroup "a" "stays"}}"}]}
  - {name: open, match: [{cgroup: "{{.Cgroup "a" "open"}}"}], inbound: permissive}
%s
services:
  - {name: open, ports: [{port: 80}], endpoints: [{address: 10.77.0.1, port: 8081, node: a, workload: open}]}
%s
`

const departureClients = `
  - {name: leaves, match: [{cgroup: "{{.Cgroup "a" "leaves"}}"}]}
  - {name: boxed, match: [{cgroupPrefix: "{{.Cgroup "a" "box"}}"}]}
`

const departureServer = `
  - {name: strict, match: [{cgroup: "{{.Cgroup "a" "strict"}}"}]}
`

const departureService = `
  - {name: strict, ports: [{port: 80}], endpoints: [{address: 10.77.0.1, port: 8080, node: a, workload: strict}]}
`

const departurePolicy = `
authorization: {default: deny}
policies:
  - name: stays-may
    action: allow
    from: [{identity: "spiffe://mesh.internal/ns/default/sa/stays"}]
    to: [{service: strict}]
`

// TestDeparture: a client that is no workload any more is nobody, and its open
// connections are what nobody may have. An endpoint that is in no service any more
// goes on to serve those that are open. The same by the proxy and without it.
func TestDeparture(t *testing.T) {
	for mode, path := range map[string]string{"auto": "splice", "off": "direct"} {
		t.Run("splicing "+mode, func(t *testing.T) {
			departure(t, mode, path)
		})
	}
}

func departure(t *testing.T, mode, path string) {
	mesh := func(clients, server, service, policy string) string {
		return fmt.Sprintf(departureMesh, clients+server, service) + policy
	}
	const allow = "authorization: {default: allow}"
	l := newLab(t, mesh(departureClients, departureServer, departureService, allow), "a")
	a := l.net.Host("a")
	box, err := a.Container("box")
	if err != nil {
		t.Fatal(err)
	}
	l.start("a", "splicing: "+mode+"\n")
	l.serve(a, "strict", "-echo", "10.77.0.1:8080")
	l.serve(a, "open", "-echo", "10.77.0.1:8081")
	strict, open := l.virtualIP("a", "strict")+":80", l.virtualIP("a", "open")+":80"
	routes := []route{
		{"leaves to strict", a, "leaves", strict},
		{"boxed to strict", box, "app", strict},
		{"leaves to open", a, "leaves", open},
		{"stays to strict", a, "stays", strict},
	}
	calls := make(map[string]routeCall)
	for _, r := range routes {
		if mode == "auto" {
			l.learn(r)
		}
		calls[r.name] = routeCall{l.call(r.where, r.cgroup, "-rate", "50", "-echo", r.address), r.name}
	}
	l.areOpen(path, "boxed", "leaves", "leaves", "stays")
	goesOn := func(names ...string) {
		t.Helper()
		for _, name := range names {
			p := calls[name].Process
			for range 3 {
				l.awaitCall(p, mark(p), name+" goes on", succeeded)
			}
			l.undisturbed(p, 0)
		}
	}
	change := func(text string, cut ...string) {
		t.Helper()
		marks := make(map[string]int)
		for _, name := range cut {
			marks[name] = mark(calls[name].Process)
		}
		l.writeMesh(text)
		changed := time.Now()
		for _, name := range cut {
			l.awaitCall(calls[name].Process, marks[name], name+" is cut", failed)
			t.Logf("%s was cut after %v", name, time.Since(changed).Round(time.Millisecond))
		}
	}

	change(mesh("", departureServer, departureService, allow), "leaves to strict", "boxed to strict")
	goesOn("leaves to open", "stays to strict")
	l.areOpen(path, "leaves", "stays")

	change(mesh("", departureServer, departureService, departurePolicy), "leaves to open")
	goesOn("stays to strict")

	change(mesh("", departureServer, "", departurePolicy))
	l.eventually("the service is gone", func() error {
		services, err := l.nodes["a"].Admin.Services(l.ctx())
		if err == nil && len(services) != 1 {
			err = fmt.Errorf("%+v", services)
		}
		return err
	})
	goesOn("stays to strict")
	change(mesh("", departureServer, "", strings.ReplaceAll(departurePolicy, "strict", "open")), "stays to strict")
	l.areOpen(path)
}

// areOpen waits until the open connections are of these sources, and have taken
// that path.
func (l *lab) areOpen(path string, sources ...string) {
	l.Helper()
	l.eventually("connections", func() error {
		all, err := l.nodes["a"].Admin.Connections(l.ctx(), api.ConnectionFilter{})
		if err != nil {
			return err
		}
		var names []string
		for _, c := range all.Connections {
			if c.Path != path {
				return fmt.Errorf("%+v", c)
			}
			names = append(names, c.Source)
		}
		slices.Sort(names)
		if !slices.Equal(names, sources) {
			return fmt.Errorf("of %v", names)
		}
		return nil
	})
}

// TestDepartureWithoutProxy: a workload in a container leaves while no process is
// there. The next one closes its connections, in whose namespace it has no business
// any more, and no others.
func TestDepartureWithoutProxy(t *testing.T) {
	w := newAbsence(t)
	w.kill("a")
	var rest []string
	for line := range strings.Lines(w.mesh) {
		if !strings.Contains(line, "name: boxed") {
			rest = append(rest, line)
		}
	}
	boxed, others := w.used[0], w.used[2:]
	from := mark(boxed.Process)
	w.writeMesh(strings.Join(rest, ""))
	w.startNode()
	w.awaitCall(boxed.Process, from, "a call that fails", failed)
	for _, c := range others {
		w.awaitCall(c.Process, mark(c.Process), "a call that succeeds", succeeded)
		w.undisturbed(c.Process, 0)
	}
}
