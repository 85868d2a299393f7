// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/meshproxy/meshproxy/nodeproxy/admin/api"
	"github.com/meshproxy/meshproxy/tests/testnet"
)

// loopbackBytes is what the host's loopback device has carried.
func (l *lab) loopbackBytes(host string) (n uint64) {
	l.Helper()
	out, err := l.net.Host(host).Run(l.ctx(), testnet.Command{Name: "dev", Path: "/bin/cat", Args: []string{"/proc/net/dev"}})
	if err != nil {
		l.Fatal(err)
	}
	for line := range strings.Lines(string(out)) {
		if device, counters, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(device) == "lo" {
			if _, err := fmt.Sscan(counters, &n); err != nil {
				l.Fatal(err)
			}
			return n
		}
	}
	l.Fatalf("no loopback in %q", out)
	return 0
}

func (l *lab) splice(host string) api.Splice {
	l.Helper()
	st, err := l.nodes[host].Admin.Status(l.ctx())
	if err != nil {
		l.Fatal(err)
	}
	return st.Capture.Splice
}

// TestSpliced: what two workloads of one node say to each other does not pass
// the loopback device, let alone the proxy, and needs the proxy for nothing.
func TestSpliced(t *testing.T) {
	l := newLab(t, policyMesh+allowAll, "a", "b")
	a := l.net.Host("a")
	l.start("a", "splicing: auto")
	l.serve(a, "near", "-name", "near", "-tcp", "10.77.0.1:8080")
	if s := l.splice("a"); !s.On {
		t.Fatalf("splicing is off: %s", s.Reason)
	}

	// The first connection shows how the server reads, and is not spliced.
	if out, err := a.Run(l.ctx(), testnet.Command{
		Name: "first", Path: programs.workload, Cgroup: "good", Args: []string{"call", "-tcp", "near:80", "-count", "1"},
	}); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	first := l.splice("a")
	const size, calls = 16 << 10, 1000
	before := l.loopbackBytes("a")
	out, err := a.Run(l.ctx(), testnet.Command{
		Name: "call", Path: programs.workload, Cgroup: "good",
		Args: []string{"call", "-tcp", "near:80", "-rate", "0", "-count", fmt.Sprint(calls), "-body", strings.Repeat("x", size)},
	})
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	const payload = size * calls // one way
	var s api.Splice
	l.eventually("the connection is counted and gone", func() error {
		if s = l.splice("a"); s.Spliced != first.Spliced+1 || s.Active != 0 || s.Sent < payload || s.Received < payload {
			return fmt.Errorf("splice %+v", s)
		}
		return nil
	})
	grown := l.loopbackBytes("a") - before
	t.Logf("%d bytes of payload, loopback grew by %d; %+v", 2*payload, grown, s)
	if grown > 2*payload/20 {
		t.Errorf("%d bytes of payload, loopback grew by %d", 2*payload, grown)
	}

	// The proxy dies: what is open goes on, and new connections are made.
	old, err := a.Start(testnet.Command{
		Name: "old", Path: programs.workload, Cgroup: "good",
		Args: []string{"call", "-tcp", "near:80", "-rate", "200", "-interval", "100ms"},
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := old.Stdout().WaitLine(l.ctx(), succeeded); err != nil {
		t.Fatal(err)
	}
	address := l.virtualIP("a", "near")
	if err := l.nodes["a"].Kill(); err != nil {
		t.Fatal(err)
	}
	d := l.dial(a, "good", "-address", address+":80", "-send", "hello")
	if !d.OK {
		t.Errorf("new connection without the proxy: %s at %s", d.Error, d.Stage)
	}
	_, next := old.Stdout().Lines(0)
	l.eventually("the open connection goes on", func() error {
		lines, _ := old.Stdout().Lines(next)
		for _, line := range lines {
			if succeeded(line) {
				return nil
			}
		}
		return fmt.Errorf("no report since")
	})
	lines, _ := old.Stdout().Lines(0)
	for _, line := range lines {
		if failed(line) {
			t.Errorf("disturbed: %s", line)
		}
	}
}

// virtualIP is the IPv4 one of a service.
func (l *lab) virtualIP(host, service string) string {
	l.Helper()
	list, err := l.nodes[host].Admin.Services(l.ctx())
	if err != nil {
		l.Fatal(err)
	}
	for _, s := range list {
		if s.Name != service {
			continue
		}
		for _, ip := range s.VirtualIPs {
			if strings.Contains(ip, ".") {
				return ip
			}
		}
	}
	l.Fatalf("service %s has no virtual IP", service)
	return ""
}

// TestSplicedContainer: so with a container of the node, in both directions.
func TestSplicedContainer(t *testing.T) {
	l := newLab(t, "nodes: []", "a")
	a := l.net.Host("a")
	box, err := a.Container("box")
	if err != nil {
		t.Fatal(err)
	}
	l.writeMesh(fmt.Sprintf(splicedContainerMesh, box.Addr4()))
	l.start("a", "splicing: auto")
	l.serve(box, "app", "-name", "box", "-tcp", "0.0.0.0:8080")
	l.serve(a, "near", "-name", "near", "-tcp", "10.77.0.1:9090")
	for _, tc := range []struct {
		service, server, client string
		where                   place
		cgroup                  string
	}{
		{"near", "near", box.Addr4().String(), box, "app"},
		{"box", "box", "10.77.1.1", a, "near"}, // the node's address on the link to it
	} {
		l.eventually("dial "+tc.service, func() error {
			before := l.splice("a")
			d := l.in(t).dial(tc.where, tc.cgroup, "-address", tc.service+":80", "-send", "hello")
			if !d.OK {
				return fmt.Errorf("%s at %s", d.Error, d.Stage)
			}
			s := seen(t, d)
			if s.Server != tc.server || host(t, s.Accepted) != tc.client {
				t.Errorf("%s accepted %s, want %s to accept %s", s.Server, s.Accepted, tc.server, tc.client)
			}
			if after := l.splice("a"); after.Opened == before.Opened {
				return fmt.Errorf("by the proxy: %+v", after)
			}
			return nil
		})
		l.eventually("splice "+tc.service, func() error {
			before := l.splice("a")
			out, err := tc.where.Run(l.ctx(), testnet.Command{
				Name: "call", Path: programs.workload, Cgroup: tc.cgroup, Args: []string{"call", "-tcp", tc.service + ":80", "-count", "3"},
			})
			if err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			if after := l.splice("a"); after.Spliced == before.Spliced {
				return fmt.Errorf("not spliced: %+v", after)
			}
			return nil
		})
	}
}

const splicedContainerMesh = `
authorization: {default: allow}
nodes: [{name: a, address: 10.77.0.1}]
workloads:
  - {name: box, match: [{cgroupPrefix: "{{.Cgroup "a" "box"}}"}]}
  - {name: near, match: [{cgroup: "{{.Cgroup "a" "near"}}"}]}
services:
  - {name: box, ports: [{port: 80}], endpoints: [{address: %s, port: 8080, node: a, workload: box}]}
  - {name: near, ports: [{port: 80}], endpoints: [{address: 10.77.0.1, port: 9090, node: a, workload: near}]}
`

// TestServiceClosesDirect: with the unit's few capabilities, too, a node closes
// what it doesn't carry once policy forbids it, in its own network namespace and
// in a container's.
func TestServiceClosesDirect(t *testing.T) {
	l := newLab(t, "nodes: []", "a")
	a := l.net.Host("a")
	box, err := a.Container("box")
	if err != nil {
		t.Fatal(err)
	}
	mesh := fmt.Sprintf(splicedContainerMesh, box.Addr4())
	l.writeMesh(mesh)
	l.startAsService("a", helperCapabilities, "splicing: auto")
	l.serve(box, "app", "-name", "box", "-tcp", "0.0.0.0:8080")
	l.serve(a, "near", "-name", "near", "-tcp", "10.77.0.1:9090")
	calls := make(map[string]*testnet.Process)
	for to, from := range map[string]struct {
		where  place
		cgroup string
	}{"near": {box, "app"}, "box": {a, "near"}} {
		l.eventually(to+" is known", func() error { // the first ones may come too early
			before := l.splice("a").Opened
			if d := l.dial(from.where, from.cgroup, "-address", to+":80", "-send", "hello"); !d.OK {
				return fmt.Errorf("%s at %s", d.Error, d.Stage)
			}
			if l.splice("a").Opened == before {
				return errors.New("by the proxy")
			}
			return nil
		})
		p, err := from.where.Start(testnet.Command{
			Name: "call-" + to, Path: programs.workload, Cgroup: from.cgroup,
			Args: []string{"call", "-tcp", to + ":80", "-rate", "50", "-interval", "100ms"},
		})
		if err != nil {
			t.Fatal(err)
		}
		l.awaitCall(p, 0, "a call that succeeds", succeeded)
		calls[to] = p
	}
	l.eventually("both go without the proxy", func() error {
		if s := l.splice("a"); s.Active != 2 {
			return fmt.Errorf("%+v", s)
		}
		return nil
	})
	l.writeMesh(strings.Replace(mesh, "default: allow", "default: deny", 1))
	for _, p := range calls {
		l.awaitCall(p, 0, "a call that fails", failed)
	}
	l.eventually("nothing is open", func() error {
		if s := l.splice("a"); s.Active != 0 {
			return fmt.Errorf("%+v", s)
		}
		return nil
	})
	if log := l.nodes["a"].Stderr().String(); strings.Contains(log, "close direct connection") {
		t.Errorf("the node could not close:\n%s", log)
	}
}
