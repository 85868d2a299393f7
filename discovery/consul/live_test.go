// SPDX-License-Identifier: Apache-2.0

package consul_test

import (
	"fmt"
	"slices"
	"testing"

	"github.com/hashicorp/consul/api"

	"github.com/meshproxy/meshproxy/discovery"
	"github.com/meshproxy/meshproxy/discovery/mesh"
	peer "github.com/meshproxy/meshproxy/tests/peers/consul"
)

// TestFollow is the life of a service: a local one, its upstream on another
// node, its health, its second instance, its end.
func TestFollow(t *testing.T) {
	s := peer.Start(t, peer.Options{Dev: true, Node: "n1"})
	register(t, s, "n2", "10.0.0.2", "db", 5432, nil)
	s.Register(t, &api.AgentServiceRegistration{ID: "web-1", Name: "web", Port: 8080, Meta: map[string]string{"version": "1"}})
	f := start(t, optionsFor(t, s, ""))

	u := f.until("web and its upstream", func(u discovery.Update, err error) bool {
		db := service(u, "db")
		return workload(u, "web") != nil && db != nil && len(db.Endpoints) == 1
	})
	db := service(u, "db")
	e := db.Endpoints[0]
	if e.Transport != mesh.TransportMTLS || e.Tunnel.String() != "10.0.0.2:15432" || e.SNI == "" || e.Health != mesh.HealthHealthy {
		t.Errorf("endpoint %+v", e)
	}
	if len(db.VirtualIPs) != 1 || !slices.Contains(db.Hostnames, "db.virtual.consul") || !slices.Contains(db.Hostnames, "db.service.dc1.consul") {
		t.Errorf("service %+v", db)
	}
	if id := workload(u, "web").Identity.Path(); id != "/ns/default/dc/dc1/svc/web" {
		t.Errorf("identity %s", id)
	}

	// The node registers its row, and that makes web's endpoint a healthy one.
	f.until("the row of web", func(u discovery.Update, err error) bool {
		web := service(u, "web")
		return len(web.Endpoints) == 1 && web.Endpoints[0].Node == "n1" && web.Endpoints[0].Health == mesh.HealthHealthy && len(web.VirtualIPs) == 1
	})

	status(t, s, "n2", "10.0.0.2", "db", api.HealthCritical)
	f.until("db to be unhealthy", func(u discovery.Update, err error) bool {
		return service(u, "db").Endpoints[0].Health == mesh.HealthUnhealthy
	})
	register(t, s, "n3", "10.0.0.3", "db", 5432, nil)
	f.until("the second instance", func(u discovery.Update, err error) bool { return len(service(u, "db").Endpoints) == 2 })
	for _, node := range []string{"n2", "n3"} {
		if _, err := s.Client().Catalog().Deregister(&api.CatalogDeregistration{Node: node}, nil); err != nil {
			t.Fatal(err)
		}
	}
	f.until("no instance", func(u discovery.Update, err error) bool {
		return service(u, "db") == nil || len(service(u, "db").Endpoints) == 0
	})
	s.Deregister(t, "web-1")
	f.until("no workload", func(u discovery.Update, err error) bool { return len(u.Workloads) == 0 })
	f.until("no row", func(discovery.Update, error) bool {
		rows, err := s.Client().Agent().Services()
		if err != nil {
			t.Fatal(err)
		}
		_, there := rows["web-1-meshproxy"]
		return !there
	})
}

// TestOtherServicesComeAndGo: what is known about the intentions for a service
// stays known while the services of the node change and all intentions are asked
// for anew. Its open connections would be closed otherwise.
func TestOtherServicesComeAndGo(t *testing.T) {
	t.Parallel()
	s := peer.Start(t, peer.Options{Dev: true, Node: "n1"})
	s.Register(t, &api.AgentServiceRegistration{ID: "web-1", Name: "web", Port: 8080})
	s.Intend(t, "mallory", "web", api.IntentionActionDeny)
	f := start(t, optionsFor(t, s, ""))
	open := func(u discovery.Update) bool {
		return policy(u, "intention default->web") != nil && policy(u, "intention mallory->web") != nil
	}
	f.until("the intentions of web", func(u discovery.Update, err error) bool { return err == nil && open(u) })
	f.stays(open)
	for i := range 10 {
		id := fmt.Sprintf("other-%d", i%2)
		s.Register(t, &api.AgentServiceRegistration{ID: id, Name: id, Port: 9000 + i})
		f.until(id, func(u discovery.Update, _ error) bool {
			return workload(u, id) != nil && policy(u, "intention default->"+id) != nil
		})
		s.Deregister(t, id)
		f.until(id+" to be gone", func(u discovery.Update, _ error) bool { return workload(u, id) == nil })
	}
}
