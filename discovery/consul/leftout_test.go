// SPDX-License-Identifier: Apache-2.0

package consul_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"testing"

	"github.com/hashicorp/consul/api"

	"github.com/meshproxy/meshproxy/discovery"
	"github.com/meshproxy/meshproxy/discovery/consul"
	"github.com/meshproxy/meshproxy/discovery/mesh"
	peer "github.com/meshproxy/meshproxy/tests/peers/consul"
	"github.com/meshproxy/meshproxy/tests/testnet"
)

// agentHas waits until the agent's services are these.
func agentHas(t *testing.T, s *peer.Server, want ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	err := testnet.Until(ctx, func() error {
		all, err := s.Client().Agent().ServicesWithFilterOpts("", (&api.QueryOptions{}).WithContext(ctx))
		if err != nil {
			return err
		}
		for _, id := range want {
			if all[id] == nil {
				err = errors.Join(err, fmt.Errorf("%s is not there", id))
			}
		}
		if len(all) != len(want) {
			err = errors.Join(err, fmt.Errorf("%d services, want %q", len(all), want))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestDeniedRow: a row that the token may not register is tried again and again, and
// one warning and one line in the log say so, until it may, or the service is left out.
func TestDeniedRow(t *testing.T) {
	t.Parallel()
	s := peer.Start(t, peer.Options{Dev: true, Node: "n1", ACLDefaultDeny: true})
	s.Register(t, &api.AgentServiceRegistration{ID: "other", Name: "other", Port: 8080})
	token := s.Token(t, `service_prefix "web" { policy = "write" } service_prefix "" { policy = "read" }
		node_prefix "" { policy = "read" } agent_prefix "" { policy = "read" }`)
	o := optionsFor(t, s, token.SecretID)
	var said record
	o.Logger = slog.New(slog.NewTextHandler(io.MultiWriter(&said, t.Output()), nil))
	f := start(t, o)
	denied := func(u discovery.Update) bool {
		text := strings.Join(u.Warnings, "\n")
		return strings.Contains(text, "register other-meshproxy: ") && strings.Contains(text, `service "other-sidecar-proxy" { policy = "write" }`)
	}
	f.untilWithin("the warning", denied)
	f.stays(denied)
	rows := []string{"other"}
	for i := range 3 { // each has all rows compared
		id := fmt.Sprintf("web-%d", i)
		s.Register(t, &api.AgentServiceRegistration{ID: id, Name: id, Port: 8081 + i})
		rows = append(rows, id, id+"-meshproxy")
		agentHas(t, s, rows...)
	}
	if n := strings.Count(said.String(), "query=\"register other-meshproxy\""); n != 1 {
		t.Errorf("said %d times: %s", n, said.String())
	}
	f.stays(nil)
	o.Services = []consul.Service{{Name: mesh.Name{Name: "other"}, LeftOut: true}}
	f.source.Reload(o)
	f.untilWithin("no warning", func(u discovery.Update) bool {
		return !denied(u) && workload(u, "other") == nil && workload(u, "web-0") != nil
	})
}

// TestLeftOut: a service that configuration or its registration leaves out is no
// workload and has no row; a row that was there goes, and comes back.
func TestLeftOut(t *testing.T) {
	t.Parallel()
	s := peer.Start(t, peer.Options{Dev: true, Node: "n1"})
	web := &api.AgentServiceRegistration{ID: "web", Name: "web", Port: 8080}
	s.Register(t, web)
	s.Register(t, &api.AgentServiceRegistration{ID: "api", Name: "api", Port: 8081})
	o := optionsFor(t, s, "")
	f := start(t, o)
	expect := func(what string, in bool) {
		t.Helper()
		rows := []string{"web", "api", "api-meshproxy"}
		if in {
			rows = append(rows, "web-meshproxy")
		}
		agentHas(t, s, rows...)
		f.untilWithin(what, func(u discovery.Update) bool {
			return (workload(u, "web") != nil) == in && workload(u, "api") != nil && len(u.Warnings) == 0
		})
	}
	expect("both", true)
	all := o.Services
	o.Services = []consul.Service{{Name: mesh.Name{Name: "web"}, LeftOut: true}}
	f.source.Reload(o)
	expect("left out by configuration", false)
	o.Services = all
	f.source.Reload(o)
	expect("both again", true)
	web.Meta = map[string]string{"meshproxy-enabled": "false"}
	s.Register(t, web)
	expect("left out by its registration", false)
	web.Meta = map[string]string{"meshproxy-enabled": "true"}
	s.Register(t, web)
	expect("both once more", true)
	web.Meta = map[string]string{"meshproxy-enabled": "maybe"}
	s.Register(t, web)
	f.untilWithin("a warning", func(u discovery.Update) bool {
		return workload(u, "web") != nil && strings.Contains(strings.Join(u.Warnings, "\n"), `meshproxy-enabled = "maybe", which is neither true nor false`)
	})
}
