// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/meshproxy/meshproxy/nodeproxy/admin/api"
	"github.com/meshproxy/meshproxy/tests/meshnode"
	"github.com/meshproxy/meshproxy/tests/testnet"
	"github.com/meshproxy/meshproxy/tests/workload"
)

// TestDescriptorLimit: the proxy of a runs short of descriptors. New connections
// are refused, what is open goes on, the node can still be asked, nothing spins,
// and all is well when there are some again.
func TestDescriptorLimit(t *testing.T) {
	l := twoFaultNodes(t, meshnode.Options{Extra: throughProxy, Program: []string{"/bin/sh", "-c", `ulimit -n 200; exec "$@"`, "sh"}})
	a, n := l.net.Host("a"), l.nodes["a"]
	open := l.call(a, "client", "-tcp", "far:80", "-rate", "50")
	old := l.hold(a, "client", "far:80", 10)

	const dials = 200
	var floods []*testnet.Process
	for _, to := range []string{"10.77.0.1:8080", "10.77.0.2:8080"} {
		floods = append(floods, l.background(a, "other", "hold", "-address", to, "-send", "hello", "-connections", fmt.Sprint(dials)))
	}
	for _, flood := range floods {
		l.eventually("connections are answered or refused", func() error {
			states, errors := held(flood)
			if states[workload.HeldConnected] > 0 || errors["ECONNRESET"] < dials/2 || errors["ECONNRESET"] != dials-states[workload.HeldAnswered] {
				return fmt.Errorf("%v, %v", states, errors)
			}
			return nil
		})
	}
	l.refused("a", "outbound limit_fd") // the node answers, too
	l.logged(n, "limit_fd", "source=other")

	from := mark(open)
	used, window := l.cpu(a, time.Second)
	if used > window/2 {
		t.Errorf("the proxy used %v of processor time in %v", used, window)
	}
	l.awaitCall(open, from, "a call that succeeds", succeeded)
	l.undisturbed(open, 0)
	if states, errors := held(old); states[workload.HeldAnswered] != 10 {
		t.Errorf("connections from before: %v, %v", states, errors)
	}

	for _, flood := range floods {
		if err := flood.Stop(l.ctx()); err != nil {
			t.Fatal(err)
		}
	}
	l.works(a, "other", "near:80")
	l.works(a, "other", "far:80")
}

// TestManyDescriptors: as many connections as 20,000 descriptors allow, and then
// some more. Each takes two, since the endpoint is on the node itself.
func TestManyDescriptors(t *testing.T) {
	const limit, dials = 20_000, 1000
	l := newLab(t, limitMesh, "a", "b")
	a := l.net.Host("a")
	n := l.startAs("a", meshnode.Options{Extra: throughProxy, Program: []string{"/bin/sh", "-c", fmt.Sprintf(`ulimit -n %d; exec "$@"`, limit), "sh"}})
	l.serve(a, "near", "-name", "near", "-tcp", "10.77.0.1:8080")
	open := l.call(a, "other", "-tcp", "near:80", "-rate", "20")
	began := mark(open)

	var floods []*testnet.Process
	answered := 0
	for l.refusals("a")["outbound limit_fd"] == 0 {
		p := l.background(a, "other", "hold", "-address", "10.77.0.1:8080", "-send", "hello", "-connections", fmt.Sprint(dials), "-timeout", "60s")
		floods = append(floods, p)
		l.eventuallyWithin(4*patience, "connections are answered or refused", func() error {
			if lines := mark(p); lines < dials { // don't read them all the time
				return fmt.Errorf("%d lines", lines)
			}
			// On a machine that is very busy the kernel may refuse, too.
			states, errors := held(p)
			if states[workload.HeldAnswered]+errors["ECONNRESET"]+errors["ECONNREFUSED"] != dials {
				return fmt.Errorf("%v, %v", states, errors)
			}
			return nil
		})
		states, _ := held(p)
		if answered += states[workload.HeldAnswered]; answered > limit/2 {
			t.Fatalf("%d connections have found %d descriptors", answered, limit)
		}
	}
	t.Logf("%d connections are held", answered)
	l.logged(n, "limit_fd", "source=other")
	from := mark(open) // and the node answers its administrator, too
	l.awaitCall(open, from, "a call that succeeds", succeeded)
	l.undisturbed(open, began)
	for _, p := range floods {
		states, errors := held(p)
		answered -= states[workload.HeldAnswered]
		if errors["EOF"] > 0 {
			t.Errorf("connections from before: %v, %v", states, errors)
		}
	}
	if answered != 0 {
		t.Errorf("%d of the connections that were answered are gone", answered)
	}

	for _, p := range floods {
		if err := p.Stop(l.ctx()); err != nil {
			t.Fatal(err)
		}
	}
	l.works(a, "other", "near:80")
}

// TestNoDescriptors: there are none at all, not even to accept with. Connections
// wait, and are served when there are some.
func TestNoDescriptors(t *testing.T) {
	l := twoFaultNodes(t, meshnode.Options{Extra: throughProxy})
	a, n := l.net.Host("a"), l.nodes["a"]
	open := l.call(a, "client", "-tcp", "far:80", "-rate", "50")
	n.Admin.Close()
	before := limitFiles(l, n.Pid(), 3) // those that are open stay so
	waiting := l.background(a, "other", "hold", "-address", "10.77.0.1:8080", "-send", "hello", "-connections", "5")
	l.logged(n, "pause accepting", "too many open files")
	from := mark(open)
	if used, window := l.cpu(a, time.Second); used > window/2 {
		t.Errorf("the proxy used %v of processor time in %v", used, window)
	}
	l.awaitCall(open, from, "a call that succeeds", succeeded)
	l.undisturbed(open, 0)
	limitFiles(l, n.Pid(), before)
	l.awaitHeld(waiting, workload.HeldAnswered, 5)
}

// cpu is the processor time that a node uses in a window of at least d.
func (l *lab) cpu(h *testnet.Host, d time.Duration) (used, window time.Duration) {
	l.Helper()
	group := h.Cgroup(meshnode.Cgroup)
	read := func() time.Duration {
		used, err := testnet.CPUTime(group)
		if err != nil {
			l.Fatal(err)
		}
		return used
	}
	began, before := time.Now(), read()
	<-time.After(d) // what is measured is a rate
	return read() - before, time.Since(began)
}

// TestFullFlowMap: more connections than the flow map holds are made while
// nobody accepts them. They are refused, and no one is led astray.
func TestFullFlowMap(t *testing.T) {
	const size, dials = 1024, 1600
	l := twoFaultNodes(t, meshnode.Options{Extra: throughProxy, Env: []string{fmt.Sprintf("MESHPROXY_BPF_MAX_FLOWS=%d", size)}})
	a, b := l.net.Host("a"), l.net.Host("b")
	l.serve(b, "plain", "-name", "plain", "-tcp", "10.77.0.2:7000")
	nobody := l.call(a, "nobody", "-tcp", "10.77.0.2:7000", "-fresh", "-rate", "100")

	thaw := l.freeze("a")
	flood := l.background(a, "client", "hold", "-address", "10.77.0.1:8080", "-send", "hello", "-connections", fmt.Sprint(dials), "-timeout", "30s")
	var waiting int
	l.eventually("connections wait or are refused", func() error {
		states, errors := held(flood)
		waiting = states[workload.HeldConnected]
		if refused := states[workload.HeldRefused]; waiting+refused != dials || refused != errors["ECONNREFUSED"] {
			return fmt.Errorf("%v, %v", states, errors)
		}
		return nil
	})
	if waiting < size || waiting > size+size/10 {
		t.Errorf("%d connections wait for the proxy, there is room for %d", waiting, size)
	}
	thaw()
	// Those on record are served; what slipped through without a record is
	// reset rather than sent somewhere.
	l.awaitHeld(flood, workload.HeldAnswered, size)
	l.awaitHeld(flood, workload.HeldEnded, waiting-size)
	l.refused("a", "outbound limit_flows")
	l.logged(l.nodes["a"], "limit_flows", "source=client")
	if waiting > size {
		l.refused("a", "outbound no_flow")
	}
	if d := l.dial(a, "other", "-address", "near:80", "-send", "hello"); !d.OK {
		t.Errorf("after recovery: %s at %s", d.Error, d.Stage)
	}
	l.undisturbed(nobody, 0)
}

// limitMesh lets one workload have few connections.
const limitMesh = `
authorization: {default: allow}
nodes: [{name: a, address: 10.77.0.1}, {name: b, address: 10.77.0.2}]
workloads:
  - {name: small, node: a, maxConnections: 5, match: [{cgroup: "{{.Cgroup "a" "small"}}"}]}
  - {name: other, node: a, match: [{cgroup: "{{.Cgroup "a" "other"}}"}]}
  - {name: near, node: a, match: [{cgroup: "{{.Cgroup "a" "near"}}"}]}
  - {name: few, node: b, maxConnections: 3, match: [{cgroup: "{{.Cgroup "b" "few"}}"}]}
  - {name: far, node: b, match: [{cgroup: "{{.Cgroup "b" "far"}}"}]}
services:
  - {name: near, ports: [{port: 80}], endpoints: [{address: 10.77.0.1, port: 8080, node: a, workload: near}]}
  - {name: few, ports: [{port: 80}], endpoints: [{address: 10.77.0.2, port: 8081, node: b, workload: few}]}
  - name: far
    ports: [{name: line, port: 80}, {name: source, port: 81}, {name: sink, port: 82}]
    endpoints: [{address: 10.77.0.2, ports: {line: 8080, source: 8082, sink: 8083}, node: b, workload: far}]
`

// TestConnectionLimit: a workload that has as many connections as it may gets
// no more, as a client and as a server; others do.
func TestConnectionLimit(t *testing.T) {
	l := newLab(t, limitMesh, "a", "b")
	a, b := l.net.Host("a"), l.net.Host("b")
	l.start("a", "")
	l.start("b", "")
	l.serve(a, "near", "-name", "near", "-tcp", "10.77.0.1:8080")
	l.serve(b, "far", "-name", "far", "-tcp", "10.77.0.2:8080")
	l.serve(b, "few", "-name", "few", "-tcp", "10.77.0.2:8081")

	t.Run("of a client", func(t *testing.T) {
		l := l.in(t)
		open := l.hold(a, "small", "far:80", 5)
		for _, to := range []string{"far:80", "near:80"} {
			l.fails(a, "small", to, resetLater)
			if d := l.dial(a, "other", "-address", to, "-send", "hello"); !d.OK {
				t.Errorf("other to %s: %s at %s", to, d.Error, d.Stage)
			}
		}
		l.refused("a", "outbound limit_workload")
		l.logged(l.nodes["a"], "limit_workload", "source=small")
		if err := open.Stop(l.ctx()); err != nil {
			t.Fatal(err)
		}
		l.works(a, "small", "far:80")
	})
	t.Run("of a server", func(t *testing.T) {
		l := l.in(t)
		open := l.hold(a, "other", "few:80", 3)
		l.fails(a, "other", "few:80", resetLater)
		l.refused("b", "inbound limit_workload")
		l.refused("a", "outbound peer_unavailable")
		if d := l.dial(a, "other", "-address", "far:80", "-send", "hello"); !d.OK {
			t.Errorf("another server: %s at %s", d.Error, d.Stage)
		}
		if err := open.Stop(l.ctx()); err != nil {
			t.Fatal(err)
		}
		l.works(a, "other", "few:80")
	})
}

// TestSlowReader: workloads that ask for bulk and never read it are their own
// problem only.
func TestSlowReader(t *testing.T) {
	l := newLab(t, limitMesh, "a", "b")
	a, b := l.net.Host("a"), l.net.Host("b")
	l.start("a", "")
	l.start("b", "")
	l.serve(b, "far", "-name", "far", "-tcp", "10.77.0.2:8080", "-source", "10.77.0.2:8082")
	calls := l.call(a, "other", "-tcp", "far:80", "-rate", "200")
	// Another workload, and the very one: those share the calls' tunnel.
	for _, from := range []string{"small", "other"} {
		p := l.background(a, from, "hold", "-address", "far:81", "-connections", "5", "-read=false")
		l.awaitHeld(p, workload.HeldConnected, 5)
	}
	l.stalls("a", 10, calls)

	from := mark(calls)
	for range 10 {
		l.awaitCall(calls, mark(calls), "a call that succeeds", succeeded)
	}
	l.undisturbed(calls, from)
	t.Logf("beside readers that don't read, calls took up to %v", time.Duration(sumOf(calls, from).P99)*time.Microsecond)
}

// stalls waits until nothing has moved on n connections of a node since the
// report before the last one of a calling loop.
func (l *lab) stalls(host string, n int, clock *testnet.Process) {
	l.Helper()
	var before uint64
	l.eventually("bulk stalls", func() error {
		open, err := l.nodes[host].Admin.Connections(l.ctx(), api.ConnectionFilter{Service: "far"})
		if err != nil {
			return err
		}
		var sum uint64
		bulk := 0
		for _, c := range open.Connections {
			if strings.HasSuffix(c.Dialled, ":81") {
				bulk, sum = bulk+1, sum+c.Received
			}
		}
		was := before
		before = sum
		if bulk != n || sum == 0 || sum != was {
			l.awaitCall(clock, mark(clock)+1, "a call that succeeds", succeeded)
			return fmt.Errorf("%d connections received %d bytes", bulk, sum)
		}
		return nil
	})
}
