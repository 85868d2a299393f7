// SPDX-License-Identifier: Apache-2.0

package consul_test

import (
	"encoding/base64"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/meshproxy/meshproxy/discovery"
	"github.com/meshproxy/meshproxy/discovery/consul"
	"github.com/meshproxy/meshproxy/discovery/mesh"
	peer "github.com/meshproxy/meshproxy/tests/peers/consul"
)

// tunnels are where a service's healthy endpoints are, each with its priority.
func tunnels(u discovery.Update, name string) string {
	var list []string
	if s := service(u, name); s != nil {
		for _, e := range s.Endpoints {
			if e.Health != mesh.HealthUnhealthy {
				list = append(list, fmt.Sprintf("%d:%s", e.Priority, e.Tunnel.Addr()))
			}
		}
	}
	slices.Sort(list)
	return strings.Join(list, " ")
}

// TestResolvers: subsets, failover, redirects, and their end, each by a
// configuration entry that changes.
func TestResolvers(t *testing.T) {
	s := peer.Start(t, peer.Options{Dev: true, Node: "n1"})
	register(t, s, "n2", "10.0.0.2", "db", 5432, map[string]string{"version": "1"})
	register(t, s, "n3", "10.0.0.3", "db", 5432, map[string]string{"version": "2"})
	register(t, s, "n4", "10.0.0.4", "backup", 5432, nil)
	s.Register(t, &api.AgentServiceRegistration{ID: "web-1", Name: "web", Port: 8080})
	f := start(t, optionsFor(t, s, ""))
	expect := func(want string) {
		t.Helper()
		f.until(want, func(u discovery.Update, err error) bool { return tunnels(u, "db") == want })
	}
	expect("0:10.0.0.2 0:10.0.0.3")
	s.Write(t, &api.ServiceResolverConfigEntry{
		Kind: api.ServiceResolver, Name: "db", DefaultSubset: "v2",
		Subsets:        map[string]api.ServiceResolverSubset{"v2": {Filter: "Service.Meta.version == 2"}},
		Failover:       map[string]api.ServiceResolverFailover{"*": {Service: "backup"}},
		ConnectTimeout: 7 * time.Second,
	})
	expect("0:10.0.0.3 1:10.0.0.4")
	u, _ := f.now()
	if db := service(u, "db"); db.ConnectTimeout != 7*time.Second || !strings.HasPrefix(db.Endpoints[0].SNI, "v2.db.") {
		t.Errorf("service %+v, server name %s", db, db.Endpoints[0].SNI)
	}
	s.Write(t, &api.ServiceResolverConfigEntry{Kind: api.ServiceResolver, Name: "db", Redirect: &api.ServiceResolverRedirect{Service: "backup"}})
	expect("0:10.0.0.4")
	s.Delete(t, api.ServiceResolver, "db")
	expect("0:10.0.0.2 0:10.0.0.3")

	// A virtual service has no instance of its own.
	s.Write(t, &api.ServiceResolverConfigEntry{Kind: api.ServiceResolver, Name: "store", Redirect: &api.ServiceResolverRedirect{Service: "db"}})
	f.until("the virtual service", func(u discovery.Update, err error) bool { return tunnels(u, "store") == "0:10.0.0.2 0:10.0.0.3" })
	s.Write(t, &api.MeshConfigEntry{TransparentProxy: api.TransparentProxyMeshConfig{MeshDestinationsOnly: true}})
	f.until("mesh destinations only", func(u discovery.Update, err error) bool {
		return workload(u, "web").Egress == mesh.EgressRegisteredOnly
	})
}

func TestIntentionsLive(t *testing.T) {
	s := peer.Start(t, peer.Options{Dev: true, Node: "n1"})
	s.Register(t, &api.AgentServiceRegistration{ID: "web-1", Name: "web", Port: 8080})
	f := start(t, optionsFor(t, s, ""))
	actions := func(u discovery.Update) (text string) {
		for _, p := range u.Policies {
			text += fmt.Sprintf("%d %s;", p.Precedence, p.Action)
		}
		return text
	}
	expect := func(want string) {
		t.Helper()
		f.until(want, func(u discovery.Update, err error) bool { return actions(u) == want })
	}
	expect("-1 allow;")
	s.Intend(t, "*", "web", api.IntentionActionDeny)
	expect("8 deny;-1 allow;")
	s.Intend(t, "api", "web", api.IntentionActionAllow)
	expect("9 allow;8 deny;-1 allow;")
	s.Delete(t, api.ServiceIntentions, "web")
	expect("-1 allow;")

	// What a connection does not show, it does not have: a path, a token.
	s.Write(t, &api.ServiceConfigEntry{Kind: api.ServiceDefaults, Name: "web", Protocol: "http"})
	s.Write(t, &api.ServiceIntentionsConfigEntry{Kind: api.ServiceIntentions, Name: "web", Sources: []*api.SourceIntention{
		{Name: "api", Permissions: []*api.IntentionPermission{{Action: api.IntentionActionAllow, HTTP: &api.IntentionHTTPPermission{PathPrefix: "/"}}}},
	}})
	expect("9 deny;-1 allow;")
	s.Write(t, &api.JWTProviderConfigEntry{Kind: api.JWTProvider, Name: "tokens", JSONWebKeySet: &api.JSONWebKeySet{
		Local: &api.LocalJWKS{JWKS: base64.StdEncoding.EncodeToString([]byte(`{"keys":[]}`))},
	}})
	s.Write(t, &api.ServiceIntentionsConfigEntry{
		Kind: api.ServiceIntentions, Name: "web",
		JWT:     &api.IntentionJWTRequirement{Providers: []*api.IntentionJWTProvider{{Name: "tokens"}}},
		Sources: []*api.SourceIntention{{Name: "db", Action: api.IntentionActionAllow}, {Name: "cache", Action: api.IntentionActionDeny}},
	})
	expect("9 deny;9 deny;-1 allow;")
}

// TestRegister: rows follow their services, with what is copied; services of
// the node's own come and go with the configuration; a leave takes all back.
func TestRegister(t *testing.T) {
	s := peer.Start(t, peer.Options{Dev: true, Node: "n1"})
	s.Register(t, &api.AgentServiceRegistration{
		ID: "web-1", Name: "web", Port: 8080, Tags: []string{"a"}, Meta: map[string]string{"version": "1"},
		Weights: &api.AgentWeights{Passing: 5, Warning: 2}, Locality: &api.Locality{Region: "eu", Zone: "eu-1"},
	})
	s.Register(t, &api.AgentServiceRegistration{ID: "client", Name: "client"})
	node, err := net.Listen("tcp", "127.0.0.1:0") // what the row's check dials
	if err != nil {
		t.Fatal(err)
	}
	defer node.Close()
	o := optionsFor(t, s, "")
	o.Services = []consul.Service{
		{Name: mesh.ParseName("web"), Port: 21777},
		{Name: mesh.ParseName("own"), Port: uint16(node.Addr().(*net.TCPAddr).Port), Register: &consul.Registration{
			Port: 9000, Meta: map[string]string{"version": "3"},
			Checks: []consul.Check{{Name: "port", TCP: s.HTTPAddr.String(), Interval: time.Second, Timeout: time.Second}},
		}},
	}
	f := start(t, o)
	rows := func() map[string]*api.AgentService {
		t.Helper()
		all, err := s.Client().Agent().Services()
		if err != nil {
			t.Fatal(err)
		}
		return all
	}
	u := f.until("both services and their rows", func(u discovery.Update, err error) bool {
		return workload(u, "web") != nil && workload(u, "own") != nil &&
			rows()["web-1-meshproxy"] != nil && rows()["own-meshproxy"] != nil
	})
	row := rows()["web-1-meshproxy"]
	if row.Service != "web-sidecar-proxy" || row.Port != 21777 || row.Weights.Passing != 5 || row.Weights.Warning != 2 ||
		!slices.Equal(row.Tags, []string{"a"}) || row.Meta["version"] != "1" || row.Meta[consul.MetaHBONE] != "15008" ||
		row.Proxy.LocalServicePort != 8080 || row.Locality == nil || row.Locality.Zone != "eu-1" {
		t.Errorf("row %+v", row)
	}
	if w := workload(u, "web"); w.MTLSPort != 21777 {
		t.Errorf("workload %+v", w)
	}
	if workload(u, "client") == nil || rows()["client-meshproxy"] != nil {
		t.Error("a service without a port is a workload, and has no row")
	}
	f.until("own to pass its check", func(u discovery.Update, err error) bool { return tunnels(u, "own") == "0:127.0.0.1" })

	// Other checks take the place of those of before, whatever kind they are.
	second, refused := time.Second, "127.0.0.1:1"
	o.Services = slices.Clone(o.Services)
	own := *o.Services[1].Register
	own.Checks = []consul.Check{
		{Name: "page", HTTP: "http://" + s.HTTPAddr.String() + "/v1/status/leader", Interval: second, Timeout: second},
		{Name: "call", GRPC: refused, Interval: second, Timeout: second, DeregisterAfter: time.Hour},
	}
	o.Services[1].Register = &own
	f.source.Reload(o)
	f.until("own to fail one check and pass the other", func(discovery.Update, error) bool {
		checks, err := s.Client().Agent().ChecksWithFilter(`ServiceID == "own"`)
		if err != nil {
			t.Fatal(err)
		}
		states := map[string]string{}
		for _, c := range checks {
			states[c.Name+" "+c.Type] = c.Status
		}
		return maps.Equal(states, map[string]string{"page http": api.HealthPassing, "call grpc": api.HealthCritical})
	})

	// What changes is copied again.
	s.Register(t, &api.AgentServiceRegistration{ID: "web-1", Name: "web", Port: 8081, Meta: map[string]string{"version": "2"}})
	f.until("the row to follow", func(discovery.Update, error) bool {
		r := rows()["web-1-meshproxy"]
		return r.Meta["version"] == "2" && r.Proxy.LocalServicePort == 8081 && len(r.Tags) == 0
	})
	// Configuration that no longer has it.
	o.Services = o.Services[:1]
	f.source.Reload(o)
	f.until("own to be gone", func(u discovery.Update, err error) bool { return workload(u, "own") == nil && rows()["own"] == nil })

	ids, err := consul.Leave(t.Context(), o.Agent, "n1")
	if err != nil || !slices.Contains(ids, "web-1-meshproxy") {
		t.Errorf("left %q, %v", ids, err)
	}
}

// TestMatch: by default a service is whoever listens on its port.
func TestMatch(t *testing.T) {
	s := peer.Start(t, peer.Options{Dev: true, Node: "n1"})
	for i, name := range []string{"web", "api", "twin", "shell", "given", "none"} {
		s.Register(t, &api.AgentServiceRegistration{Name: name, Port: 8080 + i})
	}
	o := optionsFor(t, s, "")
	o.Services = []consul.Service{{Name: mesh.ParseName("given"), Match: []mesh.Selector{{Kind: mesh.SelectUnit, Value: "given.service"}}}}
	o.Listeners = func() ([]consul.Listener, error) {
		at := func(a, cgroup string) consul.Listener {
			return consul.Listener{Address: netip.MustParseAddrPort(a), Cgroup: cgroup}
		}
		return []consul.Listener{
			at("127.0.0.1:8080", "/system.slice/web.service"), at("0.0.0.0:8081", "/shared.service"), at("[::]:8082", "/shared.service"),
			at("0.0.0.0:8083", "/user.slice/user-0.slice/session-3.scope"), at("0.0.0.0:8084", "/elsewhere.service"), at("192.0.2.1:8085", "/other.service"),
		}, nil
	}
	f := start(t, o)
	u := f.until("workloads", func(u discovery.Update, err error) bool { return len(u.Workloads) == 6 })
	for name, want := range map[string]string{
		"web": "/system.slice/web.service", "api": "", "twin": "", "shell": "", "given": "given.service", "none": "",
	} {
		got := ""
		for _, sel := range workload(u, name).Selectors {
			got += sel.Value
		}
		if got != want {
			t.Errorf("%s is matched by %q, want %q", name, got, want)
		}
	}
	if text := strings.Join(u.Warnings, "\n"); !strings.Contains(text, "services api, twin are all served from cgroup /shared.service") ||
		!strings.Contains(text, "service shell is served from cgroup /user.slice/user-0.slice/session-3.scope, which is a person's session") {
		t.Errorf("warnings %q", u.Warnings)
	}
}

// TestMany: with more targets than have queries of their own, each change is
// heard of all the same.
func TestMany(t *testing.T) {
	s := peer.Start(t, peer.Options{Dev: true, Node: "n1"})
	const services = 120
	name := func(i int) string { return fmt.Sprintf("svc-%03d", i) }
	for i := range services {
		register(t, s, "n2", "10.0.0.2", name(i), 10000+i, nil)
	}
	s.Register(t, &api.AgentServiceRegistration{ID: "web-1", Name: "web", Port: 8080})
	f := start(t, optionsFor(t, s, ""))
	f.until("all services", func(u discovery.Update, err error) bool {
		for i := range services {
			if tunnels(u, name(i)) != "0:10.0.0.2" {
				return false
			}
		}
		return true
	})
	for _, i := range []int{0, services / 2, services - 1} {
		status(t, s, "n2", "10.0.0.2", name(i), api.HealthCritical)
		f.until(name(i)+" to fail", func(u discovery.Update, err error) bool { return tunnels(u, name(i)) == "" })
		status(t, s, "n2", "10.0.0.2", name(i), api.HealthPassing)
		f.until(name(i)+" to pass", func(u discovery.Update, err error) bool { return tunnels(u, name(i)) == "0:10.0.0.2" })
		register(t, s, "n3", "10.0.0.3", name(i), 10000+i, nil)
		f.until("another "+name(i), func(u discovery.Update, err error) bool { return tunnels(u, name(i)) == "0:10.0.0.2 0:10.0.0.3" })
	}
	if _, err := s.Client().Catalog().Deregister(&api.CatalogDeregistration{Node: "n3"}, nil); err != nil {
		t.Fatal(err)
	}
	f.until("node n3 to be gone", func(u discovery.Update, err error) bool {
		return tunnels(u, name(0)) == "0:10.0.0.2" && tunnels(u, name(services-1)) == "0:10.0.0.2"
	})
}
