// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"net"
	"testing"

	consulapi "github.com/hashicorp/consul/api"

	"github.com/meshproxy/meshproxy/tests/meshnode"
	"github.com/meshproxy/meshproxy/tests/peers/consul"
)

// consulMesh is what node a knows. On b there are a real Envoy, Consul's builtin
// proxy and a program with Consul's Go SDK.
const consulMesh = `
authorization: {default: allow}
nodes: [{name: a, address: 10.77.0.1}, {name: b, address: 10.77.0.2}]
workloads:
  - {name: web, node: a, identity: "ID(web)", match: [{cgroup: "{{.Cgroup "a" "web"}}"}]}
  - {name: api, node: a, identity: "ID(api)", match: [{cgroup: "{{.Cgroup "a" "api"}}"}], mtlsPort: 20001}
  - {name: front, node: a, identity: "ID(front)", match: [{cgroup: "{{.Cgroup "a" "front"}}"}]}
services:
  - {name: web, ports: [{port: 80}], endpoints: [{address: 10.77.0.1, port: 7001, node: a, workload: web}]}
  - {name: api, ports: [{port: 80}], endpoints: [{address: 10.77.0.1, port: 7002, node: a, workload: api}]}
  - {name: legacy, ports: [{port: 80}], endpoints: [{address: 10.77.0.2, port: 8001, transport: mtls, tunnel: "10.77.0.2:21000", identity: "ID(legacy)", sni: "SNI(legacy)"}]}
  - {name: builtin, ports: [{port: 80}], endpoints: [{address: 10.77.0.2, port: 8002, transport: mtls, tunnel: "10.77.0.2:21001", identity: "ID(builtin)", sni: "SNI(builtin)"}]}
  - {name: native, ports: [{port: 80}], endpoints: [{address: 10.77.0.2, port: 8003, transport: mtls, tunnel: "10.77.0.2:21002", identity: "ID(native)", sni: "SNI(native)"}]}
`

// The ports of b: those of sidecars for the mesh, and on loopback for their
// applications.
const (
	envoyPublic, builtinPublic, nativePublic = 21000, 21001, 21002
	envoyToWeb, envoyToV1, envoyToAPI        = 9191, 9192, 9193
	builtinToAPI, nativeToAPI                = 9291, 9391
)

// TestConsulPeers: a node with two services, and whoever else is in Consul's
// mesh today, both ways.
func TestConsulPeers(t *testing.T) {
	l := newConsulLab(t)
	a, b := l.net.Host("a"), l.net.Host("b")
	l.server.Write(l, &consulapi.ServiceResolverConfigEntry{
		Kind: consulapi.ServiceResolver, Name: "web",
		Subsets: map[string]consulapi.ServiceResolverSubset{"v1": {Filter: "Service.Meta.version == v1"}},
	})
	l.server.Write(l, &consulapi.ServiceResolverConfigEntry{
		Kind: consulapi.ServiceResolver, Name: "web-v1",
		Redirect: &consulapi.ServiceResolverRedirect{Service: "web", ServiceSubset: "v1"},
	})
	l.proxied("a", "web", 7001, 20000)
	l.proxied("a", "api", 7002, 20001)
	l.writeMesh(consulMesh)
	l.startAs("a", meshnode.Options{
		NoTrustDomain: true, Identity: "identity: {provider: consul}\n",
		Extra: "listeners: {inboundMTLS: 20000}\n",
	})
	web, api := l.listener(a, "web", "10.77.0.1:7001"), l.listener(a, "api", "10.77.0.1:7002")
	front := l.opener(a, "front")

	envoy := l.sidecar("b", "legacy", 8001, envoyPublic,
		upstream("web", envoyToWeb), upstream("web-v1", envoyToV1), upstream("api", envoyToAPI))
	l.agents["b"].StartBuiltin(l, consul.Builtin{
		Service: "builtin", Listen: l.addr("b", builtinPublic), Application: l.addr("b", 8002), Upstreams: []string{fmt.Sprintf("api:%d", builtinToAPI)},
	})
	l.agents["b"].Register(l, &consulapi.AgentServiceRegistration{
		Name: "native", Address: b.Addr4().String(), Port: nativePublic, Connect: &consulapi.AgentServiceConnect{Native: true},
	})
	l.agents["b"].StartSDK(l, consul.SDK{Service: "native", Listen: l.addr("b", nativePublic), Application: l.addr("b", 8003)})
	l.agents["b"].StartSDK(l, consul.SDK{Service: "native", Listen: l.loopback(nativeToAPI), Upstream: "api"})

	fromFront := func(at string) func() (net.Conn, error) {
		return func() (net.Conn, error) { return front.Dial(at) }
	}
	for _, tc := range []struct {
		name string
		lane lane
	}{
		{"from Envoy", lane{app: web, dial: l.dialer("b", envoyToWeb), softToClient: true, softToApp: true}},
		{"from Envoy to a subset", lane{app: web, dial: l.dialer("b", envoyToV1), softToClient: true, softToApp: true}},
		{"from Envoy to a port of its own", lane{app: api, dial: l.dialer("b", envoyToAPI), softToClient: true, softToApp: true}},
		{"from the SDK", lane{app: api, dial: l.dialer("b", nativeToAPI), softToClient: true, softToApp: true}},
		{"to Envoy", lane{app: l.listener(b, "legacy", "10.77.0.2:8001"), dial: fromFront("10.77.0.2:8001"), softToClient: true, softToApp: true, strays: true}},
		{"to the SDK", lane{app: l.listener(b, "native", "10.77.0.2:8003"), dial: fromFront("10.77.0.2:8003"), softToClient: true, softToApp: true}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tc.lane.arrives(l.in(t).lab)
			tc.lane.check(t)
		})
	}
	// The builtin proxy ends both directions when either ends.
	for _, tc := range []struct {
		name string
		lane lane
	}{
		{"from the builtin proxy", lane{app: api, dial: l.dialer("b", builtinToAPI)}},
		{"to the builtin proxy", lane{app: l.listener(b, "builtin", "10.77.0.2:8002"), dial: fromFront("10.77.0.2:8002")}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tc.lane.arrives(l.in(t).lab)
			c, s := tc.lane.open(t)
			for range 3 {
				pass(t, c, s, "question")
				pass(t, s, c, "answer")
			}
			tc.lane.many(t, 50)
		})
	}
	t.Run("Envoy shook hands as sidecars do", func(t *testing.T) {
		n, err := envoy.Counters(l.in(t).ctx())
		must(t, err)
		for name, want := range map[string]bool{
			"cluster.web.default.dc1.internal." + l.TrustDomain + ".ssl.versions.TLSv1.2": true,
			"listener.10.77.0.2_21000.ssl.versions.TLSv1.3":                               true,
			"listener.10.77.0.2_21000.ssl.connection_error":                               false,
			"listener.10.77.0.2_21000.ssl.session_reused":                                 false,
			"cluster.web.default.dc1.internal." + l.TrustDomain + ".ssl.session_reused":   false,
		} {
			if (n[name] > 0) != want {
				t.Errorf("%s is %d", name, n[name])
			}
		}
	})
}
