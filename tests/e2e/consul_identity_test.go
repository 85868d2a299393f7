// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	consulapi "github.com/hashicorp/consul/api"

	"github.com/meshproxy/meshproxy/nodeproxy/admin/api"
	"github.com/meshproxy/meshproxy/tests/meshnode"
	"github.com/meshproxy/meshproxy/tests/peers/consul"
	"github.com/meshproxy/meshproxy/tests/testnet"
)

// consulMesh is faultMesh with identities of Consul's; the trust domain is in
// the lab.
const consulMesh = `
authorization: {default: deny}
nodes: [{name: a, address: 10.77.0.1}, {name: b, address: 10.77.0.2}]
workloads:
  - {name: client, node: a, identity: "{{.Service "client"}}", match: [{cgroup: "{{.Cgroup "a" "client"}}"}]}
  - {name: far, node: b, identity: "{{.Service "far"}}", match: [{cgroup: "{{.Cgroup "b" "far"}}"}]}
services:
  - {name: far, ports: [{port: 80}], endpoints: [{address: 10.77.0.2, port: 8080, node: b, workload: far, identity: "{{.Service "far"}}"}]}
policies:
  - {name: far, action: allow, to: [{workload: far}], from: [{identity: "{{.Service "client"}}"}]}
`

// consulLab has a server of Consul on host a and an agent on host b.
type consulLab struct {
	*lab
	agents map[string]*consul.Server
}

func newConsulLab(t *testing.T) *consulLab {
	t.Helper()
	l := &consulLab{lab: newLab(t, "authorization: {default: deny}\n", "a", "b"), agents: make(map[string]*consul.Server)}
	server := consul.Start(t, consul.Options{Host: l.net.Host("a"), Node: "a"})
	l.agents["a"] = server
	l.agents["b"] = consul.Start(t, consul.Options{Host: l.net.Host("b"), Node: "b", Join: server})
	roots, _, err := server.Client().Agent().ConnectCARoots((&consulapi.QueryOptions{}).WithContext(l.ctx()))
	if err != nil {
		t.Fatal(err)
	}
	l.trustDomain = roots.TrustDomain
	l.writeMesh(consulMesh)
	return l
}

// Service is for templates: the identity of a service of Consul's.
func (l *lab) Service(name string) string {
	return "spiffe://" + l.trustDomain + "/ns/default/dc/dc1/svc/" + name
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
	for _, host := range []string{"a", "b"} { // the server first
		if err := l.agents[host].Restart(l.longer(2 * patience)); err != nil {
			l.Fatalf("start Consul on %s: %v", host, err)
		}
	}
}

// startNodes starts nodes that use Consul's CA.
func (l *consulLab) startNodes() {
	l.Helper()
	for host, s := range l.agents {
		l.startAs(host, meshnode.Options{Consul: s.HTTPAddr.String()})
	}
	l.serve(l.net.Host("b"), "far", "-name", "far", "-tcp", "10.77.0.2:8080")
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
	l := newConsulLab(t)
	a := l.net.Host("a")

	l.stopConsul()
	l.startNodes()
	l.fails(a, "client", "far:80", resetLater, 10*time.Second)
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
		if ca.TrustDomain != l.trustDomain || len(ca.Leaves) != 1 || ca.Leaves[0].Identity != l.Service("client") || len(ca.Problems) > 0 {
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
	l.agents["a"].RotateCA(t)
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
	l.agents["a"].RotateCA(t)
	l.rotated(before, 3)
	both()
	l.undisturbed(fresh, 0)
	l.undisturbed(stays, 0)
}

// rotated waits until both nodes know the roots and a has other leaves.
func (l *consulLab) rotated(before map[string]string, roots int) {
	l.Helper()
	err := testnet.Until(l.longer(2*patience), func() error {
		for _, host := range []string{"a", "b"} {
			ca, err := l.nodes[host].Admin.CA(context.Background())
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
