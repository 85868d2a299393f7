// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"testing"
)

const claimsMesh = `
authorization: {default: %s}
nodes: [{name: a, address: 10.77.0.1}, {name: b, address: 10.77.0.2}]
workloads:
  - name: app
    node: a
    match: [{cgroupPrefix: "{{.Cgroup "a" "box"}}"}, {cgroup: "{{.Cgroup "a" "bare"}}"}]
  - {name: far, node: b, match: [{cgroup: "{{.Cgroup "b" "far"}}"}]}
services:
  - {name: far, ports: [{port: 80}], endpoints: [{address: 10.77.0.2, port: 8080, node: b, workload: far}]}
policies: [{name: p, action: %s, from: [{cidr: %s/32}], to: [{workload: far}]}]
`

// TestClaimedAddresses: a container's address is what its node says it is. Rules
// that allow rest on that only where an operator has said that nodes are there;
// rules that deny always do. The application sees it in any case.
func TestClaimedAddresses(t *testing.T) {
	l := newLab(t, "nodes: []", "a", "b")
	a, b := l.net.Host("a"), l.net.Host("b")
	box, err := a.Container("box")
	must(t, err)
	own := box.Addr4().String()
	l.writeMesh(fmt.Sprintf(claimsMesh, "allow", "deny", "192.0.2.1"))
	l.start("a", "")
	n := l.start("b", "")
	l.serve(b, "far", "-name", "far", "-tcp", "10.77.0.2:8080")
	l.works(box, "app", "far:80") // the first one may come too early
	l.works(a, "bare", "far:80")

	check := func(what, standard, action string, boxed, bare bool) {
		t.Helper()
		l.writeMesh(fmt.Sprintf(claimsMesh, standard, action, own))
		for _, from := range []struct {
			where  place
			cgroup string
			may    bool
		}{{box, "app", boxed}, {a, "bare", bare}} {
			l.eventually(fmt.Sprintf("%s: %s gets through: %v", what, from.cgroup, from.may), func() error {
				d := l.dial(from.where, from.cgroup, "-address", "far:80", "-send", "hello")
				if d.OK != from.may {
					return errors.New("it does not: " + d.Error)
				}
				return nil
			})
		}
	}
	check("an address that is denied", "allow", "deny", false, true)
	check("an address that is allowed", "deny", "allow", false, false)
	l.refused("b", "inbound policy_denied")
	must(t, n.Stop(l.ctx()))
	l.start("b", "listeners: {forwardedFrom: [10.77.0.1/32]}\n")
	check("an address that is allowed, of a node", "deny", "allow", true, false)
	if s := seen(t, l.dial(box, "app", "-address", "far:80", "-send", "hello")); host(t, s.Accepted) != own {
		t.Errorf("far accepted %s, want %s", s.Accepted, own)
	}
}
