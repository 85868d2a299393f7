// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	consulapi "github.com/hashicorp/consul/api"

	"github.com/meshproxy/meshproxy/tests/peers/consul"
)

// TestConsulDatacenters: two datacenters, a node in each. An upstream that names
// the other datacenter gets there, and is refused by name from when mesh gateways
// are what reaches it.
func TestConsulDatacenters(t *testing.T) {
	t.Parallel()
	const wan = "primary_datacenter = \"dc1\"\nports { serf_wan = 8302 }\nretry_join_wan = [\"10.77.0.1:8302\"]\nretry_interval_wan = \"1s\"\n"
	l := &consulLab{lab: newLab(t, "{}", "a", "b"), agents: make(map[string]*consul.Server)}
	for i, host := range []string{"a", "b"} { // b needs a's CA
		l.agents[host] = consul.Start(t, consul.Options{Host: l.net.Host(host), Node: host, Datacenter: fmt.Sprint("dc", i+1), HCL: wan})
	}
	l.server = l.agents["a"]
	l.learnTrustDomain()
	a := l.net.Host("a")
	l.register("b", "far", 8080)
	l.register("a", "client", 0)
	l.serve(l.net.Host("b"), "far", "-name", "far", "-tcp", "10.77.0.2:8080")
	l.node("b", "")
	l.node("a", `
      - name: client
        match: [{cgroup: "`+l.Cgroup("a", "client")+`"}]
        upstreams: [{listen: "127.0.0.1:9191", service: far, datacenter: dc2}]`)
	l.reaches(a, "client", "127.0.0.1:9191", "far")

	gateways := func(mode consulapi.MeshGatewayMode) {
		t.Helper()
		l.server.Write(t, &consulapi.ServiceConfigEntry{
			Kind: consulapi.ServiceDefaults, Name: "far", MeshGateway: consulapi.MeshGatewayConfig{Mode: mode},
		})
	}
	gateways(consulapi.MeshGatewayModeLocal)
	l.eventually("the refusal", func() error {
		s, err := l.nodes["a"].Admin.Status(l.ctx())
		if err != nil {
			return err
		}
		for _, src := range s.Sources {
			if slices.ContainsFunc(src.Warnings, func(w string) bool {
				return containsAll(w, []string{"far", "is refused: datacenter dc2 is reached by mesh gateways (mode local)"})
			}) {
				return nil
			}
		}
		return fmt.Errorf("sources %+v", s.Sources)
	})
	l.eventually("no connection", func() error {
		if d := l.dial(a, "client", "-address", "127.0.0.1:9191", "-send", "hello"); d.OK {
			return errors.New("there is one")
		}
		return nil
	})
	gateways(consulapi.MeshGatewayModeNone)
	l.reaches(a, "client", "127.0.0.1:9191", "far")

	// Intentions hold across datacenters.
	l.server.Intend(t, "client", "far", consulapi.IntentionActionDeny)
	l.eventually("a denied client", func() error {
		if d := l.dial(a, "client", "-address", "127.0.0.1:9191", "-send", "hello"); d.OK {
			return errors.New("it gets an answer")
		}
		return nil
	})
}
