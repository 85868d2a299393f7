// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"strings"
	"testing"

	"github.com/meshproxy/meshproxy/tests/testnet"
	"github.com/meshproxy/meshproxy/tests/workload"
)

// crashMesh has a workload that goes direct while the proxy is away, beside
// one that is refused, and a permissive server that both may call.
const crashMesh = `
authorization: {default: allow}
nodes: [{name: a, address: 10.77.0.1}, {name: b, address: 10.77.0.2}]
workloads:
  - {name: client, node: a, match: [{cgroup: "{{.Cgroup "a" "client"}}"}]}
  - {name: direct, node: a, onProxyDown: direct, match: [{cgroup: "{{.Cgroup "a" "direct"}}"}]}
  - {name: far, node: b, inbound: permissive, match: [{cgroup: "{{.Cgroup "b" "far"}}"}]}
services:
  - {name: far, ports: [{port: 80}], endpoints: [{address: 10.77.0.2, port: 8080, node: b, workload: far}]}
`

// TestCrash: the proxy of a is killed while connections are open.
func TestCrash(t *testing.T) {
	l := newLab(t, crashMesh, "a", "b")
	a, b := l.net.Host("a"), l.net.Host("b")
	l.start("a", "")
	l.start("b", "")
	l.serve(b, "far", "-name", "far", "-tcp", "10.77.0.2:8080")
	l.serve(b, "plain", "-name", "plain", "-tcp", "10.77.0.2:7000")
	nobody := l.call(a, "nobody", "-tcp", "10.77.0.2:7000", "-fresh", "-rate", "100")
	open := l.hold(a, "client", "far:80", 20)
	virtual := virtualAddress(l, "client", "far:80")

	l.kill("a")
	l.awaitHeld(open, workload.HeldEnded, 20)

	t.Run("clients are refused at once", func(t *testing.T) {
		l := l.in(t)
		// Twice: before and, after the others, when the heartbeat may be stale.
		for range 2 {
			d := l.dial(a, "direct", "-address", virtual, "-send", "hello")
			if !d.OK {
				t.Fatalf("workload goes direct: %s at %s", d.Error, d.Stage)
			}
			if s := seen(t, d); s.Accepted != d.Local {
				t.Errorf("server accepted %s, client is %s", s.Accepted, d.Local)
			}
			for _, address := range []string{"10.77.0.2:8080", virtual} {
				l.fails(a, "client", address, refusedAtOnce)
			}
		}
	})
	t.Run("nobody takes the proxy's ports", func(t *testing.T) {
		for _, who := range []string{"nobody", "client"} {
			for _, port := range []int{15001, 15006, 15008, 15053} {
				for _, address := range []string{"127.0.0.1", "0.0.0.0", "[::]"} {
					at := fmt.Sprintf("%s:%d", address, port)
					if err := l.in(t).tryServe(a, who, at); !strings.Contains(err, "operation not permitted") {
						t.Errorf("%s listens on %s: %q", who, at, err)
					}
				}
			}
		}
	})
	t.Run("restart", func(t *testing.T) {
		l := l.in(t)
		// The subtest's end must not end the log.
		n := l.start("a", "")
		l.logged(n, "msg=ready")
		for _, from := range []string{"client", "direct"} {
			if s := seen(t, l.dial(a, from, "-address", virtual, "-send", "hello")); s.Server != "far" || host(t, s.Accepted) != "10.77.0.1" {
				t.Errorf("%s is answered by %q, which accepted %s", from, s.Server, s.Accepted)
			}
		}
		if got := virtualAddress(l, "client", "far:80"); got != virtual {
			t.Errorf("the virtual IP was %s and is %s", virtual, got)
		}
	})
	l.undisturbed(nobody, 0)
}

// virtualAddress is the address that a name stands for in the mesh.
func virtualAddress(l *lab, from, name string) string {
	l.Helper()
	d := l.dial(l.net.Host("a"), from, "-address", name)
	if !d.OK {
		l.Fatalf("dial %s: %s at %s", name, d.Error, d.Stage)
	}
	return d.Peer
}

// tryServe returns why a server that must not start did not; empty if it did.
func (l *lab) tryServe(where place, cgroup, at string) string {
	l.Helper()
	p, err := where.Start(testnet.Command{
		Name: "intruder", Path: programs.workload, Args: []string{"serve", "-tcp", at}, Cgroup: cgroup,
	})
	if err != nil {
		l.Fatal(err)
	}
	select {
	case <-p.Done():
		return p.Stderr().String()
	case <-l.ctx().Done():
		_ = p.Kill()
		return ""
	}
}
