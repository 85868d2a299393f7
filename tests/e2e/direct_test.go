// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/meshproxy/meshproxy/nodeproxy/admin/api"
	"github.com/meshproxy/meshproxy/tests/testnet"
)

// directMesh has workloads of one node: some that anything may go directly to and
// from, and one that has a limit.
const directMesh = `
authorization: {default: allow}
nodes: [{name: a, address: 10.77.0.1}]
workloads:
  - {name: client, match: [{cgroup: "{{.Cgroup "a" "client"}}"}]}
  - {name: barred, match: [{cgroup: "{{.Cgroup "a" "barred"}}"}]}
  - {name: small, maxConnections: 3, match: [{cgroup: "{{.Cgroup "a" "small"}}"}]}
  - {name: near, match: [{cgroup: "{{.Cgroup "a" "near"}}"}]}
  - {name: few, maxConnections: 3, match: [{cgroup: "{{.Cgroup "a" "few"}}"}]}
services:
  - {name: near, ports: [{port: 80}], endpoints: [{address: 10.77.0.1, port: 8080, node: a, workload: near}]}
  - {name: few, ports: [{port: 80}], endpoints: [{address: 10.77.0.1, port: 8081, node: a, workload: few}]}
policies:
  - {name: not-barred, action: deny, from: [{identity: "spiffe://mesh.internal/ns/default/sa/barred"}]}
`

func directLab(t *testing.T, extra string) *lab {
	l := newLab(t, directMesh, "a")
	a := l.net.Host("a")
	l.start("a", "splicing: auto\n"+extra)
	l.serve(a, "near", "-name", "near", "-tcp", "10.77.0.1:8080")
	l.serve(a, "few", "-name", "few", "-tcp", "10.77.0.1:8081")
	return l
}

// TestDirectTelemetry: what goes without the proxy is listed, watched, counted and
// logged as the rest is.
func TestDirectTelemetry(t *testing.T) {
	l := directLab(t, "log: {access: json, accessEntries: all}\n")
	l.tellsOfDirect()
	out := l.nodes["a"].Stdout()
	for _, parts := range [][]string{
		{`"path":"local"`, `"source":"client"`, `"destination":"near"`, `"service":"near"`, `"endpoint":"10.77.0.1:8080"`, `"sent":6`},
		{`"reason":"policy_denied"`, `"source":"barred"`, `"service":"near"`},
	} {
		if _, err := out.WaitLine(l.ctx(), func(line string) bool { return containsAll(line, parts) }); err != nil {
			t.Errorf("no %q in the access log: %v", parts, err)
		}
	}
}

// TestDirectWatch: so where the access log has problems only, and the kernel tells
// of connections no longer than somebody watches.
func TestDirectWatch(t *testing.T) {
	l := directLab(t, "")
	l.tellsOfDirect()
}

func (l *lab) tellsOfDirect() {
	l.Helper()
	a, s := l.net.Host("a"), shell{l, l.nodes["a"].ConfigPath()}
	held := l.hold(a, "client", "near:80", 2)
	var all api.Connections
	l.eventually("connections", func() error {
		if all = parsed[api.Connections](s, "connections"); all.Total != 2 || len(all.Connections) != 2 {
			return fmt.Errorf("%+v", all)
		}
		return nil
	})
	if c := all.Connections[0]; c.Source != "client" || c.Destination != "near" || c.Service != "near" || c.Endpoint != "10.77.0.1:8080" ||
		c.SourceIdentity == "" || c.DestinationIdentity == "" || !c.Connected || c.Path != "local" && c.Path != "splice" || !strings.HasPrefix(c.Dialled, "240.240.") {
		l.Errorf("connection: %+v", c)
	}
	watch, err := a.Start(testnet.Command{
		Name: "watch", Path: programs.meshproxy, Cgroup: "cli", Args: []string{"connections", "--watch", "--config", s.config},
	})
	if err != nil {
		l.Fatal(err)
	}
	saw := func(parts ...string) error {
		lines, _ := watch.Stdout().Lines(0)
		for _, line := range lines {
			if containsAll(line, parts) {
				return nil
			}
		}
		return fmt.Errorf("no line with %q in %q", parts, lines)
	}
	// Nobody says when a watch has begun.
	l.eventually("events", func() error {
		l.dial(a, "client", "-address", "near:80", "-send", "hello")
		l.dial(a, "barred", "-address", "near:80", "-send", "hello")
		return errors.Join(
			saw("opened", "client -> near"),
			saw("closed", "client -> near"),
			saw("refused", "barred -> near", "policy_denied"),
		)
	})
	if err := held.Stop(l.ctx()); err != nil {
		l.Fatal(err)
	}
	l.eventually("metrics", func() error {
		code, text, err := l.get(a, "http://127.0.0.1:15020/metrics")
		if err != nil || code != http.StatusOK {
			return fmt.Errorf("%d, %v", code, err)
		}
		pair := `{service="near",source="client"}`
		return errors.Join(
			counts(text, "meshproxy_direct_connections_opened_total"+pair),
			counts(text, "meshproxy_direct_connections_closed_total"+pair),
			counts(text, "meshproxy_direct_bytes_total{", `direction="sent"`, `source="client"`),
		)
	})
}

// TestDirectLimits: a workload with a limit of its own has it, as a client and as
// a server; the proxy counts its connections, and nobody else's.
func TestDirectLimits(t *testing.T) {
	l := directLab(t, "")
	a := l.net.Host("a")
	for _, tc := range []struct{ from, to string }{{"small", "near:80"}, {"client", "few:80"}} {
		before := l.splice("a").Opened
		open := l.hold(a, tc.from, tc.to, 3)
		l.fails(a, tc.from, tc.to, resetLater)
		l.refused("a", "outbound limit_workload")
		if s := l.splice("a"); s.Opened != before {
			t.Errorf("%s to %s: %d connections were not counted", tc.from, tc.to, s.Opened-before)
		}
		l.hold(a, "client", "near:80", 5)
		if s := l.splice("a"); s.Opened < before+5 {
			t.Errorf("%d connections of others went directly", s.Opened-before)
		}
		if err := open.Stop(l.ctx()); err != nil {
			t.Fatal(err)
		}
		l.works(a, tc.from, tc.to)
	}
}

// TestDirectDrain: a node that drains carries nothing new; what needs no proxy goes
// on, and goes on being made.
func TestDirectDrain(t *testing.T) {
	l := directLab(t, "")
	a := l.net.Host("a")
	address := l.virtualIP("a", "near") + ":80"
	open := l.call(a, "client", "-tcp", address, "-rate", "50")
	shell{l, l.nodes["a"].ConfigPath()}.says([]string{"drain"}, "0 connections open")
	l.fails(a, "small", "10.77.0.1:8080", refusedAtOnce)
	from := mark(open)
	l.works(a, "client", address)
	l.awaitCall(open, from, "a call that succeeds", succeeded)
	l.undisturbed(open, 0)
}

// TestDirectLocality: of a service's endpoints on several nodes the one on this
// node is connected to directly, while it is healthy, and the others by the proxy.
func TestDirectLocality(t *testing.T) {
	l := newLab(t, fmt.Sprintf(balanceMesh, tcpCheck), "a", "b")
	a, b := l.net.Host("a"), l.net.Host("b")
	l.start("a", "splicing: auto")
	l.start("b", "splicing: auto")
	near := l.serve(a, "web", "-name", "near", "-tcp", "10.77.0.1:8080")
	l.serve(b, "web", "-name", "far-1", "-tcp", "10.77.0.2:8080")
	l.serve(b, "web", "-name", "far-2", "-tcp", "10.77.0.2:8081")
	l.healthOf("a", "web", map[string]string{"10.77.0.1:8080": "healthy", "10.77.0.2:8080": "healthy", "10.77.0.2:8081": "healthy"})
	calls := l.call(a, "client", "-tcp", "web:80", "-fresh", "-rate", "100")
	directly := func(than uint64) {
		t.Helper()
		l.eventually("connections are direct, and spliced", func() error {
			if s := l.splice("a"); s.Opened <= than || s.Spliced == 0 {
				return fmt.Errorf("%+v", s)
			}
			return nil
		})
	}
	directly(0)
	if s := sumOf(calls, 0); len(s.Servers) != 1 || s.Servers["near"] == 0 {
		t.Errorf("answers by %v, want the endpoint on this node alone", s.Servers)
	}

	if err := near.Stop(l.ctx()); err != nil {
		t.Fatal(err)
	}
	l.healthOf("a", "web", map[string]string{"10.77.0.1:8080": api.HealthUnhealthy})
	l.awaitCall(calls, mark(calls), "report of what happened until now", succeeded)
	from, before := mark(calls), l.splice("a").Opened
	l.awaitCall(calls, from, "answer of the first far endpoint", servedBy("far-1"))
	l.awaitCall(calls, from, "answer of the second far endpoint", servedBy("far-2"))
	if s := l.splice("a"); s.Opened != before {
		t.Errorf("%d connections went directly to where nobody listens", s.Opened-before)
	}
	l.undisturbed(calls, from)

	l.serve(a, "web", "-name", "near-again", "-tcp", "10.77.0.1:8080")
	l.awaitCall(calls, from, "answer of the endpoint on this node", servedBy("near-again"))
	directly(before)
	l.undisturbed(calls, from)
}
