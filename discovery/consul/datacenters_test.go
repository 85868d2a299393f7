// SPDX-License-Identifier: Apache-2.0

package consul_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/consul/api"

	"github.com/meshproxy/meshproxy/discovery"
	"github.com/meshproxy/meshproxy/discovery/consul"
	"github.com/meshproxy/meshproxy/discovery/mesh"
	peer "github.com/meshproxy/meshproxy/tests/peers/consul"
)

// twoDatacenters are two servers, each a datacenter of its own, that know each
// other over the WAN. The first one has the CA.
func twoDatacenters(t *testing.T) (dc1, dc2 *peer.Server) {
	t.Helper()
	var wan [2]uint16
	for i := range wan {
		var err error
		if wan[i], err = peer.FreePort(); err != nil {
			t.Fatal(err)
		}
	}
	const hcl = "primary_datacenter = \"dc1\"\nports { serf_wan = %d }\n"
	dc1 = peer.Start(t, peer.Options{Node: "n1", HCL: fmt.Sprintf(hcl, wan[0])})
	dc2 = peer.Start(t, peer.Options{Node: "m1", Datacenter: "dc2", HCL: fmt.Sprintf(hcl+"retry_join_wan = [\"127.0.0.1:%d\"]\nretry_interval_wan = \"1s\"\n", wan[1], wan[0])})
	return dc1, dc2
}

// TestDatacenters: what is in another datacenter is dialled at the address that it
// has for others, under the identity that it has there, where nothing says that
// it is behind a mesh gateway; where something does, it is refused by name.
func TestDatacenters(t *testing.T) {
	t.Parallel()
	dc1, dc2 := twoDatacenters(t)
	for _, name := range []string{"far", "gated", "db", "gdb"} {
		register(t, dc2, "m2", "192.0.2.2", name, 5432, nil)
	}
	// Where other datacenters reach m2.
	if _, err := dc2.Client().Catalog().Register(&api.CatalogRegistration{
		Node: "m2", Address: "192.0.2.2", TaggedAddresses: map[string]string{"wan": "198.51.100.2"},
	}, nil); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"db", "gdb"} {
		register(t, dc1, "n2", "10.0.0.2", name, 5432, nil)
		dc1.Write(t, &api.ServiceResolverConfigEntry{
			Kind: api.ServiceResolver, Name: name, Failover: map[string]api.ServiceResolverFailover{"*": {Datacenters: []string{"dc2"}}},
		})
	}
	dc1.Write(t, &api.ServiceResolverConfigEntry{
		Kind: api.ServiceResolver, Name: "gated", Redirect: &api.ServiceResolverRedirect{Datacenter: "dc2"},
	})
	for _, name := range []string{"gated", "gdb"} {
		dc1.Write(t, &api.ServiceConfigEntry{
			Kind: api.ServiceDefaults, Name: name, MeshGateway: api.MeshGatewayConfig{Mode: api.MeshGatewayModeLocal},
		})
	}
	dc1.Register(t, &api.AgentServiceRegistration{
		ID: "web-1", Name: "web", Port: 8080,
		Connect: &api.AgentServiceConnect{SidecarService: &api.AgentServiceRegistration{
			Proxy: &api.AgentServiceConnectProxyConfig{Upstreams: []api.Upstream{
				{DestinationName: "far", LocalBindPort: 9191, Datacenter: "dc2"},
				{DestinationName: "near", LocalBindPort: 9192, Datacenter: "dc2", MeshGateway: api.MeshGatewayConfig{Mode: api.MeshGatewayModeLocal}},
			}},
		}},
	})
	o := optionsFor(t, dc1, "")
	loopback := netip.MustParseAddr("127.0.0.1")
	o.Services = []consul.Service{{
		Name: mesh.Name{Name: "web"}.Canonical(),
		Upstreams: []consul.Upstream{
			{Listen: netip.AddrPortFrom(loopback, 9291), Service: mesh.Name{Name: "far"}.Canonical(), Datacenter: "dc2"},
			{Listen: netip.AddrPortFrom(loopback, 9292), Service: mesh.Name{Name: "far"}.Canonical(), Datacenter: "dc9"},
		},
	}}
	f := start(t, o)

	refusals := []string{
		"upstream near of web-1-sidecar-proxy is refused: datacenter dc2 is reached by mesh gateways",
		"service gated: target gated.default.default.dc2 is refused: datacenter dc2 is reached by mesh gateways (mode local)",
		"service gdb: target gdb.default.default.dc2 is refused: datacenter dc2 is reached by mesh gateways (mode local)",
	}
	u := f.until("both datacenters", func(u discovery.Update, err error) bool {
		for _, why := range refusals {
			if !slices.Contains(u.Warnings, why) {
				return false
			}
		}
		return len(remote(u, "db")) == 2 && len(remote(u, "gdb")) == 1 && far(u) != nil && len(far(u).Endpoints) == 1
	})
	// Both upstreams lead to the one service; that of the gateway is not there.
	ways := make(map[netip.AddrPort]mesh.Name)
	for _, up := range workload(u, "web").Upstreams {
		ways[up.Listen] = up.Service
	}
	name := far(u).Name
	if ways[netip.AddrPortFrom(loopback, 9191)] != name || ways[netip.AddrPortFrom(loopback, 9291)] != name || ways[netip.AddrPortFrom(loopback, 9192)] != (mesh.Name{}) {
		t.Errorf("upstreams lead to %v, want %s", ways, name)
	}
	td := workload(u, "web").Identity.TrustDomain().Name()
	e := far(u).Endpoints[0]
	if e.Identity.String() != "spiffe://"+td+"/ns/default/dc/dc2/svc/far" || e.SNI != "far.default.dc2.internal."+td ||
		e.Tunnel.String() != "198.51.100.2:15432" || e.Transport != mesh.TransportMTLS || e.Health != mesh.HealthHealthy {
		t.Errorf("far in dc2: %+v", e)
	}
	if g := service(u, "gated"); g != nil && len(g.Endpoints) > 0 {
		t.Errorf("gated has endpoints %s", describe(u))
	}
	for _, e := range service(u, "db").Endpoints {
		there := e.Identity.Path() == "/ns/default/dc/dc2/svc/db"
		if there != (e.Priority == 1) || there != (e.Tunnel.Addr().String() == "198.51.100.2") || there != strings.HasPrefix(e.SNI, "db.default.dc2.") {
			t.Errorf("db: %+v", e)
		}
	}
	f.until("what is said of a datacenter that does not exist", func(u discovery.Update, err error) bool {
		return slices.ContainsFunc(u.Warnings, func(w string) bool {
			return strings.Contains(w, "far@dc9") && strings.Contains(w, "No path to datacenter")
		})
	})

	// What happens there is heard of here.
	status(t, dc2, "m2", "192.0.2.2", "far", api.HealthCritical)
	f.until("far to be unhealthy", func(u discovery.Update, err error) bool {
		return far(u) != nil && far(u).Endpoints[0].Health == mesh.HealthUnhealthy
	})
}

// far is the service of that name in dc2.
func far(u discovery.Update) *mesh.Service {
	for _, s := range u.Services {
		if s.Name.Name != "gated" && len(s.Endpoints) > 0 && s.Endpoints[0].Identity.Path() == "/ns/default/dc/dc2/svc/far" {
			return s
		}
	}
	return nil
}

// remote are the endpoints of a service.
func remote(u discovery.Update, name string) []*mesh.Endpoint {
	if s := service(u, name); s != nil {
		return s.Endpoints
	}
	return nil
}
