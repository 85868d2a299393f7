// SPDX-License-Identifier: Apache-2.0

package consul

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/meshproxy/meshproxy/discovery/mesh"
)

// sample reads an answer that a Consul 1.22 gave.
func sample[T any](t *testing.T, name string) (v T) {
	t.Helper()
	text, err := os.ReadFile("testdata/" + name + ".json")
	if err == nil {
		err = json.Unmarshal(text, &v)
	}
	if err != nil {
		t.Fatal(err)
	}
	return v
}

const td = "02d8e895-7463-dfcc-4d54-ed3aa8c9155e.consul"

// world is a translation over instances by target: "service[/filter]".
func world(instances map[string][]instance) *translation {
	return &translation{
		home:        location{node: "n1", datacenter: "dc1", partition: standard},
		self:        mesh.Node{Name: "here", Address: netip.MustParseAddr("10.0.0.1")},
		trustDomain: spiffeid.RequireTrustDomainFromString(td),
		domain:      "consul", hbone: 15008,
		instances: func(k targetKey) []instance {
			name := k.service
			if k.filter != "" {
				name += "/" + k.filter[len(k.filter)-2:]
			}
			if k.datacenter != "dc1" {
				name += "@" + k.datacenter
			}
			return instances[name]
		},
	}
}

func sidecar(address string, status string) instance {
	return instance{
		node: "node-" + address, id: "x-sidecar-proxy", address: address, port: 21000, wan: "203.0.113.9", wanPort: 31000,
		status: status, weights: weights{1, 1},
	}
}

func endpointsText(list []*mesh.Endpoint) (out []string) {
	for _, e := range list {
		text := fmt.Sprintf("%d %s %s %s w%d", e.Priority, e.Transport, e.Tunnel, e.Health, e.Weight)
		if e.SNI != "" {
			text += " " + strings.TrimSuffix(e.SNI, ".internal."+td)
		}
		out = append(out, text)
	}
	return out
}

// TestShop has a router, a splitter, subsets, failover to a service and to
// another datacenter, and a load balancer that hashes.
func TestShop(t *testing.T) {
	c := sample[struct{ Chain *chain }](t, "dchain-shop").Chain
	x := world(map[string][]instance{
		"shop/v1":     {sidecar("10.0.0.2", statusPassing), sidecar("10.0.0.3", statusPassing)},
		"shop/v2":     {sidecar("10.0.0.4", statusWarning)}, // OnlyPassing
		"shop-backup": {sidecar("10.0.0.5", statusPassing)},
		"shop-admin":  {sidecar("10.0.0.6", statusPassing)},
		"shop/v2@dc2": {sidecar("10.9.9.9", statusPassing)},
	})
	s, warnings := x.service(chainKey{name: mesh.ParseName("shop")}, c)
	if len(warnings) != 0 {
		t.Errorf("warnings %q", warnings)
	}
	// Connections: 90 % to v1; v2 has none that is healthy, so its 10 % go to
	// the backup.
	want := []string{
		"0 mtls 10.0.0.2:21000 healthy w4500000 v1.shop.default.dc1",
		"0 mtls 10.0.0.3:21000 healthy w4500000 v1.shop.default.dc1",
		"0 mtls 10.0.0.5:21000 healthy w1000000 shop-backup.default.dc1",
	}
	if diff := cmp.Diff(want, endpointsText(s.Endpoints)); diff != "" {
		t.Errorf("endpoints (-want +got):\n%s", diff)
	}
	if s.ConnectTimeout != 3*time.Second || s.Ports[0].Protocol != mesh.ProtocolHTTP || s.Balance != "" {
		t.Errorf("service %+v", s)
	}
	if id := s.Endpoints[2].Identity.String(); id != "spiffe://"+td+"/ns/default/dc/dc1/svc/shop-backup" {
		t.Errorf("identity %s", id)
	}

	got := s.Routing
	if len(got.Routes) != 4 || len(got.Targets) != 3 {
		t.Fatalf("%d routes to %d targets", len(got.Routes), len(got.Targets))
	}
	admin := mesh.Route{
		Match:         mesh.RouteMatch{PathExact: "/admin", IgnoreCase: true, Methods: []string{"GET", "PUT"}},
		Splits:        []mesh.RouteSplit{{Weight: 10000, Target: 0}},
		PrefixRewrite: "/", Timeout: 5 * time.Second, IdleTimeout: 10 * time.Second,
		Retry: &mesh.RouteRetry{Attempts: 3, OnConnectFailure: true, On: []string{"5xx", "reset"}, OnStatus: []uint32{502, 503}},
		HeaderEdits: mesh.HeaderEdits{
			Request:  &mesh.HeaderEdit{Add: map[string]string{"x-a": "1"}, Set: map[string]string{"x-b": "2"}, Remove: []string{"x-c"}},
			Response: &mesh.HeaderEdit{Set: map[string]string{"x-d": "%DOWNSTREAM_REMOTE_ADDRESS%"}},
		},
	}
	if diff := cmp.Diff(admin, got.Routes[0]); diff != "" {
		t.Errorf("first route (-want +got):\n%s", diff)
	}
	v2 := mesh.RouteMatch{
		PathPrefix: "/v2/",
		Headers:    []mesh.FieldMatch{{Name: "x-beta", Exact: "1"}, {Name: "x-old", Present: true, Invert: true}},
		Query:      []mesh.FieldMatch{{Name: "debug", Present: true}},
	}
	if diff := cmp.Diff(v2, got.Routes[1].Match); diff != "" {
		t.Errorf("second route's match (-want +got):\n%s", diff)
	}
	last := []mesh.RouteSplit{
		{Weight: 9000, Target: 2, HeaderEdits: mesh.HeaderEdits{Request: &mesh.HeaderEdit{Set: map[string]string{"x-split": "v1"}}}},
		{Weight: 1000, Target: 1, HeaderEdits: mesh.HeaderEdits{Response: &mesh.HeaderEdit{Add: map[string]string{"x-canary": "1"}, Remove: []string{"server"}}}},
	}
	if diff := cmp.Diff(last, got.Routes[3].Splits); diff != "" {
		t.Errorf("last route's splits (-want +got):\n%s", diff)
	}
	target := got.Targets[1]
	target.Endpoints = nil
	wantTarget := mesh.RouteTarget{
		Name: "v2.shop.default.default.dc1", ConnectTimeout: 3 * time.Second, RequestTimeout: 20 * time.Second, Balance: "ring_hash",
		Hash: []mesh.HashField{
			{Field: "header", Name: "x-user"},
			{Field: "cookie", Name: "sess", CookieTTL: time.Hour, CookiePath: "/", Terminal: true},
		},
	}
	if diff := cmp.Diff(wantTarget, target); diff != "" {
		t.Errorf("target (-want +got):\n%s", diff)
	}
	// For requests, failover is in order and by priority; other datacenters
	// are reached by their WAN addresses.
	if diff := cmp.Diff([]string{
		"0 mtls 10.0.0.4:21000 unhealthy w1 v2.shop.default.dc1",
		"1 mtls 10.0.0.5:21000 healthy w1 shop-backup.default.dc1",
		"2 mtls 203.0.113.9:31000 healthy w1 v2.shop.default.dc2",
	}, endpointsText(got.Targets[1].Endpoints)); diff != "" {
		t.Errorf("failover (-want +got):\n%s", diff)
	}
}

// resolverChain is a chain of a resolver alone.
func resolverChain(failover []string, targets ...*chainTarget) *chain {
	c := &chain{
		ServiceName: "db", Namespace: standard, Partition: standard, Datacenter: "dc1", Protocol: "tcp", StartNode: "r",
		Nodes:   map[string]*chainNode{"r": {Type: nodeResolver, Resolver: &chainResolver{Target: targets[0].ID}}},
		Targets: make(map[string]*chainTarget),
	}
	if failover != nil {
		c.Nodes["r"].Resolver.Failover = &struct{ Targets []string }{failover}
	}
	for _, t := range targets {
		c.Targets[t.ID] = t
	}
	return c
}

func target(id string, edit func(*chainTarget)) *chainTarget {
	service, _, _ := strings.Cut(id, ".")
	t := &chainTarget{
		ID: id, Service: service, Namespace: standard, Partition: standard, Datacenter: "dc1",
		SNI: service + ".default.dc1.internal." + td,
	}
	if edit != nil {
		edit(t)
	}
	return t
}

func TestResolver(t *testing.T) {
	meshproxy := sidecar("10.0.0.7", statusPassing)
	meshproxy.port, meshproxy.local, meshproxy.hbone = 20000, 5432, 15008
	named := sidecar("db.example.com", statusPassing)
	own := sidecar("10.0.0.1", statusCritical)
	own.node, own.fronts = "n1", "db-1"
	beside := own
	beside.status = statusPassing
	heavy := sidecar("10.0.0.8", statusWarning)
	heavy.weights = weights{Passing: 10, Warning: 3}
	off := sidecar("10.0.0.9", statusPassing)
	off.weights = weights{Passing: 0, Warning: 1}
	db := target("db.dc1", nil)

	for _, tt := range []struct {
		name      string
		chain     *chain
		instances map[string][]instance
		want      []string
		warnings  []string
	}{
		{
			"redirect: the identity and the name are the target's",
			resolverChain(nil, target("db2.dc1", nil)),
			map[string][]instance{"db2": {sidecar("10.0.0.2", statusPassing)}},
			[]string{"0 mtls 10.0.0.2:21000 healthy w1 db2.default.dc1"},
			nil,
		},
		{
			"a node proxy that says so is reached by hbone", resolverChain(nil, db),
			map[string][]instance{"db": {meshproxy}},
			[]string{"0 hbone 10.0.0.7:15008 healthy w1"},
			nil,
		},
		{
			"weights and health", resolverChain(nil, db),
			map[string][]instance{"db": {heavy, off, sidecar("10.0.0.2", statusCritical)}},
			[]string{
				"0 mtls 10.0.0.2:21000 unhealthy w1 db.default.dc1", "0 mtls 10.0.0.8:21000 healthy w3 db.default.dc1",
				"0 mtls 10.0.0.9:21000 unhealthy w1 db.default.dc1",
			},
			nil,
		},
		{
			"failover in order, and what is in both stays with the first",
			resolverChain([]string{"backup.dc1", "again.dc1"}, db, target("backup.dc1", nil), target("again.dc1", func(t *chainTarget) { t.Service = "db" })),
			map[string][]instance{"db": {sidecar("10.0.0.2", statusPassing)}, "backup": {sidecar("10.0.0.3", statusPassing)}},
			[]string{"0 mtls 10.0.0.2:21000 healthy w1 db.default.dc1", "1 mtls 10.0.0.3:21000 healthy w1 backup.default.dc1"},
			nil,
		},
		{
			"two rows here are one application", resolverChain(nil, db),
			map[string][]instance{"db": {own, beside}},
			[]string{"0 hbone 10.0.0.1:15008 healthy w1"},
			nil,
		},
		{
			"an address that is a name", resolverChain(nil, db),
			map[string][]instance{"db": {named}},
			nil,
			[]string{`service db: instance x-sidecar-proxy of db is left out: its address "db.example.com" is no IP address`},
		},
		{
			"a peer's service", resolverChain(nil, target("db.dc1", func(t *chainTarget) { t.Peer = "east" })),
			map[string][]instance{"db": {sidecar("10.0.0.2", statusPassing)}},
			nil,
			[]string{"service db: target db.dc1 is refused: it is a service of cluster peer east, which meshproxy does not speak to"},
		},
		{
			"behind a mesh gateway", resolverChain([]string{"db.dc2"}, db, target("db.dc2", func(t *chainTarget) {
				t.Datacenter, t.MeshGateway.Mode = "dc2", "local"
			})),
			map[string][]instance{"db": {sidecar("10.0.0.2", statusPassing)}, "db@dc2": {sidecar("10.0.0.3", statusPassing)}},
			[]string{"0 mtls 10.0.0.2:21000 healthy w1 db.default.dc1"},
			[]string{"service db: target db.dc2 is refused: datacenter dc2 is reached by mesh gateways (mode local)"},
		},
		{
			"another partition", resolverChain(nil, target("db.dc1", func(t *chainTarget) { t.Partition = "team" })),
			map[string][]instance{"db": {sidecar("10.0.0.2", statusPassing)}},
			nil,
			[]string{"service db: target db.dc1 is refused: it is in partition team, which only a mesh gateway reaches"},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			x := world(tt.instances)
			x.locals = map[string]*local{"db-1": {
				agentService: agentService{ID: "db-1"}, name: mesh.ParseName("db"), address: netip.MustParseAddr("10.0.0.1"), port: 5432,
			}}
			s, warnings := x.service(chainKey{name: mesh.ParseName("db")}, tt.chain)
			if diff := cmp.Diff(tt.want, endpointsText(s.Endpoints)); diff != "" {
				t.Errorf("endpoints (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.warnings, warnings); diff != "" {
				t.Errorf("warnings (-want +got):\n%s", diff)
			}
			if s.Routing != nil {
				t.Errorf("routing %+v", s.Routing)
			}
		})
	}
}

func TestRows(t *testing.T) {
	web := instancesOf(sample[[]row](t, "hc-web"))
	want := instance{
		node: "n1", id: "meshproxy-n1-web", kind: kindConnectProxy, service: "web-sidecar-proxy", fronts: "web-1",
		address: "10.0.0.5", wan: "10.0.0.5", port: 15008, wanPort: 15008, local: 8080, status: statusPassing,
		weights: weights{1, 1}, vip: netip.MustParseAddr("240.0.0.5"),
	}
	if diff := cmp.Diff([]instance{want}, web, cmp.AllowUnexported(instance{}), cmpopts.EquateComparable(netip.Addr{})); diff != "" {
		t.Errorf("instances (-want +got):\n%s", diff)
	}
	if a := instancesOf(sample[[]row](t, "hc-sc-a")); a[0].status != statusCritical {
		t.Errorf("a sidecar that does not listen is %s", a[0].status)
	}
}

func TestIntentions(t *testing.T) {
	web := mesh.ParseName("web")
	x := world(nil)
	list := intentionsOf(sample[map[string][]wireIntention](t, "ixn-match-web-l7")["web"])
	got, warnings := x.policies(web, list, mesh.ActionAllow, false)
	if len(warnings) != 0 {
		t.Errorf("warnings %q", warnings)
	}
	var lines []string
	for _, p := range got {
		line := fmt.Sprintf("%d %s %s", p.Precedence, p.Action, p.Name)
		if len(p.From) > 0 {
			line += fmt.Sprintf(" from %s in %s", p.From[0].Service, p.From[0].TrustDomain[:2])
		}
		lines = append(lines, line)
		if len(p.To) != 1 || p.To[0].Workload != web {
			t.Errorf("%s is about %+v", p.Name, p.To)
		}
	}
	want := []string{
		"9 deny intention api->web from api in 02",
		"9 deny intention client->web (about requests) from client in 02",
		"8 deny intention *->web from * in 02",
		"6 allow intention ops->web from ops in 02",
		"5 allow intention *->web from * in 02",
		"-1 allow intention default->web",
	}
	if diff := cmp.Diff(want, lines); diff != "" {
		t.Errorf("policies (-want +got):\n%s", diff)
	}

	list = []intention{{SourceName: "api", SourcePeer: "east", Action: "allow", Precedence: 9}}
	got, warnings = x.policies(web, list, mesh.ActionDeny, false)
	if len(got) != 1 || len(warnings) != 1 {
		t.Errorf("an intention about a peer: %+v, %q", got, warnings)
	}
	got, _ = x.policies(web, nil, mesh.ActionAllow, true)
	if len(got) != 1 || got[0].Action != mesh.ActionDeny {
		t.Errorf("unknown intentions: %+v", got)
	}
}

func TestPermits(t *testing.T) {
	db := mesh.ParseName("db")
	to := func(name, action string, precedence int) intention {
		return intention{DestinationName: name, Action: action, Precedence: precedence}
	}
	conditional := to("db", "", 9)
	conditional.Conditional = true
	for _, tt := range []struct {
		name      string
		list      []intention
		byDefault mesh.Action
		want      bool
	}{
		{"default allow", nil, mesh.ActionAllow, true},
		{"default deny", nil, mesh.ActionDeny, false},
		{"exact", []intention{to("db", "allow", 9)}, mesh.ActionDeny, true},
		{"exact before wildcard", []intention{to("*", "deny", 6), to("db", "allow", 9)}, mesh.ActionDeny, true},
		{"wildcard", []intention{to("*", "deny", 6)}, mesh.ActionAllow, false},
		{"another service", []intention{to("web", "allow", 9)}, mesh.ActionDeny, false},
		{"some requests", []intention{conditional}, mesh.ActionDeny, true},
	} {
		if got := permits(tt.list, db, tt.byDefault); got != tt.want {
			t.Errorf("%s: %v", tt.name, got)
		}
	}
}

func TestUpstreams(t *testing.T) {
	web := []*local{{agentService: agentService{ID: "web-1", Service: "web"}, name: mesh.ParseName("web")}}
	proxy := func(ups ...agentUpstream) map[string]*agentService {
		return map[string]*agentService{
			"web-1-sidecar-proxy": {Kind: kindConnectProxy, ID: "web-1-sidecar-proxy", Proxy: &agentProxy{DestinationServiceID: "web-1", Upstreams: ups}},
			"api-1-sidecar-proxy": {Kind: kindConnectProxy, Proxy: &agentProxy{DestinationServiceID: "api-1", Upstreams: []agentUpstream{{DestinationName: "x", LocalBindPort: 1}}}},
		}
	}
	configured := []Upstream{{Listen: netip.MustParseAddrPort("127.0.0.1:9192"), Service: mesh.ParseName("mine")}}
	r := &run{translation: translation{home: location{datacenter: "dc1", partition: standard}}}
	r.all = proxy(
		agentUpstream{DestinationName: "db", LocalBindPort: 9191},
		agentUpstream{DestinationName: "other", LocalBindPort: 9192},
		agentUpstream{DestinationName: "far", LocalBindPort: 9193, Datacenter: "dc2", LocalBindAddress: "127.0.0.2"},
		agentUpstream{DestinationName: "team", DestinationNamespace: "dev", LocalBindPort: 9194, LocalBindAddress: "0.0.0.0"},
		agentUpstream{DestinationName: "q", DestinationType: "prepared_query", LocalBindPort: 9195},
		agentUpstream{DestinationName: "p", DestinationPeer: "east", LocalBindPort: 9196},
		agentUpstream{DestinationName: "s", LocalBindSocketPath: "/run/s"},
		agentUpstream{DestinationName: "g", LocalBindPort: 9197, Datacenter: "dc2", MeshGateway: gatewayMode{"local"}},
		agentUpstream{DestinationName: "here", LocalBindPort: 9198, Datacenter: "dc1", MeshGateway: gatewayMode{"local"}},
		agentUpstream{DestinationName: "*", MeshGateway: gatewayMode{"local"}}, // as the agent shows what entries say
	)
	got, warnings := r.upstreams(mesh.ParseName("web"), web, configured)
	var lines []string
	for _, u := range got {
		lines = append(lines, fmt.Sprintf("%s %s", u.Listen, r.key(&u).meshName()))
	}
	want := []string{"127.0.0.1:9192 mine", "127.0.0.1:9191 db", "127.0.0.2:9193 far@dc2", "127.0.0.1:9194 dev/team", "127.0.0.1:9198 here~local"}
	if diff := cmp.Diff(want, lines); diff != "" {
		t.Errorf("upstreams (-want +got):\n%s", diff)
	}
	wantWarnings := []string{
		"upstream q of web-1-sidecar-proxy is refused: its destination is a prepared query, not a service",
		"upstream p of web-1-sidecar-proxy is refused: it is a service of cluster peer east",
		"upstream s of web-1-sidecar-proxy is refused: it listens on unix socket /run/s",
		"upstream g of web-1-sidecar-proxy is refused: datacenter dc2 is reached by mesh gateways",
	}
	if diff := cmp.Diff(wantWarnings, warnings); diff != "" {
		t.Errorf("warnings (-want +got):\n%s", diff)
	}
}

// TestBelieve: an instance whose checks have not run since its agent started
// stays as it was, for a while.
func TestBelieve(t *testing.T) {
	check := func(status, output string) (in instance) {
		r := &row{Checks: []struct{ Type, Status, Output string }{{"tcp", status, output}}}
		r.Node.Node, r.Service.ID = "n2", "db"
		return newInstance(r)
	}
	for _, tc := range []struct {
		name        string
		before, now instance
		doubtful    time.Duration // how long already
		want        string
	}{
		{"passing, then not checked", check(statusPassing, "ok"), check(statusCritical, ""), 0, statusPassing},
		{"warning, then not checked", check(statusWarning, "so so"), check(statusCritical, ""), 0, statusWarning},
		{"passing, then failing", check(statusPassing, "ok"), check(statusCritical, "connection refused"), 0, statusCritical},
		{"failing, then not checked", check(statusCritical, "connection refused"), check(statusCritical, ""), 0, statusCritical},
		{"not checked for long", check(statusPassing, "ok"), check(statusCritical, ""), uncheckedFor + time.Second, statusCritical},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := &run{ctx: t.Context()}
			target := &targetState{instances: []instance{tc.before}, again: true}
			if tc.doubtful > 0 {
				target.doubtful = time.Now().Add(-tc.doubtful)
			}
			now := []instance{tc.now}
			r.believe(target, now, false)
			if now[0].status != tc.want {
				t.Errorf("it is %s, want %s", now[0].status, tc.want)
			}
		})
	}
	t.Run("after a restart of the node", testBelieveLast)
	if in := check(statusCritical, ""); in.status != statusCritical || !in.unchecked {
		t.Errorf("a new instance is %+v", in)
	}
	maintenance := &row{Checks: []struct{ Type, Status, Output string }{{"maintenance", statusCritical, ""}}}
	if in := newInstance(maintenance); in.unchecked {
		t.Error("maintenance is taken for a check that has not run")
	}
}

// testBelieveLast: what the node knew before its own restart counts once.
func testBelieveLast(t *testing.T) {
	db := mesh.Name{Name: "db"}
	endpoint := func(address string, port uint16, h mesh.Health) *mesh.Endpoint {
		return &mesh.Endpoint{Address: netip.MustParseAddr(address), Ports: []uint16{port}, Workload: db.Canonical(), Health: h}
	}
	last := &mesh.BuildInput{Services: []*mesh.Service{
		{Name: db, Source: Name, Endpoints: []*mesh.Endpoint{
			endpoint("10.0.0.2", 5432, mesh.HealthHealthy), endpoint("10.0.0.3", 5432, mesh.HealthUnhealthy),
			endpoint("10.0.0.4", 20000, mesh.HealthHealthy), endpoint("127.0.0.1", 5432, mesh.HealthHealthy),
		}},
		{Name: mesh.Name{Name: "file"}, Source: "static", Endpoints: []*mesh.Endpoint{endpoint("10.0.0.5", 5432, mesh.HealthHealthy)}},
	}}
	for _, tc := range []struct {
		name  string
		in    instance
		here  *local
		first bool
		want  string
	}{
		{"over hbone", instance{address: "10.0.0.2", port: 20000, local: 5432}, nil, true, statusPassing},
		{"over mtls", instance{address: "10.0.0.4", port: 20000}, nil, true, statusPassing},
		{"by the WAN address", instance{address: "n4", wan: "10.0.0.4", wanPort: 20000}, nil, true, statusPassing},
		{"of this node", instance{address: "10.0.0.9", port: 20000, fronts: "db"}, &local{address: netip.MustParseAddr("127.0.0.1"), port: 5432}, true, statusPassing},
		{"unhealthy then", instance{address: "10.0.0.3", port: 20000, local: 5432}, nil, true, statusCritical},
		{"new", instance{address: "10.0.0.6", port: 20000, local: 5432}, nil, true, statusCritical},
		{"of another source", instance{address: "10.0.0.5", port: 5432}, nil, true, statusCritical},
		{"gone for a while since", instance{address: "10.0.0.2", port: 20000, local: 5432}, nil, false, statusCritical},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := &run{ctx: t.Context(), last: remember(last)}
			r.locals = map[string]*local{}
			if tc.here != nil {
				r.locals[tc.in.fronts] = tc.here
			}
			tc.in.status, tc.in.unchecked = statusCritical, true
			now := []instance{tc.in}
			r.believe(&targetState{key: targetKey{service: "db"}, again: true}, now, tc.first)
			if now[0].status != tc.want {
				t.Errorf("it is %s, want %s", now[0].status, tc.want)
			}
		})
	}
	if m := remember(nil); m.healthy(db, &instance{address: "10.0.0.2", port: 5432}, nil) {
		t.Error("without a snapshot something was healthy")
	}
}
