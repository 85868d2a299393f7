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
	o.InboundPort, _ = listening(t)
	f := start(t, o)

	for _, name := range names {
		awaitRow(t, server, name, api.HealthPassing)
	}
	awaitRow(t, server, "ill", api.HealthCritical)
	if err := agent.Client().Agent().UpdateTTL("ill", "", api.HealthPassing); err != nil {
		t.Fatal(err)
	}
	awaitRow(t, server, "ill", api.HealthPassing)
	if u, err := f.now(); err != nil || len(u.Warnings) > 0 {
		t.Errorf("warnings %q, error %v", u.Warnings, err)
	}
}

// TestDeadNode: where nobody listens any more at the port of the rows, they are
// critical, however healthy the services behind them are.
func TestDeadNode(t *testing.T) {
	t.Parallel()
	s := consul.Start(t, consul.Options{Dev: true, Node: "n1"})
	s.Register(t, &api.AgentServiceRegistration{
		Name: "web", Port: 8080, Check: &api.AgentServiceCheck{TTL: "1h", Status: api.HealthPassing},
	})
	o := optionsFor(t, s, "")
	var end func() error
	o.InboundPort, end = listening(t)
	start(t, o)
	awaitRow(t, s, "web", api.HealthPassing)
	if err := end(); err != nil {
		t.Fatal(err)
	}
	awaitRow(t, s, "web", api.HealthCritical)
	entries, _, err := s.Client().Health().Service("web", "", true, (&api.QueryOptions{}).WithContext(t.Context()))
	if err != nil || len(entries) != 1 {
		t.Errorf("%d instances of the service pass, want 1; %v", len(entries), err)
	}
}

// awaitRow waits until there is one row of a service, in a state.
func awaitRow(t *testing.T, s *consul.Server, name, state string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	err := testnet.Until(ctx, func() error {
		rows, _, err := s.Client().Health().Connect(name, "", false, (&api.QueryOptions{}).WithContext(ctx))
		if err != nil || len(rows) != 1 {
			return errors.Join(err, fmt.Errorf("%d rows", len(rows)))
		}
		if is := rows[0].Checks.AggregatedStatus(); is != state {
			return fmt.Errorf("it is %s, want %s", is, state)
		}
		return nil
	})
	if err != nil {
		t.Fatalf("row of %s: %v", name, err)
	}
}

// listening is a port at which somebody is, until the end.
func listening(t *testing.T) (port uint16, end func() error) {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return uint16(l.Addr().(*net.TCPAddr).Port), l.Close
}
