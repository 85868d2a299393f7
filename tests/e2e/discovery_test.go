// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/meshproxy/meshproxy/nodeproxy/admin/api"
	"github.com/meshproxy/meshproxy/tests/meshnode"
)

// balanceMesh has a service on both nodes.
const balanceMesh = `
authorization: {default: allow}
nodes: [{name: a, address: 10.77.0.1}, {name: b, address: 10.77.0.2}]
workloads:
  - {name: client, node: a, match: [{cgroup: "{{.Cgroup "a" "client"}}"}]}
  - {name: web-a, node: a, match: [{cgroup: "{{.Cgroup "a" "web"}}"}]}
  - {name: web-b, node: b, match: [{cgroup: "{{.Cgroup "b" "web"}}"}]}
services:
  - name: web
    ports: [{port: 80}]
    %s
    endpoints:
      - {address: 10.77.0.1, port: 8080, node: a, workload: web-a}
      - {address: 10.77.0.2, port: 8080, node: b, workload: web-b}
      - {address: 10.77.0.2, port: 8081, node: b, workload: web-b}
`

const (
	unchecked = ""
	tcpCheck  = "healthCheck: {tcp: true, interval: 250ms, timeout: 250ms, healthy: 1, unhealthy: 8}"
	httpCheck = "healthCheck: {http: /healthz, interval: 250ms, timeout: 250ms, healthy: 1, unhealthy: 8}"
)

// endpoints are a service's as a node sees them, by address and port.
func (l *lab) endpoints(host, service string) map[string]api.Endpoint {
	l.Helper()
	all, err := l.nodes[host].Admin.Services(l.ctx())
	if err != nil {
		l.Fatal(err)
	}
	found := map[string]api.Endpoint{}
	for _, s := range all {
		if s.Name == service {
			for _, e := range s.Endpoints {
				found[fmt.Sprintf("%s:%d", e.Address, e.Ports[0])] = e
			}
		}
	}
	return found
}

func (l *lab) healthOf(host, service string, want map[string]string) {
	l.Helper()
	l.eventually("health of "+service, func() error {
		got := l.endpoints(host, service)
		for at, h := range want {
			if got[at].Health != h {
				return fmt.Errorf("%s is %s (%s), want %s", at, got[at].Health, got[at].HealthDetail, h)
			}
		}
		return nil
	})
}

// TestLocality: an endpoint of the same node is preferred; the others are used
// while it is away, all of them, and no call fails once that is known.
func TestLocality(t *testing.T) {
	for _, tc := range []struct{ name, check, kind, target, away string }{
		{"connections fail", unchecked, "-tcp", "web:80", api.HealthEjected},
		{"TCP check", tcpCheck, "-tcp", "web:80", api.HealthUnhealthy},
		{"HTTP check", httpCheck, "-http", "http://web/", api.HealthUnhealthy},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l := newLab(t, fmt.Sprintf(balanceMesh, tc.check), "a", "b")
			a, b := l.net.Host("a"), l.net.Host("b")
			l.start("a", "")
			l.start("b", "")
			near := l.serve(a, "web", "-name", "near", tc.kind, "10.77.0.1:8080")
			far := l.serve(b, "web", "-name", "far-1", tc.kind, "10.77.0.2:8080")
			l.serve(b, "web", "-name", "far-2", tc.kind, "10.77.0.2:8081")
			known := tc.check != unchecked
			if known {
				l.healthOf("a", "web", map[string]string{"10.77.0.1:8080": "healthy", "10.77.0.2:8080": "healthy", "10.77.0.2:8081": "healthy"})
			}
			call := "-tcp"
			if tc.kind == "-http" {
				call = "-url"
			}
			calls := l.call(a, "client", call, tc.target, "-fresh", "-rate", "100")
			l.awaitCall(calls, 0, "call", servedBy("near"))
			if s := sumOf(calls, 0); len(s.Servers) != 1 {
				t.Errorf("answers by %v, want the endpoint on this node alone", s.Servers)
			}

			if err := near.Stop(l.ctx()); err != nil {
				t.Fatal(err)
			}
			l.healthOf("a", "web", map[string]string{"10.77.0.1:8080": tc.away})
			l.awaitCall(calls, mark(calls), "report of what happened until now", succeeded)
			from := mark(calls)
			l.awaitCall(calls, from, "answer of the first far endpoint", servedBy("far-1"))
			l.awaitCall(calls, from, "answer of the second far endpoint", servedBy("far-2"))
			if s := sumOf(calls, from); s.Errors > 0 {
				t.Errorf("%d calls failed although it was known that the endpoint is away: %s", s.Errors, s.Error)
			}
			if !known {
				return // an ejection takes longer than a test should
			}

			if err := far.Stop(l.ctx()); err != nil {
				t.Fatal(err)
			}
			l.healthOf("a", "web", map[string]string{"10.77.0.2:8080": tc.away, "10.77.0.2:8081": "healthy"})
			l.serve(b, "web", "-name", "far-3", tc.kind, "10.77.0.2:8080")
			l.healthOf("a", "web", map[string]string{"10.77.0.2:8080": "healthy"})
			l.awaitCall(calls, mark(calls), "answer of the one that is back", servedBy("far-3"))
			l.serve(a, "web", "-name", "near-again", tc.kind, "10.77.0.1:8080")
			l.awaitCall(calls, mark(calls), "answer of the endpoint on this node", servedBy("near-again"))
		})
	}
}

// TestLeastRequest: of two endpoints, connections go to the one that has fewer.
func TestLeastRequest(t *testing.T) {
	l := newLab(t, strings.Replace(fmt.Sprintf(balanceMesh, ""), "      - {address: 10.77.0.1, port: 8080, node: a, workload: web-a}\n", "", 1), "a", "b")
	a, b := l.net.Host("a"), l.net.Host("b")
	l.start("a", "")
	l.start("b", "")
	l.serve(b, "web", "-name", "far-1", "-tcp", "10.77.0.2:8080")
	l.serve(b, "web", "-name", "far-2", "-tcp", "10.77.0.2:8081")
	const each = 20
	l.hold(a, "client", "web:80", 2*each)
	for at, e := range l.endpoints("a", "web") {
		if e.Active < each-2 || e.Active > each+2 {
			t.Errorf("%s has %d connections, want about %d", at, e.Active, each)
		}
	}
}

// TestChangesOfTheMesh: endpoints and services come and go with the file.
func TestChangesOfTheMesh(t *testing.T) {
	mesh := fmt.Sprintf(balanceMesh, "")
	lines := strings.SplitAfter(mesh, "\n")
	without := func(parts ...string) string {
		return strings.Join(slices.DeleteFunc(slices.Clone(lines), func(line string) bool {
			return slices.ContainsFunc(parts, func(p string) bool { return strings.Contains(line, p) })
		}), "")
	}
	l := newLab(t, without("port: 8080, node: b"), "a", "b")
	a, b := l.net.Host("a"), l.net.Host("b")
	l.start("a", "")
	l.start("b", "")
	l.serve(a, "web", "-name", "near", "-tcp", "10.77.0.1:8080")
	l.serve(b, "web", "-name", "far-1", "-tcp", "10.77.0.2:8080")
	l.serve(b, "web", "-name", "far-2", "-tcp", "10.77.0.2:8081")
	open := l.hold(a, "client", "web:80", 5)
	calls := l.call(a, "client", "-tcp", "web:80", "-fresh", "-rate", "100")
	l.awaitCall(calls, 0, "call", servedBy("near"))
	before := l.virtualIPs("a", "web")

	l.writeMesh(without("port: 8080, node: a", "8081"))
	l.awaitCall(calls, 0, "call to the endpoint that came", servedBy("far-1"))
	l.writeMesh(without("port: 8080, node: a", "port: 8080, node: b"))
	l.awaitCall(calls, 0, "call to the next one", servedBy("far-2"))
	l.writeMesh(mesh + "  - {name: web2, ports: [{port: 81}], endpoints: [{address: 10.77.0.2, port: 8081, node: b, workload: web-b}]}\n")
	if got := l.works(a, "client", "web2.mesh.internal:81"); got != "far-2" {
		t.Errorf("the service that came is served by %q", got)
	}
	l.undisturbed(calls, 0)
	if states, _ := held(open); states["answered"] != 5 {
		t.Errorf("connections that were open: %v", states)
	}
	if after := l.virtualIPs("a", "web"); !slices.Equal(before, after) {
		t.Errorf("virtual IPs changed from %v to %v", before, after)
	}
}

func (l *lab) virtualIPs(host, service string) []string {
	l.Helper()
	all, err := l.nodes[host].Admin.Services(l.ctx())
	if err != nil {
		l.Fatal(err)
	}
	for _, s := range all {
		if s.Name == service {
			return s.VirtualIPs
		}
	}
	return nil
}

// restart stops a node and starts it again.
func (l *lab) restart(host string) *meshnode.Node {
	l.Helper()
	n := l.nodes[host]
	n.Admin.Close()
	if err := n.Stop(l.ctx()); err != nil {
		l.Fatal(err)
	}
	return l.start(host, "drainTimeout: 1s\n")
}

// TestRestart: virtual IPs are stable over a restart, and what was known stays
// in force while the mesh's files are gone or not valid.
func TestRestart(t *testing.T) {
	mesh := fmt.Sprintf(balanceMesh, "")
	l := newLab(t, mesh, "a", "b")
	a, b := l.net.Host("a"), l.net.Host("b")
	l.start("a", "drainTimeout: 1s\n")
	l.start("b", "")
	l.serve(b, "web", "-name", "far", "-tcp", "10.77.0.2:8080", "-tcp", "10.77.0.2:8081")
	vips := l.virtualIPs("a", "web")
	if len(vips) != 2 || !strings.HasPrefix(vips[0], "240.240.") || !strings.HasPrefix(vips[1], "2001:2:") {
		t.Fatalf("virtual IPs %v, want one of each family", vips)
	}
	same := func(l *lab) {
		l.Helper()
		if after := l.virtualIPs("a", "web"); !slices.Equal(vips, after) {
			l.Errorf("virtual IPs were %v and are %v", vips, after)
		}
		for _, vip := range []string{vips[0], "[" + vips[1] + "]"} {
			if got := l.works(a, "client", vip+":80"); got != "far" {
				l.Errorf("%s is served by %q", vip, got)
			}
		}
	}
	same(l)
	t.Run("another order and more services", func(t *testing.T) {
		l := l.in(t)
		l.writeMesh(strings.Replace(mesh, "services:\n", "services:\n  - {name: aaa, ports: [{port: 1}]}\n  - {name: zzz, ports: [{port: 1}]}\n", 1))
		l.restart("a")
		same(l)
	})
	t.Run("file gone", func(t *testing.T) {
		l := l.in(t)
		if err := os.Remove(l.meshFile); err != nil {
			t.Fatal(err)
		}
		l.restart("a")
		same(l)
		l.reports("a", "does not exist")
	})
	t.Run("file not valid", func(t *testing.T) {
		l := l.in(t)
		l.writeMesh("services: [{nam: web}]\n")
		l.restart("a")
		same(l)
		l.reports("a", "mesh.yaml:1")
	})
	t.Run("file back", func(t *testing.T) {
		l := l.in(t)
		l.writeMesh(mesh)
		l.eventually("node is ready", func() error { return want(string(l.status("a").State), "ready") })
		same(l)
	})
}
