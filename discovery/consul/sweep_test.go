// SPDX-License-Identifier: Apache-2.0

package consul_test

import (
	"slices"
	"testing"

	"github.com/hashicorp/consul/api"

	"github.com/meshproxy/meshproxy/discovery"
	"github.com/meshproxy/meshproxy/discovery/mesh"
	peer "github.com/meshproxy/meshproxy/tests/peers/consul"
)

// TestSweep: an instance comes, moves and goes, and its checks never fail: no
// broad query names it, and its service is one of too many to have a query each.
func TestSweep(t *testing.T) {
	t.Parallel()
	const services = 80
	s := peer.Start(t, peer.Options{Dev: true, Node: "n1"})
	s.Register(t, &api.AgentServiceRegistration{ID: "web-1", Name: "web", Port: 8080})
	for i := range services {
		register(t, s, "n2", "10.0.0.2", churnedName(i), 5000+i, nil)
	}
	f := start(t, optionsFor(t, s, ""))
	f.untilWithin("all services", func(u discovery.Update) bool { return inState(u, mesh.HealthHealthy) == services })

	last := churnedName(services - 1)
	hasPorts := func(want ...uint16) func(discovery.Update) bool {
		return func(u discovery.Update) bool {
			var ports []uint16
			for _, e := range remote(u, last) {
				ports = append(ports, e.Tunnel.Port())
			}
			slices.Sort(ports)
			return slices.Equal(ports, want)
		}
	}
	const own = 15000 + services - 1
	register(t, s, "n3", "10.0.0.3", last, 7000, nil)
	f.untilWithin("another instance", hasPorts(own, 17000))
	register(t, s, "n3", "10.0.0.3", last, 7001, nil)
	f.untilWithin("the instance elsewhere", hasPorts(own, 17001))
	if _, err := s.Client().Catalog().Deregister(&api.CatalogDeregistration{Node: "n3"}, nil); err != nil {
		t.Fatal(err)
	}
	f.untilWithin("one instance again", hasPorts(own))
}
