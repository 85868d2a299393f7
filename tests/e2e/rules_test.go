// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"testing"
)

// rulesMesh is completed with the default and with policies.
const rulesMesh = `
nodes: [{name: a, address: 10.77.0.1}, {name: b, address: 10.77.0.2}]
workloads:
  - {name: good, node: a, match: [{cgroup: "{{.Cgroup "a" "good"}}"}]}
  - {name: bad, node: a, match: [{cgroup: "{{.Cgroup "a" "bad"}}"}]}
  - {name: other, namespace: team, node: a, match: [{cgroup: "{{.Cgroup "a" "other"}}"}]}
  - {name: far, node: b, inbound: permissive, match: [{cgroup: "{{.Cgroup "b" "far"}}"}]}
services:
  - {name: one, ports: [{port: 80}], endpoints: [{address: 10.77.0.2, port: 8080, node: b, workload: far}]}
  - {name: two, ports: [{port: 80}], endpoints: [{address: 10.77.0.2, port: 8081, node: b, workload: far}]}
authorization: {default: %s}
policies: [%s]
`

// TestRules: what each kind of rule lets through, to two services of a workload
// on another node, and in plaintext.
func TestRules(t *testing.T) {
	l := newLab(t, fmt.Sprintf(rulesMesh, "allow", ""), "a", "b")
	a, b := l.net.Host("a"), l.net.Host("b")
	l.start("a", "")
	n := l.start("b", "")
	l.serve(b, "far", "-name", "far", "-tcp", "10.77.0.2:8080", "-tcp", "10.77.0.2:8081")

	sources := []string{"good", "bad", "other", "plaintext"}
	for _, tc := range []struct {
		name, standard, policies string
		one, two                 []string // who gets through
	}{
		{"default allow", "allow", "", sources, sources},
		{"default deny", "deny", "", nil, nil},
		{
			"exact identity", "deny", `{name: p, action: allow, from: [{identity: "spiffe://mesh.internal/ns/default/sa/good"}]}`,
			[]string{"good"},
			[]string{"good"},
		},
		{
			"prefix of identities", "deny", `{name: p, action: allow, from: [{identityPrefix: "spiffe://mesh.internal/ns/default/"}]}`,
			[]string{"good", "bad"},
			[]string{"good", "bad"},
		},
		{
			"namespace", "deny", `{name: p, action: allow, from: [{namespace: team}]}`,
			[]string{"other"},
			[]string{"other"},
		},
		{
			"network, also in plaintext", "deny", `{name: p, action: allow, from: [{cidr: 10.77.0.0/24}]}`,
			sources, sources,
		},
		{"another network", "deny", `{name: p, action: allow, from: [{cidr: 10.78.0.0/24}]}`, nil, nil},
		{
			"any identity", "deny", `{name: p, action: allow, from: [{anyIdentity: true}]}`,
			[]string{"good", "bad", "other"},
			[]string{"good", "bad", "other"},
		},
		{
			"service", "deny", `{name: p, action: allow, from: [{anyIdentity: true}], to: [{service: one}]}`,
			[]string{"good", "bad", "other"},
			nil,
		},
		{
			"port", "deny", `{name: p, action: allow, from: [{namespace: default}], to: [{ports: [8081]}]}`,
			nil,
			[]string{"good", "bad"},
		},
		{
			// A deny rule is not escaped by showing no identity.
			"deny first", "allow",
			`{name: p, action: allow, from: [{anyIdentity: true}]}, {name: q, action: deny, from: [{identity: "spiffe://mesh.internal/ns/default/sa/bad"}]}`,
			[]string{"good", "other"},
			[]string{"good", "other"},
		},
		{
			"deny to one service", "allow", `{name: q, action: deny, from: [{namespace: default}], to: [{service: two}]}`,
			sources,
			[]string{"other"},
		},
		{
			"audit only", "allow", `{name: watched, action: deny, audit: true, from: [{namespace: default}]}`,
			sources, sources,
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l := l.in(t)
			before := l.status("b").Snapshot
			text := fmt.Sprintf(rulesMesh, tc.standard, tc.policies)
			if text != l.mesh {
				l.writeMesh(text)
				l.eventually("the policies are in force", func() error {
					if now := l.status("b").Snapshot; now.Version == before.Version {
						return fmt.Errorf("version %d", now.Version)
					}
					return nil
				})
			}
			for service, allowed := range map[string][]string{"one": tc.one, "two": tc.two} {
				may := map[string]bool{}
				for _, from := range allowed {
					may[from] = true
				}
				for _, from := range sources {
					address := service + ":80"
					if from == "plaintext" {
						address = map[string]string{"one": "10.77.0.2:8080", "two": "10.77.0.2:8081"}[service]
					}
					if d := l.dial(a, from, "-address", address, "-send", "hello"); d.OK != may[from] {
						t.Errorf("%s to %s: ok=%v (%s at %s), want %v", from, service, d.OK, d.Error, d.Stage, may[from])
					}
				}
			}
		})
	}
	t.Run("what audit would deny is logged", func(t *testing.T) {
		l := l.in(t)
		l.logged(n, "would be refused", "policy=watched", "source=good", "service=one")
		l.eventually("it is counted", func() error {
			_, text, err := l.get(b, "http://127.0.0.1:15020/metrics")
			return errors.Join(err, counts(text, `meshproxy_policy_audited_total{direction="inbound",policy="watched"}`))
		})
	})
}
