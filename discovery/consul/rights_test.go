// SPDX-License-Identifier: Apache-2.0

package consul_test

import (
	"bytes"
	"io"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"github.com/hashicorp/consul/api"

	"github.com/meshproxy/meshproxy/discovery"
	"github.com/meshproxy/meshproxy/discovery/consul"
	"github.com/meshproxy/meshproxy/discovery/mesh"
	peer "github.com/meshproxy/meshproxy/tests/peers/consul"
)

// record keeps a log.
type record struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (r *record) Write(b []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.text.Write(b)
}

func (r *record) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.text.String()
}

// TestDefaultDeny has the rights that docs/consul.md asks for.
func TestDefaultDeny(t *testing.T) {
	s := peer.Start(t, peer.Options{Dev: true, Node: "n1", ACLDefaultDeny: true})
	register(t, s, "n2", "10.0.0.2", "db", 5432, nil)
	register(t, s, "n2", "10.0.0.2", "cache", 6379, nil)
	s.Register(t, &api.AgentServiceRegistration{ID: "web-1", Name: "web", Port: 8080})
	s.Intend(t, "web", "db", api.IntentionActionAllow)
	f := start(t, optionsFor(t, s, documentedToken(t, s)))

	u := f.until("web, its row and db", func(u discovery.Update, err error) bool {
		web := service(u, "web")
		return hasBoth(u, err) && len(web.Endpoints) == 1 && web.Endpoints[0].Health == mesh.HealthHealthy
	})
	if service(u, "cache") != nil {
		t.Error("a service that no intention permits is in the mesh")
	}
	if len(u.Warnings) != 0 {
		t.Errorf("the documented rights leave warnings: %q", u.Warnings)
	}
	if p := u.Policies; len(p) != 1 || p[0].Action != mesh.ActionDeny || p[0].Precedence != -1 {
		t.Errorf("default-deny ACLs, and policies are %+v", p)
	}
	s.Intend(t, "web", "cache", api.IntentionActionAllow)
	f.until("cache", func(u discovery.Update, err error) bool { return service(u, "cache") != nil })
}

// TestMissingRights: each right that a token lacks is named by its rule, and
// what cannot be known lets nobody in.
func TestMissingRights(t *testing.T) {
	s := peer.Start(t, peer.Options{Dev: true, Node: "n1", ACLDefaultDeny: true})
	s.Register(t, &api.AgentServiceRegistration{ID: "web-1", Name: "web", Port: 8080})
	register(t, s, "n2", "10.0.0.2", "db", 5432, nil)
	s.Intend(t, "web", "db", api.IntentionActionAllow)
	for _, tt := range []struct {
		name, rules string
		want        []string
	}{
		{
			"cannot register", `service_prefix "" { policy = "read" } node_prefix "" { policy = "read" } agent_prefix "" { policy = "read" }`,
			[]string{`service "web-sidecar-proxy" { policy = "write" }`},
		},
		{
			"cannot read intentions",
			`service_prefix "" { policy = "read" intentions = "deny" } node_prefix "" { policy = "read" } agent_prefix "" { policy = "read" }`,
			[]string{`service "web" { intentions = "read" }`},
		},
		{
			"cannot ask the agent", `service_prefix "" { policy = "read" } node_prefix "" { policy = "read" }`,
			[]string{`agent "n1" { policy = "read" }`},
		},
		{
			"cannot read nodes", `service_prefix "" { policy = "write" } agent_prefix "" { policy = "read" }`,
			[]string{`node_prefix "" { policy = "read" }`},
		},
		{
			"cannot read a service",
			`service_prefix "" { policy = "read" } service_prefix "web" { policy = "write" } service "db" { policy = "deny" } node_prefix "" { policy = "read" } agent_prefix "" { policy = "read" }`,
			[]string{`service "db" { policy = "read" }`, `service_prefix "" { policy = "read" }`},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o := optionsFor(t, s, s.Token(t, tt.rules).SecretID)
			o.Services = []consul.Service{{Name: mesh.Name{Name: "web"}.Canonical(), Upstreams: []consul.Upstream{
				{Listen: netip.MustParseAddrPort("127.0.0.1:9191"), Service: mesh.Name{Name: "db"}.Canonical()},
			}}}
			var said record
			o.Logger = slog.New(slog.NewTextHandler(io.MultiWriter(&said, t.Output()), nil))
			f := start(t, o)
			u := f.until("the warnings", func(u discovery.Update, err error) bool {
				text := strings.Join(u.Warnings, "\n")
				for _, rule := range tt.want {
					if !strings.Contains(text, rule) {
						return false
					}
				}
				return workload(u, "web") != nil
			})
			for _, rule := range tt.want {
				if !strings.Contains(strings.ReplaceAll(said.String(), `\"`, `"`), rule) {
					t.Errorf("the log does not name %s: %s", rule, said.String())
				}
			}
			for _, p := range u.Policies {
				if p.Action != mesh.ActionDeny {
					t.Errorf("policy %+v", p)
				}
			}
		})
	}
}
