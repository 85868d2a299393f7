// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	consulapi "github.com/hashicorp/consul/api"

	"github.com/meshproxy/meshproxy/nodeproxy/admin/api"
	"github.com/meshproxy/meshproxy/tests/meshnode"
	"github.com/meshproxy/meshproxy/tests/workload"
)

// newConsulServices is a lab in which all that the nodes know comes from
// Consul: client and other on a, with an explicit upstream each at the same
// port, far and near on b.
func newConsulServices(t *testing.T) *consulLab {
	t.Helper()
	l := newConsulLab(t)
	l.services()
	return l
}

// services registers and serves them.
func (l *consulLab) services() {
	l.Helper()
	t := l.T
	to := func(service string) *consulapi.AgentServiceConnect {
		return &consulapi.AgentServiceConnect{SidecarService: &consulapi.AgentServiceRegistration{
			Proxy: &consulapi.AgentServiceConnectProxyConfig{Upstreams: []consulapi.Upstream{upstream(service, 9191)}},
		}}
	}
	l.agents["a"].Register(t, &consulapi.AgentServiceRegistration{Name: "client", Port: 7000, Connect: to("far")})
	l.agents["a"].Register(t, &consulapi.AgentServiceRegistration{Name: "other", Port: 7001, Connect: to("near")})
	l.agents["b"].Register(t, &consulapi.AgentServiceRegistration{Name: "far", Port: 8080})
	l.agents["b"].Register(t, &consulapi.AgentServiceRegistration{Name: "near", Port: 8081})
	b := l.net.Host("b")
	l.serve(b, "far", "-name", "far", "-tcp", "10.77.0.2:8080")
	l.serve(b, "near", "-name", "near", "-tcp", "127.0.0.1:8081")
}

// startServices starts the nodes. Those of b are found by who listens.
func (l *consulLab) startServices() {
	l.Helper()
	for _, host := range []string{"a", "b"} {
		l.startServicesOn(host)
	}
}

func (l *consulLab) startServicesOn(host string) *meshnode.Node {
	l.Helper()
	return l.startAs(host, l.ofServices(host))
}

// ofServices is how the node on a host is run.
func (l *consulLab) ofServices(host string) meshnode.Options {
	source := map[string]string{
		"a": fmt.Sprintf("{enabled: true, services: [{name: client, match: [{cgroup: %q}]}, {name: other, match: [{cgroup: %q}]}]}",
			l.Cgroup("a", "client"), l.Cgroup("a", "other")),
		"b": "{enabled: true}",
	}
	return meshnode.Options{
		Identity: "identity: {provider: consul}", NoTrustDomain: true, NoMeshFile: true,
		Extra: fmt.Sprintf("consul: {address: %q}\nsources: {consul: %s}\n", l.agents[host].HTTPAddr, source[host]),
	}
}

// reaches waits until a dial gets to the server.
func (l *consulLab) reaches(where place, cgroup, address, server string) {
	l.Helper()
	l.eventually(cgroup+" reaches "+server+" at "+address, func() error {
		d := l.dial(where, cgroup, "-address", address, "-send", "hello")
		if !d.OK {
			return errors.New(d.Error)
		}
		if s := seen(l.T, d); s.Server != server {
			return fmt.Errorf("answered by %s", s.Server)
		}
		return nil
	})
}

// TestConsulServices: explicit upstreams, names, intentions, between two nodes
// that know each other from Consul alone.
func TestConsulServices(t *testing.T) {
	t.Parallel()
	l := newConsulServices(t)
	l.startServices()
	a := l.net.Host("a")

	t.Run("explicit upstreams", func(t *testing.T) {
		l := l.in(t)
		l.reaches(a, "client", "127.0.0.1:9191", "far")
		l.reaches(a, "other", "127.0.0.1:9191", "near")
		s := seen(t, l.dial(a, "client", "-address", "127.0.0.1:9191", "-send", "hello"))
		if host(t, s.Accepted) != "10.77.0.1" {
			t.Errorf("the server saw %s, want a's address", s.Accepted)
		}
	})
	t.Run("nodes speak hbone to each other", func(t *testing.T) {
		l := l.in(t)
		l.eventually("far's endpoint", func() error {
			e := l.endpoints("a", "far")["10.77.0.2:8080"]
			if e.Transport != "hbone" || e.Tunnel != "10.77.0.2:15008" || e.Health != api.HealthHealthy {
				return fmt.Errorf("%+v", e)
			}
			return nil
		})
	})
	t.Run("names", func(t *testing.T) {
		l := l.in(t)
		for address, server := range map[string]string{
			"far.virtual.consul:80": "far", "far.virtual.consul:4711": "far", "near.service.consul:8081": "near", "near.service.dc1.consul:1": "near",
		} {
			l.reaches(a, "client", address, server)
		}
		// What the mesh does not know, the agent does.
		d := l.dial(a, "client", "-address", "consul.service.consul:8300", "-send", "x")
		if strings.Contains(d.Error, "no such host") || strings.Contains(d.Error, "lookup") {
			t.Errorf("the agent's own name: %s", d.Error)
		}
		d = l.dial(a, "client", "-address", "nobody.virtual.consul:80", "-send", "x")
		if d.OK {
			t.Error("a service that does not exist answers")
		}
	})
	t.Run("intentions", func(t *testing.T) {
		l := l.in(t)
		held, others := l.hold(a, "client", "127.0.0.1:9191", 1), l.hold(a, "other", "127.0.0.1:9191", 1)
		l.agents["a"].Intend(t, "client", "far", consulapi.IntentionActionDeny)
		l.cut(held, time.Now())
		d := l.dial(a, "client", "-address", "127.0.0.1:9191", "-send", "hello")
		if d.OK {
			t.Error("a denied client gets an answer")
		}
		l.reaches(a, "other", "far.virtual.consul:80", "far")
		l.awaitHeld(others, workload.HeldAnswered, 1) // and no more became of it
		must(t, others.Stop(l.ctx()))
		l.agents["a"].Intend(t, "client", "far", consulapi.IntentionActionAllow)
		l.reaches(a, "client", "127.0.0.1:9191", "far")
	})
	t.Run("a service that goes takes its row with it", func(t *testing.T) {
		l := l.in(t)
		l.agents["b"].Deregister(t, "near")
		l.eventually("no endpoint of near", func() error {
			if e := l.endpoints("a", "near"); len(e) != 0 {
				return fmt.Errorf("endpoints %+v", e)
			}
			return nil
		})
	})
	t.Run("leave", func(t *testing.T) {
		l := l.in(t)
		l.eventually("the agent has far and its row", func() error {
			if got := l.registered("b"); !slices.Equal(got, []string{"far", "far-meshproxy"}) {
				return fmt.Errorf("it has %q", got)
			}
			return nil
		})
		must(t, l.nodes["b"].Leave(l.ctx()))
		if got := l.registered("b"); !slices.Equal(got, []string{"far"}) {
			t.Errorf("after leaving, the agent has %q, want far", got)
		}
		l.eventually("no way to far", func() error {
			rows, _, err := l.server.Client().Health().Connect("far", "", false, (&consulapi.QueryOptions{}).WithContext(l.ctx()))
			if err == nil && len(rows) > 0 {
				err = fmt.Errorf("%d of them", len(rows))
			}
			return err
		})
	})
}

// registered are the ids of the services that the agent of a host has.
func (l *consulLab) registered(host string) []string {
	l.Helper()
	services, err := l.agents[host].Client().Agent().ServicesWithFilterOpts("", (&consulapi.QueryOptions{}).WithContext(l.ctx()))
	must(l.T, err)
	return slices.Sorted(maps.Keys(services))
}

// TestConsulAway: Consul is gone, a node is restarted meanwhile, and what it
// knew is in force all the while; it says so, and catches up.
func TestConsulAway(t *testing.T) {
	t.Parallel()
	l := newConsulServices(t)
	l.startServices()
	a := l.net.Host("a")
	l.reaches(a, "client", "127.0.0.1:9191", "far")
	calls := l.call(a, "client", "-tcp", "127.0.0.1:9191")
	l.fresh("a")
	ended := time.Now()
	for _, host := range []string{"a", "b"} { // the server, on b, last
		must(t, l.agents[host].Stop())
	}
	gone := l.stale("a", "cannot be reached", ended)
	from := mark(calls)
	l.awaitCall(calls, from, "calls that go on", succeeded)
	if n := sumOf(calls, from); n.Errors != 0 {
		t.Errorf("%d calls failed while Consul was away", n.Errors)
	}

	must(t, calls.Stop(l.ctx())) // its connection would be drained for long
	must(t, l.nodes["a"].Stop(l.ctx()))
	l.startServicesOn("a")
	if again := l.stale("a", "cannot be reached", ended); !again.Equal(gone) {
		t.Errorf("stale since %v, after a restart since %v", gone, again)
	}
	if e := l.endpoints("a", "far")["10.77.0.2:8080"]; e.Health != api.HealthHealthy {
		t.Errorf("after a restart without Consul far is at %+v", l.endpoints("a", "far"))
	}
	for _, host := range []string{"b", "a"} {
		must(t, l.agents[host].Restart(l.longer(2*patience)))
	}
	l.reaches(a, "client", "127.0.0.1:9191", "far")
	l.agents["b"].Deregister(t, "near")
	l.eventually("a change after it", func() error {
		if e := l.endpoints("a", "near"); len(e) != 0 {
			return fmt.Errorf("endpoints %+v", e)
		}
		return nil
	})
}
