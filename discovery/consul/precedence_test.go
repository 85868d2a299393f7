// SPDX-License-Identifier: Apache-2.0

package consul

import (
	"testing"

	"github.com/meshproxy/meshproxy/discovery/mesh"
)

// TestGatewayPrecedence: the order that Consul has, from what holds for all to
// what is said of one upstream of one service.
func TestGatewayPrecedence(t *testing.T) {
	web, db := mesh.ParseName("web"), mesh.ParseName("db")
	with := func(mode string) (c upstreamConfig) {
		c.Name, c.MeshGateway.Mode = "db", mode
		return c
	}
	for _, tt := range []struct {
		name                             string
		opaque, global, own, every, each string
		proxies                          []string
		want                             string
	}{
		{name: "nothing"},
		{name: "proxy-defaults' config", opaque: "local", want: "local"},
		{name: "proxy-defaults", opaque: "local", global: "remote", want: "remote"},
		{name: "service-defaults", global: "remote", own: "local", want: "local"},
		{name: "upstream defaults", own: "local", every: "none", want: "none"},
		{name: "registration", own: "local", every: "local", proxies: []string{"none"}, want: "none"},
		{name: "registrations that differ", proxies: []string{"local", "none"}, want: "local"},
		{name: "registration with what entries say of all", own: "none", every: "local", proxies: []string{"none"}, want: "local"},
		{name: "the same through gateways", own: "local", every: "none", proxies: []string{"local"}, want: "local"},
		{name: "override", own: "local", every: "local", proxies: []string{"local"}, each: "none", want: "none"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var global, own configEntry
			global.MeshGateway.Mode, own.MeshGateway.Mode = tt.global, tt.own
			if tt.opaque != "" {
				global.Config = map[string]any{"mesh_gateway": map[string]any{"Mode": tt.opaque}}
			}
			every := with(tt.every)
			peers, others := with("remote"), with("remote")
			peers.Peer, others.Name = "east", "cache"
			own.UpstreamConfig = &struct {
				Defaults  *upstreamConfig
				Overrides []upstreamConfig
			}{&every, []upstreamConfig{with(tt.each), peers, others}}
			r := &run{entries: map[string]map[mesh.Name]configEntry{kindProxyDefaults: {globalEntry: global}, kindServiceDefaults: {web: own}}}
			r.services.gateways = map[mesh.Name][]string{web: tt.proxies}
			if got := r.gateway(web, db); got != tt.want {
				t.Errorf("mode %q, want %q", got, tt.want)
			}
		})
	}
}
