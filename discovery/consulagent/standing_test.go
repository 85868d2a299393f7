// SPDX-License-Identifier: Apache-2.0

package consulagent_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/consul/api"

	"github.com/meshproxy/meshproxy/discovery/consulagent"
	"github.com/meshproxy/meshproxy/tests/peers/consul"
)

// TestLook: an agent that denies by default says which rules a token lacks, and
// nothing is changed by asking.
func TestLook(t *testing.T) {
	t.Parallel()
	s := consul.Start(t, consul.Options{Dev: true, Node: "n1", ACLDefaultDeny: true})
	s.Register(t, &api.AgentServiceRegistration{Name: "web", Port: 8080})
	s.Register(t, &api.AgentServiceRegistration{Name: "exporter", Port: 9100})
	s.Register(t, &api.AgentServiceRegistration{Name: "backup", Port: 9101, Meta: map[string]string{"meshproxy-enabled": "false"}})
	needs := consulagent.Needs{Mesh: true, Register: true, Services: []string{"batch", "web"}, LeftOut: []string{"exporter"}}
	const readAll = `service_prefix "" { policy = "read" } node_prefix "" { policy = "read" } agent_prefix "" { policy = "read" }`
	for _, tt := range []struct {
		name, rules string
		needs       consulagent.Needs
		sees        []string
		lacks       []string
	}{
		{"all", readAll + ` service_prefix "batch" { policy = "write" } service_prefix "web" { policy = "write" }`, needs, []string{"web"}, nil},
		{
			"the documented services only", readAll + ` service "web" { policy = "write" } service "batch" { policy = "write" }`, needs,
			[]string{"web"},
			[]string{`service "batch-sidecar-proxy" { policy = "write" }`, `service "web-sidecar-proxy" { policy = "write" }`},
		},
		{"rows are not kept", readAll + ` service "web" { policy = "write" }`, consulagent.Needs{Mesh: true, LeftOut: []string{"exporter"}}, []string{"web"}, nil},
		{
			"no intentions", readAll + ` service "web" { policy = "write" intentions = "deny" }`,
			consulagent.Needs{Mesh: true, LeftOut: []string{"exporter"}},
			[]string{"web"},
			[]string{`service "web" { intentions = "read" }`},
		},
		{
			"nothing", ``,
			consulagent.Needs{Mesh: true, Services: []string{"web"}, LeftOut: []string{"exporter"}},
			nil,
			[]string{
				`agent "n1" { policy = "read" }`, `service_prefix "" { policy = "read" }`, `node_prefix "" { policy = "read" }`,
				`service "web" { policy = "write" }`, `service "web" { intentions = "read" }`,
			},
		},
		{"only leaves are wanted", readAll, consulagent.Needs{LeftOut: []string{"exporter"}}, []string{"web"}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			token := s.Token(t, tt.rules)
			a := connect(t, consulagent.Settings{Address: s.HTTPAddr.String(), Token: token.SecretID}, 1)
			got, err := a.Look(t.Context(), tt.needs)
			if err != nil || !got.ACLs || got.Token != token.AccessorID {
				t.Errorf("standing %+v, %v", got, err)
			}
			if diff := cmp.Diff(tt.lacks, got.Lacking); diff != "" {
				t.Errorf("lacking rules:\n%s", diff)
			}
			if diff := cmp.Diff(tt.sees, got.Services); diff != "" {
				t.Errorf("services:\n%s", diff)
			}
		})
	}
	t.Run("more services than may be asked about at once", func(t *testing.T) {
		a := connect(t, consulagent.Settings{Address: s.HTTPAddr.String(), Token: s.ManagementToken}, 1)
		many := consulagent.Needs{Mesh: true, Register: true}
		for i := range 100 {
			many.Services = append(many.Services, fmt.Sprintf("s%d", i))
		}
		if got, err := a.Look(t.Context(), many); err != nil || len(got.Lacking) > 0 {
			t.Errorf("the token that may do everything: %+v, %v", got, err)
		}
	})
	t.Run("a token that nobody knows", func(t *testing.T) {
		token := s.Token(t, readAll)
		s.Revoke(t, token)
		a := connect(t, consulagent.Settings{Address: s.HTTPAddr.String(), Token: token.SecretID}, 1)
		if _, err := a.Look(t.Context(), needs); !errors.Is(err, consulagent.ErrToken) {
			t.Errorf("error %v", err)
		}
	})
}

// TestLookWithoutACLs: whoever asks may do everything.
func TestLookWithoutACLs(t *testing.T) {
	t.Parallel()
	s := consul.Start(t, consul.Options{Dev: true, Node: "n1"})
	a := connect(t, consulagent.Settings{Address: s.HTTPAddr.String()}, 1)
	got, err := a.Look(t.Context(), consulagent.Needs{Mesh: true, Register: true, Services: []string{"web"}})
	if err != nil || got.ACLs || len(got.Lacking) > 0 || got.Node != "n1" || got.Datacenter != "dc1" {
		t.Errorf("standing %+v, %v", got, err)
	}
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Look(context.Background(), consulagent.Needs{Mesh: true, LeftOut: []string{"exporter"}}); err == nil || errors.Is(err, consulagent.ErrToken) {
		t.Errorf("of an agent that is away: %v", err)
	}
}
