// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/meshproxy/meshproxy/nodeproxy/admin/api"
	"github.com/meshproxy/meshproxy/tests/meshnode"
	"github.com/meshproxy/meshproxy/tests/testnet"
)

// consulMesh is faultMesh with identities of Consul's, in the cluster CLUSTER.
const consulMesh = `
authorization: {default: deny}
nodes: [{name: a, address: 10.77.0.1}, {name: b, address: 10.77.0.2}]
workloads:
  - {name: client, node: a, identity: "spiffe://CLUSTER/ns/default/dc/dc1/svc/client", match: [{cgroup: "{{.Cgroup "a" "client"}}"}]}
  - {name: far, node: b, identity: "spiffe://CLUSTER/ns/default/dc/dc1/svc/far", match: [{cgroup: "{{.Cgroup "b" "far"}}"}]}
services:
  - name: far
    ports: [{port: 80}]
    endpoints: [{address: 10.77.0.2, port: 8080, node: b, workload: far, identity: "spiffe://CLUSTER/ns/default/dc/dc1/svc/far"}]
policies:
  - {name: far, action: allow, to: [{workload: far}], from: [{identity: "spiffe://CLUSTER/ns/default/dc/dc1/svc/client"}]}
`

// newIdentityLab has a mesh from a file, whose identities are Consul's.
func newIdentityLab(t *testing.T) *consulLab {
	t.Helper()
	l := newConsulLab(t)
	l.writeMesh(strings.ReplaceAll(consulMesh, "CLUSTER", l.TrustDomain))
	return l
}

// service is the identity of a service of Consul's.
func (l *consulLab) service(name string) string {
	return "spiffe://" + l.TrustDomain + "/ns/default/dc/dc1/svc/" + name
}

func (l *consulLab) stopConsul() {
	l.Helper()
	for host, s := range l.agents {
		if err := s.Stop(); err != nil {
			l.Fatalf("stop Consul on %s: %v", host, err)
		}
	}
}

func (l *consulLab) restartConsul() {
	l.Helper()
	for _, host := range []string{"b", "a"} { // the server first
		if err := l.agents[host].Restart(l.longer(2 * patience)); err != nil {
			l.Fatalf("start Consul on %s: %v", host, err)
		}
	}
}

// startNode starts a node that uses Consul's CA, and nothing else of Consul.
func (l *consulLab) startNode(host string, o meshnode.Options) {
	l.Helper()
	o.NoTrustDomain, o.Identity = true, "identity: {provider: consul}\n"
	l.startAs(host, o)
	if host == "b" {
		l.serve(l.net.Host("b"), "far", "-name", "far", "-tcp", "10.77.0.2:8080")
	}
}

// identities are what the node says about its provider.
func (l *consulLab) identities(host string, wanted func(api.CA) error) {
	l.Helper()
	l.eventually("identities of "+host, func() error {
		ca, err := l.nodes[host].Admin.CA(l.ctx())
		if err != nil {
			return err
		}
		if err := wanted(ca); err != nil {
			return fmt.Errorf("%w: %+v", err, ca)
		}
		return nil
	})
}

// TestConsulIdentities: nodes boot before Consul does, and serve when it is
// there; its CA rotates under load; it goes away and comes back, and no call
// fails.
func TestConsulIdentities(t *testing.T) {
	t.Parallel()
	l := newIdentityLab(t)
	a := l.net.Host("a")

	l.stopConsul()
	l.startNode("a", meshnode.Options{})
	l.startNode("b", meshnode.Options{})
	l.fails(a, "client", "far:80", resetLater)
	l.identities("a", func(ca api.CA) error {
		if len(ca.Problems) == 0 || !strings.Contains(ca.Problems[0], "no roots from Consul's agent at 127.0.0.1:8500 since 20") {
			return errors.New("want the agent's absence")
		}
		return nil
	})
	if st := l.status("a"); st.TrustDomain != "" {
		t.Errorf("trust domain %s before anybody has said it", st.TrustDomain)
	}
	l.restartConsul()
	l.eventually("a call that succeeds", func() error {
		if d := l.dial(a, "client", "-address", "far:80", "-send", "hello"); !d.OK {
			return fmt.Errorf("%s at %s", d.Error, d.Stage)
		}
		return nil
	})
	l.identities("a", func(ca api.CA) error {
		if ca.TrustDomain != l.TrustDomain || len(ca.Leaves) != 1 || ca.Leaves[0].Identity != l.service("client") || len(ca.Problems) > 0 {
			return errors.New("want client's leaf, and no problem")
		}
		return nil
	})

	fresh := l.call(a, "client", "-tcp", "far:80", "-fresh", "-rate", "50")
	stays := l.call(a, "client", "-tcp", "far:80", "-rate", "20")
	both := func() {
		l.Helper()
		for _, p := range []*testnet.Process{fresh, stays} {
			l.awaitCall(p, mark(p)+1, "a call that succeeds", succeeded)
		}
	}
	both()
	before := l.serials("a")
	l.server.RotateCA(t)
	// Within the window of 30 s that agents take for it.
	l.rotated(before, 2)
	both()

	l.stopConsul()
	for _, host := range []string{"a", "b"} {
		l.identities(host, func(ca api.CA) error {
			if len(ca.Problems) == 0 || len(ca.Leaves) != 1 || len(ca.Roots) != 2 {
				return errors.New("want the absence, and the leaf and roots of before")
			}
			return nil
		})
	}
	both()
	l.restartConsul()
	for _, host := range []string{"a", "b"} {
		l.identities(host, func(ca api.CA) error {
			if len(ca.Problems) > 0 {
				return errors.New("want no problem")
			}
			return nil
		})
	}
	before = l.serials("a")
	l.server.RotateCA(t)
	l.rotated(before, 3)
	both()
	l.undisturbed(fresh, 0)
	l.undisturbed(stays, 0)
}

// rotated waits until all nodes know the roots and a has other leaves.
func (l *consulLab) rotated(before map[string]string, roots int) {
	l.Helper()
	err := testnet.Until(l.longer(2*patience), func() error {
		for host, n := range l.nodes {
			ca, err := n.Admin.CA(context.Background())
			if err != nil {
				return err
			}
			if len(ca.Roots) != roots {
				return fmt.Errorf("%s has %d roots, want %d", host, len(ca.Roots), roots)
			}
		}
		for workload, serial := range l.serials("a") {
			if before[workload] == serial {
				return fmt.Errorf("leaf of %s is the same", workload)
			}
		}
		return nil
	})
	if err != nil {
		l.Fatal(err)
	}
}
