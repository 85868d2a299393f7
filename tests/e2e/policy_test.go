// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/meshproxy/meshproxy/tests/testnet"
	"github.com/meshproxy/meshproxy/tests/workload"
)

// policyMesh is completed with an authorization section and policies.
const policyMesh = `
nodes: [{name: a, address: 10.77.0.1}, {name: b, address: 10.77.0.2}]
workloads:
  - {name: good, node: a, match: [{cgroup: "{{.Cgroup "a" "good"}}"}]}
  - {name: bad, node: a, match: [{cgroup: "{{.Cgroup "a" "bad"}}"}]}
  - {name: near, node: a, match: [{cgroup: "{{.Cgroup "a" "near"}}"}]}
  - {name: far, node: b, match: [{cgroup: "{{.Cgroup "b" "far"}}"}]}
services:
  - {name: near, ports: [{port: 80}], endpoints: [{address: 10.77.0.1, port: 8080, node: a, workload: near}]}
  - {name: far, ports: [{port: 80}], endpoints: [{address: 10.77.0.2, port: 8080, node: b, workload: far}]}
`

const allowGood = `
authorization: {default: deny}
policies:
  - name: good-may
    action: allow
    from: [{identity: "spiffe://mesh.internal/ns/default/sa/good"}]
`

const allowAll = `
authorization: {default: allow}
`

func (l *lab) policyHosts() {
	a, b := l.net.Host("a"), l.net.Host("b")
	l.start("a", "")
	l.start("b", "")
	l.serve(a, "near", "-name", "near", "-tcp", "10.77.0.1:8080")
	l.serve(b, "far", "-name", "far", "-tcp", "10.77.0.2:8080")
}

func TestAuthorization(t *testing.T) {
	l := newLab(t, policyMesh+allowGood, "a", "b")
	l.policyHosts()
	a := l.net.Host("a")
	for _, tc := range []struct {
		from, to string
		want     bool
	}{
		{"good", "near", true},
		{"good", "far", true},
		{"bad", "near", false},
		{"bad", "far", false},
	} {
		t.Run(tc.from+" to "+tc.to, func(t *testing.T) {
			d := l.in(t).dial(a, tc.from, "-address", tc.to+":80", "-send", "hello")
			if d.OK != tc.want {
				t.Errorf("ok=%v (%s at %s), want %v", d.OK, d.Error, d.Stage, tc.want)
			}
		})
	}
	t.Run("the reason is counted on both sides", func(t *testing.T) {
		for host, want := range map[string]string{"a": "outbound policy_denied", "b": "inbound policy_denied"} {
			l.in(t).refused(host, want)
		}
	})
	t.Run("policy test explains", func(t *testing.T) {
		for from, want := range map[string]string{"good": "good-may", "bad": "denied_by_default"} {
			out, err := l.nodes["a"].Run(l.ctx(), "policy", "test", "--config", l.nodes["a"].ConfigPath(), "--from", from, "--to", "near", "--port", "80", "-o", "json")
			if err != nil && from == "good" {
				t.Fatalf("policy test: %v: %s", err, out)
			}
			var answer struct {
				Allowed            bool
				Policy, Conclusion string
			}
			if err := json.Unmarshal(out, &answer); err != nil {
				t.Fatalf("%q: %v", out, err)
			}
			if answer.Allowed != (from == "good") || from == "good" && answer.Policy != want {
				t.Errorf("from %s: %+v", from, answer)
			}
		}
	})
}

// TestPolicyChangeClosesConnections: within a second of a change, connections
// that it makes illegal are closed, and the others are not.
func TestPolicyChangeClosesConnections(t *testing.T) {
	l := newLab(t, policyMesh+allowAll, "a", "b")
	l.policyHosts()
	a := l.net.Host("a")
	calls, idle := map[string]*testnet.Process{}, map[string]*testnet.Process{}
	for _, from := range []string{"good", "bad"} {
		for _, to := range []string{"near", "far"} {
			p, err := a.Start(testnet.Command{
				Name: "call-" + from + "-" + to, Path: programs.workload, Cgroup: from,
				Args: []string{"call", "-tcp", to + ":80", "-rate", "100", "-interval", "100ms"},
			})
			if err != nil {
				t.Fatal(err)
			}
			calls[from+" "+to], idle[from+" "+to] = p, l.hold(a, from, to+":80", 1)
			if _, err := p.Stdout().WaitLine(l.ctx(), succeeded); err != nil {
				t.Fatalf("%s to %s: %v: %s%s", from, to, err, p.Stdout(), p.Stderr())
			}
		}
	}
	l.writeMesh(policyMesh + allowGood)
	changed := time.Now()
	for _, to := range []string{"near", "far"} {
		if _, err := calls["bad "+to].Stdout().WaitLine(l.ctx(), failed); err != nil {
			t.Fatalf("bad to %s still works: %v", to, err)
		}
		// The time of the change of the file is included, and the report's
		// interval.
		t.Logf("bad to %s was cut after %v", to, time.Since(changed))
		l.cut(idle["bad "+to], changed)
	}
	for _, to := range []string{"near", "far"} {
		p := calls["good "+to]
		_, next := p.Stdout().Lines(0)
		l.eventually("good to "+to+" goes on", func() error {
			lines, _ := p.Stdout().Lines(next)
			for _, line := range lines {
				if succeeded(line) {
					return nil
				}
			}
			return fmt.Errorf("no report since")
		})
		lines, _ := p.Stdout().Lines(0)
		for _, line := range lines {
			if failed(line) {
				t.Errorf("good to %s was disturbed: %s", to, line)
			}
		}
		l.awaitHeld(idle["good "+to], workload.HeldAnswered, 1)
	}
}

func stats(line string) (s workload.Stats, ok bool) {
	return s, strings.Contains(line, `"event":"stats"`) && json.Unmarshal([]byte(line), &s) == nil
}

func succeeded(line string) bool { s, ok := stats(line); return ok && s.Requests > 0 }
func failed(line string) bool    { s, ok := stats(line); return ok && s.Errors > 0 }
