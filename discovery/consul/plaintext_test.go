// SPDX-License-Identifier: Apache-2.0

package consul_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/hashicorp/consul/api"

	"github.com/meshproxy/meshproxy/discovery"
	"github.com/meshproxy/meshproxy/discovery/mesh"
	engine "github.com/meshproxy/meshproxy/nodeproxy/policy"
	peer "github.com/meshproxy/meshproxy/tests/peers/consul"
)

// TestMutualTLSMode: entries that permit plaintext permit it here, unless an intention
// denies anybody; whichever it is, the status says it.
func TestMutualTLSMode(t *testing.T) {
	t.Parallel()
	s := peer.Start(t, peer.Options{Dev: true, Node: "n1"})
	s.Register(t, &api.AgentServiceRegistration{ID: "web-1", Name: "web", Port: 8080})
	s.Register(t, &api.AgentServiceRegistration{ID: "api-1", Name: "api", Port: 8081})
	f := start(t, optionsFor(t, s, ""))

	// plaintext is whether it enters, by the view's own policies.
	plaintext := func(u discovery.Update, w *mesh.Workload) bool {
		return w.Inbound == mesh.InboundPermissive && engine.Compile(mesh.PolicyDefaults{Default: mesh.ActionAllow}, u.Policies).Decide(engine.Request{
			Source: netip.MustParseAddrPort("10.1.2.3:40000"), Workload: w.Name, Services: []mesh.Name{w.Name}, Port: 8080,
		}).Allowed
	}
	expect := func(what string, enters map[string]bool, warnings ...string) {
		t.Helper()
		f.untilWithin(what, func(u discovery.Update) bool {
			text := strings.Join(u.Warnings, "\n")
			for _, w := range warnings {
				if !strings.Contains(text, w) {
					return false
				}
			}
			if strings.Count(text, "MutualTLSMode") != len(warnings) {
				return false
			}
			for name, want := range enters {
				w := workload(u, name)
				if w == nil || plaintext(u, w) != want {
					return false
				}
			}
			return true
		})
	}
	global := &api.ProxyConfigEntry{Kind: api.ProxyDefaults, Name: api.ProxyConfigGlobal, MutualTLSMode: api.MutualTLSModePermissive}
	const webOpen = "service web: MutualTLSMode permissive in proxy-defaults opens every port of its processes to plaintext"
	const apiOpen = "service api: MutualTLSMode permissive in proxy-defaults opens"

	expect("strict", map[string]bool{"web": false, "api": false})
	if _, _, err := s.Client().ConfigEntries().Set(global, nil); err == nil {
		t.Error("Consul permits what its mesh entry doesn't") // then this is to be reconsidered
	}
	s.Write(t, &api.MeshConfigEntry{AllowEnablingPermissiveMutualTLS: true})
	s.Write(t, global)
	expect("permissive for all", map[string]bool{"web": true, "api": true}, webOpen, apiOpen)
	s.Write(t, &api.ServiceConfigEntry{Kind: api.ServiceDefaults, Name: "api", MutualTLSMode: api.MutualTLSModeStrict})
	expect("strict for one", map[string]bool{"web": true, "api": false}, webOpen)
	s.Write(t, &api.MeshConfigEntry{AllowEnablingPermissiveMutualTLS: false})
	s.Write(t, global) // unchanged, which Consul permits
	s.Intend(t, "api", "web", api.IntentionActionDeny)
	expect("an intention that denies", map[string]bool{"web": false, "api": false},
		`service web: MutualTLSMode permissive in proxy-defaults lets no plaintext in: it shows no identity, so the policy "intention api->web" denies it`)
	s.Intend(t, "api", "web", api.IntentionActionAllow)
	expect("one that allows", map[string]bool{"web": true, "api": false}, webOpen)
	s.Delete(t, api.ProxyDefaults, api.ProxyConfigGlobal)
	expect("strict again", map[string]bool{"web": false, "api": false})
}

// TestMutualTLSModeOfNode: what configuration says is in force, and named where Consul
// has it stricter.
func TestMutualTLSModeOfNode(t *testing.T) {
	t.Parallel()
	s := peer.Start(t, peer.Options{Dev: true, Node: "n1"})
	s.Register(t, &api.AgentServiceRegistration{ID: "web-1", Name: "web", Port: 8080})
	s.Write(t, &api.ServiceConfigEntry{Kind: api.ServiceDefaults, Name: "web", MutualTLSMode: api.MutualTLSModeStrict})
	o := optionsFor(t, s, "")
	o.Workload.Inbound = mesh.InboundPermissive
	f := start(t, o)
	f.untilWithin("the warning", func(u discovery.Update) bool {
		w := workload(u, "web")
		return w != nil && w.Inbound == mesh.InboundPermissive &&
			strings.Contains(strings.Join(u.Warnings, "\n"), "service web: MutualTLSMode strict in service-defaults is not in force: configuration says permissive")
	})
}
