// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"testing"

	consulapi "github.com/hashicorp/consul/api"

	"github.com/meshproxy/meshproxy/nodeproxy/admin/api"
)

// TestConsulDirect: two services of one node that is told of them by Consul alone
// go without the proxy, by name and by explicit upstream, while intentions allow it.
func TestConsulDirect(t *testing.T) {
	t.Parallel()
	l := newConsulServices(t)
	a, agent := l.net.Host("a"), l.agents["a"]
	agent.Register(t, &consulapi.AgentServiceRegistration{Name: "here", Port: 8090})
	l.serve(a, "here", "-echo", "10.77.0.1:8090")
	agent.Register(t, &consulapi.AgentServiceRegistration{Name: "client", Port: 7000, Connect: &consulapi.AgentServiceConnect{
		SidecarService: &consulapi.AgentServiceRegistration{
			Proxy: &consulapi.AgentServiceConnectProxyConfig{Upstreams: []consulapi.Upstream{upstream("here", 9191)}},
		},
	}})
	o := l.ofServices("a")
	o.Extra += "splicing: auto\n"
	l.startAs("a", o)

	l.eventually("the service is known", func() error {
		if e := l.endpoints("a", "here"); e["10.77.0.1:8090"].Health != api.HealthHealthy {
			return fmt.Errorf("%+v", e)
		}
		return nil
	})
	byName := route{"by name", a, "client", "here.virtual.consul:80"}
	explicit := route{"explicit upstream", a, "client", "127.0.0.1:9191"}
	for _, r := range []route{byName, explicit} {
		l.learn(r)
	}
	calls := l.call(a, "client", "-echo", byName.address, "-rate", "50")
	l.eventually("the connection is listed", func() error {
		all, err := l.nodes["a"].Admin.Connections(l.ctx(), api.ConnectionFilter{Path: "splice"})
		if err != nil || len(all.Connections) != 1 {
			return fmt.Errorf("%+v, %v", all, err)
		}
		if c := all.Connections[0]; c.Source != "client" || c.Destination != "here" || c.DestinationIdentity != l.service("here") {
			t.Errorf("%+v", c)
		}
		return nil
	})
	l.undisturbed(calls, 0)

	agent.Intend(t, "client", "here", consulapi.IntentionActionDeny)
	l.awaitCall(calls, 0, "a call that fails", failed)
	l.eventually("nothing is open", func() error {
		if s := l.splice("a"); s.Active != 0 {
			return fmt.Errorf("%+v", s)
		}
		return nil
	})
	agent.Intend(t, "client", "here", consulapi.IntentionActionAllow)
	l.learn(explicit)
}
