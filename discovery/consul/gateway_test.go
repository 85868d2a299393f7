// SPDX-License-Identifier: Apache-2.0

package consul_test

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/consul/api"

	"github.com/meshproxy/meshproxy/discovery"
	"github.com/meshproxy/meshproxy/discovery/consul"
	"github.com/meshproxy/meshproxy/discovery/mesh"
)

// TestGateways: whoever says that another datacenter is reached by mesh gateways,
// be it for one workload alone, nothing over there is dialled directly for it:
// not by an upstream of either kind, not by a redirect, not by failover, not by
// name.
func TestGateways(t *testing.T) {
	t.Parallel()
	dc1, dc2 := twoDatacenters(t)
	for _, name := range []string{"far", "redir", "kept"} {
		register(t, dc2, "m2", "192.0.2.2", name, 5432, nil)
	}
	register(t, dc1, "n2", "10.0.0.2", "kept", 5432, nil)
	dc1.Write(t, &api.ServiceResolverConfigEntry{Kind: api.ServiceResolver, Name: "redir", Redirect: &api.ServiceResolverRedirect{Datacenter: "dc2"}})
	dc1.Write(t, &api.ServiceResolverConfigEntry{
		Kind: api.ServiceResolver, Name: "kept", Failover: map[string]api.ServiceResolverFailover{"*": {Datacenters: []string{"dc2"}}},
	})
	local, none := api.MeshGatewayConfig{Mode: api.MeshGatewayModeLocal}, api.MeshGatewayConfig{Mode: api.MeshGatewayModeNone}
	up := func(port int, name, datacenter string) api.Upstream {
		return api.Upstream{DestinationName: name, LocalBindPort: port, Datacenter: datacenter}
	}
	asked := up(9100, "redir", "")
	asked.MeshGateway = local
	o := optionsFor(t, dc1, "")
	for i, w := range []struct {
		name string
		// entry is what service-defaults say, if anything.
		entry *api.ServiceConfigEntry
		// proxy is the sidecar's registration.
		proxy *api.AgentServiceConnectProxyConfig
	}{
		{"asks", nil, &api.AgentServiceConnectProxyConfig{Upstreams: []api.Upstream{asked, up(9101, "far", "dc2")}}},
		{"sidecar", nil, &api.AgentServiceConnectProxyConfig{MeshGateway: local, Upstreams: []api.Upstream{up(9100, "redir", ""), up(9101, "far", "dc2")}}},
		{
			"defaults",
			&api.ServiceConfigEntry{UpstreamConfig: &api.UpstreamConfiguration{Defaults: &api.UpstreamConfig{MeshGateway: local}}},
			&api.AgentServiceConnectProxyConfig{Upstreams: []api.Upstream{up(9100, "redir", ""), up(9101, "far", "dc2")}},
		},
		{
			"override",
			&api.ServiceConfigEntry{MeshGateway: none, UpstreamConfig: &api.UpstreamConfiguration{Overrides: []*api.UpstreamConfig{{Name: "far", MeshGateway: local}}}},
			&api.AgentServiceConnectProxyConfig{Upstreams: []api.Upstream{up(9100, "redir", ""), up(9101, "far", "dc2")}},
		},
		{"toplevel", &api.ServiceConfigEntry{MeshGateway: local}, nil},
		{"free", nil, &api.AgentServiceConnectProxyConfig{Upstreams: []api.Upstream{up(9100, "redir", ""), up(9101, "far", "dc2")}}},
	} {
		if w.entry != nil {
			w.entry.Kind, w.entry.Name = api.ServiceDefaults, w.name
			dc1.Write(t, w.entry)
		}
		registration := &api.AgentServiceRegistration{Name: w.name, Port: 8080 + i}
		if w.proxy != nil {
			registration.Connect = &api.AgentServiceConnect{SidecarService: &api.AgentServiceRegistration{Proxy: w.proxy}}
		}
		dc1.Register(t, registration)
		at := func(port uint16) netip.AddrPort { return netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port) }
		o.Services = append(o.Services, consul.Service{Name: mesh.ParseName(w.name), Upstreams: []consul.Upstream{
			{Listen: at(9200), Service: mesh.ParseName("redir")}, {Listen: at(9201), Service: mesh.ParseName("far"), Datacenter: "dc2"},
		}})
	}
	f := start(t, o)

	// Where each upstream leads: nowhere, or to where dc2 is.
	ways := func(u discovery.Update, name string) string {
		w := workload(u, name)
		if w == nil {
			return ""
		}
		var list []string
		for _, port := range []string{"9100", "9101", "9200", "9201"} {
			for _, up := range w.Upstreams {
				if strings.HasSuffix(up.Listen.String(), ":"+port) {
					list = append(list, port+"="+tunnels(u, up.Service.String()))
				}
			}
		}
		return strings.Join(list, " ")
	}
	there := "0:192.0.2.2"
	expect := func(what string, want map[string]string) {
		t.Helper()
		f.until(what, func(u discovery.Update, err error) bool {
			for name, way := range want {
				if ways(u, name) != way {
					return false
				}
			}
			return tunnels(u, "redir") == "" && tunnels(u, "kept") == "0:10.0.0.2"
		})
	}
	expect("each way", map[string]string{
		// What a registration asks for one upstream says nothing of the others.
		"asks":     "9100= 9101=" + there + " 9200=" + there + " 9201=" + there,
		"sidecar":  "9100= 9200=",
		"defaults": "9100= 9200=",
		"override": "9100=" + there + " 9200=" + there,
		"toplevel": "9200=",
		"free":     "9100=" + there + " 9101=" + there + " 9200=" + there + " 9201=" + there,
	})
	u, _ := f.now()
	for _, why := range []string{
		"upstream far of sidecar-sidecar-proxy is refused: datacenter dc2 is reached by mesh gateways",
		"upstream far of defaults is refused: datacenter dc2 is reached by mesh gateways",
		"upstream far of override-sidecar-proxy is refused: datacenter dc2 is reached by mesh gateways",
		"upstream far of toplevel is refused: datacenter dc2 is reached by mesh gateways",
		"service redir: target redir.default.default.dc2 is refused: datacenter dc2 is reached by mesh gateways (mode local)",
		"service kept: target kept.default.default.dc2 is refused: datacenter dc2 is reached by mesh gateways (mode local)",
	} {
		if !slices.Contains(u.Warnings, why) {
			t.Errorf("not warned that %s", why)
		}
	}
	if t.Failed() {
		t.Logf("warnings %q", u.Warnings)
	}

	// One entry for all; whoever says otherwise has it otherwise.
	dc1.Write(t, &api.ProxyConfigEntry{Kind: api.ProxyDefaults, Name: api.ProxyConfigGlobal, MeshGateway: local})
	expect("all to be refused", map[string]string{
		"asks": "9100= 9200=", "sidecar": "9100= 9200=", "toplevel": "9200=", "free": "9100= 9200=",
		"override": "9100=" + there + " 9200=" + there,
	})
	dc1.Delete(t, api.ProxyDefaults, api.ProxyConfigGlobal)
	expect("the way again", map[string]string{"free": "9100=" + there + " 9101=" + there + " 9200=" + there + " 9201=" + there})
}
