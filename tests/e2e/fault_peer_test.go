// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"testing"

	"github.com/meshproxy/meshproxy/nodeproxy/admin/api"
	"github.com/meshproxy/meshproxy/tests/testnet"
	"github.com/meshproxy/meshproxy/tests/workload"
)

// pairMesh has a service with an endpoint on each of two nodes other than the
// client's, and one that is on b only.
const pairMesh = `
authorization: {default: allow}
nodes: [{name: a, address: 10.77.0.1}, {name: b, address: 10.77.0.2}, {name: c, address: 10.77.0.3}]
workloads:
  - {name: client, node: a, match: [{cgroup: "{{.Cgroup "a" "client"}}"}]}
  - {name: left, node: b, match: [{cgroup: "{{.Cgroup "b" "left"}}"}]}
  - {name: right, node: c, match: [{cgroup: "{{.Cgroup "c" "right"}}"}]}
services:
  - name: pair
    ports: [{port: 80}]
    endpoints:
      - {address: 10.77.0.2, port: 8080, node: b, workload: left}
      - {address: 10.77.0.3, port: 8080, node: c, workload: right}
  - {name: left, ports: [{port: 80}], endpoints: [{address: 10.77.0.2, port: 8080, node: b, workload: left}]}
`

// startPair starts pairMesh with its servers; extra is a's.
func startPair(t *testing.T, extra string) *lab {
	t.Helper()
	l := newLab(t, pairMesh, "a", "b", "c")
	l.start("a", extra)
	l.start("b", "")
	l.start("c", "")
	l.serve(l.net.Host("b"), "left", "-name", "left", "-tcp", "10.77.0.2:8080")
	l.serve(l.net.Host("c"), "right", "-name", "right", "-tcp", "10.77.0.3:8080")
	return l
}

// health is what node a thinks of b's endpoint of the pair.
func (l *lab) healthOfB() (health string) {
	l.Helper()
	services, err := l.nodes["a"].Admin.Services(l.ctx())
	if err != nil {
		l.Fatal(err)
	}
	for _, s := range services {
		for _, e := range s.Endpoints {
			if s.Name == "pair" && e.Node == "b" {
				return e.Health
			}
		}
	}
	l.Fatal("no endpoint on b")
	return ""
}

func (l *lab) awaitHealth(ok func(string) bool) {
	l.Helper()
	l.eventually("health of b's endpoint", func() error {
		if h := l.healthOfB(); !ok(h) {
			return fmt.Errorf("it is %q", h)
		}
		return nil
	})
}

func ejected(health string) bool { return health == api.HealthEjected }

// TestPeerKilled: the proxy of b dies. Its streams end, calls go to c, and to b
// again when it is back.
func TestPeerKilled(t *testing.T) {
	t.Parallel()
	l := startPair(t, "")
	a := l.net.Host("a")
	open := l.hold(a, "client", "left:80", 5)
	calls := l.call(a, "client", "-tcp", "pair:80", "-fresh", "-rate", "100")
	l.awaitCall(calls, 0, "an answer from left", answeredBy("left"))

	l.kill("b")
	l.awaitHeld(open, workload.HeldEnded, 5)
	if _, errors := held(open); errors["ECONNRESET"] != 5 {
		t.Errorf("open connections ended with %v, want resets", errors)
	}
	l.fails(a, "client", "left:80", resetLater)
	l.refused("a", "outbound connect_refused")
	l.awaitHealth(ejected)
	l.logged(l.nodes["a"], "eject", "10.77.0.2")

	l.start("b", "")
	l.awaitCall(calls, mark(calls), "an answer from left", answeredBy("left"))
	l.works(a, "client", "left:80")
	// A call may have been under way in a tunnel to b; nothing else may fail.
	if s := sumOf(calls, 0); s.Errors > 1 {
		t.Errorf("%d calls failed, the last one with %s, and %d succeeded", s.Errors, s.Error, s.Requests)
	}
}

// TestPeerUnreachable: b's link goes down, so that nothing answers and nothing
// is refused. Calls go to c after the connect timeout, and soon without it.
func TestPeerUnreachable(t *testing.T) {
	t.Parallel()
	l := startPair(t, "defaults: {connectTimeout: 500ms}\n")
	a, b := l.net.Host("a"), l.net.Host("b")
	open := l.hold(a, "client", "left:80", 5)
	calls := l.call(a, "client", "-tcp", "pair:80", "-fresh", "-rate", "100")
	l.awaitCall(calls, 0, "an answer from left", answeredBy("left"))

	if err := b.SetLink(testnet.WireLink, false); err != nil {
		t.Fatal(err)
	}
	l.fails(a, "client", "left:80", resetLater)
	l.refused("a", "outbound connect_timeout")
	l.awaitHealth(ejected)
	l.awaitCall(calls, mark(calls), "calls without delay", func(line string) bool {
		s, ok := stats(line)
		return ok && s.Requests > 0 && s.Errors == 0 && s.P99 < 250_000
	})
	// PING finds out about the tunnel that was open: 10 s of silence, 20 s
	// without an answer.
	if err := testnet.Until(l.longer(2*patience), func() error {
		if states, _ := held(open); states[workload.HeldEnded] != 5 {
			return fmt.Errorf("open connections: %v", states)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	l.logged(l.nodes["a"], "tunnel_unresponsive", "service=left")

	if err := b.SetLink(testnet.WireLink, true); err != nil {
		t.Fatal(err)
	}
	l.works(a, "client", "left:80")
	if err := testnet.Until(l.longer(2*patience), func() error {
		if s := sumOf(calls, mark(calls)-1); s.Servers["left"] == 0 {
			return fmt.Errorf("calls are answered by %v", s.Servers)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

func answeredBy(server string) func(string) bool {
	return func(line string) bool { s, ok := stats(line); return ok && s.Servers[server] > 0 }
}
