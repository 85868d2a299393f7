// SPDX-License-Identifier: Apache-2.0

package node

import (
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/meshproxy/meshproxy/discovery/mesh"
	"github.com/meshproxy/meshproxy/nodeproxy/policy"
)

// TestBetween: what may be open between two workloads of a node when the mesh
// changes.
func TestBetween(t *testing.T) {
	front := spiffeid.RequireFromString("spiffe://mesh.internal/ns/default/sa/front")
	renamed := spiffeid.RequireFromString("spiffe://mesh.internal/ns/default/sa/other")
	type world struct {
		front, web *mesh.Workload
		services   []*mesh.Service
		defaults   mesh.Action
		policies   []*mesh.Policy
		sources    []mesh.SourceState
	}
	shop := func(name string, action mesh.Action) *mesh.Policy {
		return &mesh.Policy{
			Name: mesh.ParseName(name), Action: action,
			From: []mesh.PolicySource{{Identity: front}}, To: []mesh.PolicyTarget{{Service: mesh.ParseName("web")}},
		}
	}
	leaves := func(w *world) { w.front = nil }
	for _, tc := range []struct {
		name   string
		change []func(*world)
		want   string // "": it may be open
	}{
		{"as it is", nil, ""},
		{"policy denies it", []func(*world){func(w *world) {
			w.policies = []*mesh.Policy{shop("no", mesh.ActionDeny)}
		}}, "spiffe://mesh.internal/ns/default/sa/front may not connect to web: denied_by_policy no"},
		{"another identity", []func(*world){func(w *world) {
			w.front.Identity, w.defaults, w.policies = renamed, mesh.ActionDeny, []*mesh.Policy{shop("yes", mesh.ActionAllow)}
		}}, "spiffe://mesh.internal/ns/default/sa/other may not connect to web: no_allow_policy_matches"},

		{"its source leaves", []func(*world){leaves}, "front has left the mesh, and web takes connections of workloads only"},
		{"its source leaves, it ends at who takes plaintext", []func(*world){leaves, func(w *world) {
			w.web.Inbound = mesh.InboundPermissive
		}}, ""},
		{"but not of this node", []func(*world){leaves, func(w *world) {
			w.web.Inbound, w.web.InboundLocal = mesh.InboundPermissive, mesh.Deny
		}}, "front has left the mesh, and web takes connections of workloads only"},
		{"its source leaves, it ends at who is not protected", []func(*world){leaves, func(w *world) { w.web.Inbound = mesh.InboundOff }}, ""},
		{"its source leaves, which policy allowed", []func(*world){leaves, func(w *world) {
			w.web.Inbound, w.defaults, w.policies = mesh.InboundPermissive, mesh.ActionDeny, []*mesh.Policy{shop("yes", mesh.ActionAllow)}
		}}, "front, which has left the mesh, may not connect to web: no_allow_policy_matches"},
		{"its source leaves, which policy may mean", []func(*world){leaves, func(w *world) {
			w.web.Inbound, w.policies = mesh.InboundPermissive, []*mesh.Policy{shop("no", mesh.ActionDeny)}
		}}, "front, which has left the mesh, may not connect to web: denied_by_policy no"},
		{"both leave", []func(*world){leaves, func(w *world) { w.web = nil }}, ""},
		{"a source of the mesh is away", []func(*world){leaves, func(w *world) {
			w.sources = append(w.sources, mesh.SourceState{Name: "consul", Ready: true, FromDisk: true, Stale: true})
		}}, "front has left the mesh, and web takes connections of workloads only"},
		{"a source of the mesh was never heard of", []func(*world){leaves, func(w *world) {
			w.sources = append(w.sources, mesh.SourceState{Name: "consul"})
		}}, ""},

		{"its endpoint leaves the service that policy allows", []func(*world){func(w *world) {
			w.services, w.defaults, w.policies = nil, mesh.ActionDeny, []*mesh.Policy{shop("yes", mesh.ActionAllow)}
		}}, ""},
		{"its endpoint leaves the service that policy denies", []func(*world){func(w *world) {
			w.services, w.policies = nil, []*mesh.Policy{shop("no", mesh.ActionDeny)}
		}}, "spiffe://mesh.internal/ns/default/sa/front may not connect to web: denied_by_policy no"},
		{"its endpoint is another service's now", []func(*world){func(w *world) {
			w.services[0].Name, w.defaults, w.policies = mesh.ParseName("new"), mesh.ActionDeny, []*mesh.Policy{shop("yes", mesh.ActionAllow)}
		}}, "spiffe://mesh.internal/ns/default/sa/front may not connect to web: denied_by_default"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := &world{
				front: &mesh.Workload{Name: mesh.ParseName("front"), Identity: front},
				web:   &mesh.Workload{Name: mesh.ParseName("web"), Inbound: mesh.InboundStrict},
				services: []*mesh.Service{{
					Name: mesh.ParseName("web"), Ports: []mesh.Port{{Port: 80, Protocol: mesh.ProtocolTCP}},
					Endpoints: []*mesh.Endpoint{webAt("10.0.0.1")},
				}},
				defaults: mesh.ActionAllow,
				sources:  []mesh.SourceState{{Name: "file", Ready: true}},
			}
			for _, change := range tc.change {
				change(w)
			}
			in := mesh.BuildInput{
				Node: mesh.Node{Name: "a", Address: addr("10.0.0.1")}, Services: w.services, Policies: w.policies,
				Defaults: mesh.PolicyDefaults{Default: w.defaults}, Sources: w.sources,
			}
			for _, at := range []*mesh.Workload{w.front, w.web} {
				if at != nil {
					in.Workloads = append(in.Workloads, at)
				}
			}
			s := mesh.Build(in)
			b := between{
				source: mesh.ParseName("front"), client: addrPort("10.0.0.1:4711"),
				workload: mesh.ParseName("web"), service: mesh.ParseName("web"), at: addrPort("10.0.0.1:8080"),
			}
			got := ""
			if err := b.illegal(&view{snapshot: s, engine: policy.Compile(s.Defaults(), s.Policies())}); err != nil {
				got = err.Error()
			}
			if got != tc.want {
				t.Errorf("%q, want %q", got, tc.want)
			}
		})
	}
}
