// SPDX-License-Identifier: Apache-2.0

package consul_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"testing"

	"github.com/hashicorp/consul/api"

	"github.com/meshproxy/meshproxy/tests/peers/consul"
	"github.com/meshproxy/meshproxy/tests/testnet"
)

// TestRowsAreListed: what is registered with a client agent is to be had from
// its server at once, as healthy as the service is. An agent that has to tell
// the server of a second state loses it often, until it synchronises everything.
func TestRowsAreListed(t *testing.T) {
	server := consul.Start(t, consul.Options{Node: "server"})
	agent := consul.Start(t, consul.Options{Node: "n1", Join: server})
	var names []string
	for i := range 12 {
		name := fmt.Sprintf("svc-%d", i)
		names = append(names, name)
		agent.Register(t, &api.AgentServiceRegistration{Name: name, Port: 8000 + i})
	}
	agent.Register(t, &api.AgentServiceRegistration{
		Name: "ill", Port: 7999, Check: &api.AgentServiceCheck{CheckID: "ill", TTL: "1h", Status: api.HealthCritical},
	})
	o := optionsFor(t, agent, "")
	o.InboundPort = listening(t)
	f := start(t, o)

	health := server.Client().Health()
	await := func(name string, passing bool) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), within)
		defer cancel()
		err := testnet.Until(ctx, func() error {
			rows, _, err := health.Connect(name, "", false, (&api.QueryOptions{}).WithContext(ctx))
			if err != nil || len(rows) != 1 {
				return errors.Join(err, fmt.Errorf("%d rows", len(rows)))
			}
			if is := rows[0].Checks.AggregatedStatus(); (is == api.HealthPassing) != passing {
				return fmt.Errorf("it is %s", is)
			}
			return nil
		})
		if err != nil {
			t.Fatalf("row of %s: %v", name, err)
		}
	}
	for _, name := range names {
		await(name, true)
	}
	await("ill", false)
	if err := agent.Client().Agent().UpdateTTL("ill", "", api.HealthPassing); err != nil {
		t.Fatal(err)
	}
	await("ill", true)
	if u, err := f.now(); err != nil || len(u.Warnings) > 0 {
		t.Errorf("warnings %q, error %v", u.Warnings, err)
	}
}

// listening is a port at which somebody is.
func listening(t *testing.T) uint16 {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return uint16(l.Addr().(*net.TCPAddr).Port)
}
