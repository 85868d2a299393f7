// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"net"
	"testing"
	"time"

	consulapi "github.com/hashicorp/consul/api"

	"github.com/meshproxy/meshproxy/nodeproxy/admin/api"
	"github.com/meshproxy/meshproxy/tests/peers/consul"
)

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
	l.server.Write(l, &consulapi.ServiceResolverConfigEntry{
		Kind: consulapi.ServiceResolver, Name: "legacy",
		Subsets: map[string]consulapi.ServiceResolverSubset{"enveloped": {Filter: `Service.ID == "legacy-sidecar-proxy"`}},
	})
	l.server.Write(l, &consulapi.ServiceResolverConfigEntry{
		Kind: consulapi.ServiceResolver, Name: "legacy-subset",
		Redirect: &consulapi.ServiceResolverRedirect{Service: "legacy", ServiceSubset: "enveloped"},
	})
	l.server.Write(l, &consulapi.ServiceResolverConfigEntry{ // of which there is no instance
		Kind: consulapi.ServiceResolver, Name: "spare",
		Failover: map[string]consulapi.ServiceResolverFailover{"*": {Service: "legacy"}},
	})
	l.register("a", "web", 7001)
	l.register("a", "api", 7002)
	l.register("a", "front", 0)
	web, own := l.listener(a, "web", "10.77.0.1:7001"), l.listener(a, "api", "127.0.0.1:7002")
	front := l.opener(a, "front")
	l.node("a", `
      - {name: api, port: 20001}
      - name: front
        match: [{cgroup: "`+l.Cgroup("a", "front")+`"}]
        upstreams:
          - {listen: "127.0.0.1:9001", service: legacy}
          - {listen: "127.0.0.1:9002", service: builtin}
          - {listen: "127.0.0.1:9003", service: native}
          - {listen: "127.0.0.1:9004", service: legacy-subset}
          - {listen: "127.0.0.1:9005", service: spare}`)

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
	legacy := l.listener(b, "legacy", "10.77.0.2:8001")
	for _, tc := range []struct {
		name string
		lane lane
	}{
		{"from Envoy", lane{app: web, dial: l.dialer("b", envoyToWeb), softToClient: true, softToApp: true}},
		{"from Envoy to a subset", lane{app: web, dial: l.dialer("b", envoyToV1), softToClient: true, softToApp: true}},
		{"from Envoy to a port of its own", lane{app: own, dial: l.dialer("b", envoyToAPI), softToClient: true, softToApp: true}},
		{"from the SDK", lane{app: own, dial: l.dialer("b", nativeToAPI), softToClient: true, softToApp: true}},
		{"to Envoy", lane{app: legacy, dial: fromFront("127.0.0.1:9001"), softToClient: true, softToApp: true, strays: true}},
		{"to the SDK", lane{app: l.listener(b, "native", "10.77.0.2:8003"), dial: fromFront("127.0.0.1:9003"), softToClient: true, softToApp: true}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tc.lane.arrives(l.in(t).lab)
			tc.lane.check(t)
		})
	}
	for name, at := range map[string]string{"to a subset behind Envoy": "127.0.0.1:9004", "to Envoy by failover": "127.0.0.1:9005"} {
		t.Run(name, func(t *testing.T) {
			k := lane{app: legacy, dial: fromFront(at), strays: true}
			k.arrives(l.in(t).lab)
			c, s := k.open(t)
			pass(t, c, s, "question")
			pass(t, s, c, "answer")
		})
	}
	// The builtin proxy ends both directions when either ends.
	for _, tc := range []struct {
		name string
		lane lane
	}{
		{"from the builtin proxy", lane{app: own, dial: l.dialer("b", builtinToAPI)}},
		{"to the builtin proxy", lane{app: l.listener(b, "builtin", "10.77.0.2:8002"), dial: fromFront("127.0.0.1:9002")}},
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
			// An Envoy resumes with a node; a node doesn't know this for an Envoy.
			"listener.10.77.0.2_21000.ssl.session_reused":                               false,
			"cluster.web.default.dc1.internal." + l.TrustDomain + ".ssl.session_reused": true,
		} {
			if (n[name] > 0) != want {
				t.Errorf("%s is %d", name, n[name])
			}
		}
	})
}

// TestConsulNodes: two nodes take hbone between them where the other's row in
// Consul says that it does, and mutual TLS as sidecars speak it where not.
func TestConsulNodes(t *testing.T) {
	l := newConsulLab(t)
	a, b := l.net.Host("a"), l.net.Host("b")
	l.register("a", "front", 0)
	front := l.opener(a, "front")
	l.register("b", "web", 7001)
	l.register("b", "api", 7002)
	l.front("b", "web", 7001, map[string]string{"meshproxy-hbone": "15008"})
	l.front("b", "api", 7002, nil)
	apps := map[string]*net.TCPListener{"hbone": l.listener(b, "web", "10.77.0.2:7001"), "mtls": l.listener(b, "api", "10.77.0.2:7002")}
	l.node("b", "", "register: false")
	node := l.node("a", `
      - name: front
        match: [{cgroup: "`+l.Cgroup("a", "front")+`"}]
        upstreams: [{listen: "127.0.0.1:9001", service: web}, {listen: "127.0.0.1:9002", service: api}]`)
	for path, at := range map[string]string{"hbone": "127.0.0.1:9001", "mtls": "127.0.0.1:9002"} {
		t.Run(path, func(t *testing.T) {
			l := l.in(t)
			k := lane{app: apps[path], dial: func() (net.Conn, error) { return front.Dial(at) }}
			k.arrives(l.lab)
			k.check(t)
			c, s := k.open(t)
			pass(t, c, s, "hello")
			list, err := node.Admin.Connections(l.ctx(), api.ConnectionFilter{Path: path})
			must(t, err)
			if len(list.Connections) == 0 {
				t.Errorf("no connection takes %s", path)
			}
		})
	}
	t.Run("an intention", func(t *testing.T) {
		l := l.in(t)
		for path, at := range map[string]string{"hbone": "127.0.0.1:9001", "mtls": "127.0.0.1:9002"} {
			k := lane{app: apps[path], dial: func() (net.Conn, error) { return front.Dial(at) }}
			c, s := k.open(t)
			pass(t, c, s, "hello")
			l.server.Intend(l, "front", map[string]string{"hbone": "web", "mtls": "api"}[path], consulapi.IntentionActionDeny)
			expectCut(t, path, time.Now(), c, s)
		}
	})
}
