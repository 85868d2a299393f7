// SPDX-License-Identifier: Apache-2.0

package static

import (
	"errors"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/meshproxy/meshproxy/discovery"
	"github.com/meshproxy/meshproxy/discovery/mesh"
	"github.com/meshproxy/meshproxy/discovery/yamlconf"
)

const fullNodes = `
nodes:
- {name: a, address: 10.0.0.1}
- {name: b, address: 10.0.0.2, tunnel: 192.0.2.2:25008, locality: {region: eu, zone: "2"}}
authorization: {default: deny, audit: true}
`

const fullMesh = `
services:
- name: web
  ports:
  - {name: http, port: 80, protocol: http}
  - {name: admin, port: 9000}
  hostnames: [www.example.com]
  virtualIPs: [10.96.0.1, "fd96::1"]
  balance: round_robin
  connectTimeout: 2s
  healthCheck: {http: /healthz, interval: 5s, unhealthy: 2}
  endpoints:
  - {node: b, ports: {http: 8080, admin: 9001}, weight: 3}
  - {node: a, address: 127.0.0.1, ports: {http: 8080, admin: 9001}, workload: web}
- name: db
  namespace: data
  ports: [{port: 5432}]
  endpoints:
  - {address: 10.0.0.2, port: 5432, workload: pg}
  - {address: 203.0.113.1, port: 5432, transport: none, locality: {region: us}}
  - {address: 203.0.113.2, port: 5432, identity: "spiffe://other.org/db"}
  - {address: 203.0.113.3, port: 5432, identity: "spiffe://other.org/db", transport: mtls, tunnel: 203.0.113.3:20000, sni: db.default.dc1.internal.other.org}
workloads:
- name: web
  match: [{unit: web.service}, {unit: "web@*.service"}]
- name: pg
  namespace: data
  node: b
  identity: spiffe://example.org/custom
  match: [{user: www-data}]
- name: shop
  match: [{cgroup: /shop.slice}, {cgroupPrefix: /system.slice/shop-}, {user: www-data}, {user: 1000}]
  netns: /run/netns/shop
  upstreams:
  - {listen: 127.0.0.1:9191, service: data/db, port: 5432}
  - {listen: "[::1]:9191", service: web}
  exclude: {outboundPorts: [25], outboundCIDRs: [169.254.0.0/16], inboundPorts: [22], inboundCIDRs: [10.9.0.1]}
  inbound: permissive
  inboundLocal: deny
  egress: registered-only
  onProxyDown: direct
  maxConnections: 100
  bypass: true
policies:
- name: shop-to-db
  namespace: data
  action: allow
  from:
  - {identity: "spiffe://example.org/ns/default/sa/shop"}
  - {namespace: data, trustDomain: example.org, cidr: 10.0.0.0/8}
  to: [{service: db, ports: [5432]}, {workload: default/web}]
- {name: audit-all, action: deny, audit: true}
`

func TestLoad(t *testing.T) {
	u := mustLoad(t, fullNodes, fullMesh)
	id := spiffeid.RequireFromString
	ap, addr := netip.MustParseAddrPort, netip.MustParseAddr
	a, b := mesh.Locality{Region: "eu", Zone: "1"}, mesh.Locality{Region: "eu", Zone: "2"}
	webName, pg := mesh.Name{Namespace: "default", Name: "web"}, mesh.Name{Namespace: "data", Name: "pg"}
	want := discovery.Update{
		Services: []*mesh.Service{
			{
				Name: mesh.Name{Namespace: "data", Name: "db"}, Ports: []mesh.Port{{Port: 5432, Protocol: "tcp"}}, Balance: mesh.BalanceLeastRequest,
				Endpoints: []*mesh.Endpoint{
					{Address: addr("10.0.0.2"), Ports: []uint16{5432}, Node: "b", Workload: pg, Transport: "hbone", Tunnel: ap("192.0.2.2:25008"), Identity: id("spiffe://example.org/custom"), Weight: 1, Locality: b},
					{Address: addr("203.0.113.1"), Ports: []uint16{5432}, Transport: "none", Weight: 1, Locality: mesh.Locality{Region: "us"}},
					{Address: addr("203.0.113.2"), Ports: []uint16{5432}, Transport: "hbone", Tunnel: ap("203.0.113.2:15008"), Identity: id("spiffe://other.org/db"), Weight: 1},
					{Address: addr("203.0.113.3"), Ports: []uint16{5432}, Transport: "mtls", Tunnel: ap("203.0.113.3:20000"), Identity: id("spiffe://other.org/db"), SNI: "db.default.dc1.internal.other.org", Weight: 1},
				},
			},
			{
				Name: webName, Ports: []mesh.Port{{Name: "http", Port: 80, Protocol: "http"}, {Name: "admin", Port: 9000, Protocol: "tcp"}},
				Hostnames: []string{"www.example.com"}, VirtualIPs: []netip.Addr{addr("10.96.0.1"), addr("fd96::1")},
				Balance: mesh.BalanceRoundRobin, ConnectTimeout: 2 * time.Second,
				HealthCheck: &mesh.HealthCheck{HTTPPath: "/healthz", Interval: 5 * time.Second, Timeout: 2 * time.Second, Healthy: 1, Unhealthy: 2},
				Endpoints: []*mesh.Endpoint{
					{Address: addr("10.0.0.2"), Ports: []uint16{8080, 9001}, Node: "b", Workload: webName, Transport: "hbone", Tunnel: ap("192.0.2.2:25008"), Identity: id("spiffe://example.org/ns/default/sa/web"), Weight: 3, Locality: b},
					{Address: addr("127.0.0.1"), Ports: []uint16{8080, 9001}, Node: "a", Workload: webName, Transport: "hbone", Tunnel: ap("10.0.0.1:15008"), Identity: id("spiffe://example.org/ns/default/sa/web"), Weight: 1, Locality: a},
				},
			},
		},
		Workloads: []*mesh.Workload{
			{
				Name: mesh.Name{Namespace: "default", Name: "shop"}, Identity: id("spiffe://example.org/ns/default/sa/shop"),
				Selectors: []mesh.Selector{{Kind: mesh.SelectCgroup, Value: "/shop.slice"}, {Kind: mesh.SelectCgroupPrefix, Value: "/system.slice/shop-"}, {Kind: mesh.SelectUser, Value: "33"}, {Kind: mesh.SelectUser, Value: "1000"}},
				NetNS:     "/run/netns/shop",
				Upstreams: []mesh.Upstream{
					{Listen: ap("127.0.0.1:9191"), Service: mesh.Name{Namespace: "data", Name: "db"}, Port: 5432},
					{Listen: ap("[::1]:9191"), Service: webName},
				},
				Exclude: mesh.Exclusions{
					OutboundPorts: []uint16{25}, OutboundCIDRs: []netip.Prefix{netip.MustParsePrefix("169.254.0.0/16")},
					InboundPorts: []uint16{22}, InboundCIDRs: []netip.Prefix{netip.MustParsePrefix("10.9.0.1/32")},
				},
				Inbound: mesh.InboundPermissive, InboundLocal: mesh.Deny, Egress: mesh.EgressRegisteredOnly, OnProxyDown: mesh.ProxyDownDirect,
				MaxConnections: 100, Bypass: true,
			},
			{
				Name: webName, Identity: id("spiffe://example.org/ns/default/sa/web"),
				Selectors: []mesh.Selector{{Kind: mesh.SelectUnit, Value: "web.service"}, {Kind: mesh.SelectUnit, Value: "web@*.service"}},
				Inbound:   mesh.InboundStrict, InboundLocal: mesh.Allow, Egress: mesh.EgressPassthrough, OnProxyDown: mesh.ProxyDownRefuse,
			},
		},
		Policies: []*mesh.Policy{
			{
				Name: mesh.Name{Namespace: "data", Name: "shop-to-db"}, Action: mesh.ActionAllow,
				From: []mesh.PolicySource{{Identity: id("spiffe://example.org/ns/default/sa/shop")}, {Namespace: "data", TrustDomain: "example.org", CIDR: netip.MustParsePrefix("10.0.0.0/8")}},
				To:   []mesh.PolicyTarget{{Service: mesh.Name{Namespace: "data", Name: "db"}, Ports: []uint16{5432}}, {Workload: webName}},
			},
			{Name: mesh.Name{Namespace: "default", Name: "audit-all"}, Action: mesh.ActionDeny, Audit: true},
		},
		Defaults: &mesh.PolicyDefaults{Default: mesh.ActionDeny, Audit: true},
	}
	if d := cmp.Diff(want, u, compareOptions); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
}

var compareOptions = cmp.Options{
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
	cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
	cmp.Comparer(func(a, b spiffeid.ID) bool { return a == b }),
}

func TestDefaults(t *testing.T) {
	u := mustLoad(t, `
services:
- {name: web, ports: [{port: 80}], endpoints: [{node: a, port: 8080}, {address: "fd00::1", port: 8080}]}
- {name: out, ports: [{port: 443}], endpoints: [{address: 203.0.113.1, port: 443}], healthCheck: {tcp: true, interval: 1s}}
`)
	out, web := u.Services[0], u.Services[1]
	for _, e := range web.Endpoints {
		if e.Node != "a" || e.Workload.Name != "web" || e.Transport != mesh.TransportHBONE || e.Identity.Path() != "/ns/default/sa/web" || e.Tunnel.String() != "10.0.0.1:15008" {
			t.Errorf("endpoint on this node, by name or address: %+v", e)
		}
	}
	if e := out.Endpoints[0]; e.Transport != mesh.TransportNone || !e.Identity.IsZero() || e.Tunnel.IsValid() {
		t.Errorf("endpoint outside of the mesh: %+v", e)
	}
	if c := out.HealthCheck; c.Timeout != time.Second || c.Healthy != 1 || c.Unhealthy != 3 || c.HTTPPath != "" {
		t.Errorf("health check %+v", c)
	}
	if u.Defaults != nil {
		t.Errorf("defaults %+v", u.Defaults)
	}
	if len(u.Warnings) != 2 || !strings.Contains(u.Warnings[0], `workload "web" of this endpoint is not one of this node`) {
		t.Errorf("warnings %q", u.Warnings)
	}
}

func TestPartialFile(t *testing.T) {
	opts := testOptions(t, "node: {name: a}\nlog: {level: debug}\nworkloads: [{name: w, match: [{user: 7}]}]\n", "services: []")
	if _, err := Load(opts); err == nil || !strings.Contains(err.Error(), `unknown key "log"`) {
		t.Errorf("a mesh file with foreign keys: %v", err)
	}
	opts.Files[0].Partial = true
	u, err := Load(opts)
	if err != nil || len(u.Workloads) != 1 {
		t.Errorf("%v, %+v", err, u.Workloads)
	}
}

func TestUnreadableFiles(t *testing.T) {
	opts := testOptions(t, "services: [{}]")
	dir := filepath.Dir(opts.Files[0].Path)
	opts.Files = append(opts.Files, File{Path: dir + "/gone.yaml"}, File{Path: dir})
	_, err := Load(opts)
	for _, want := range []string{"gone.yaml: the file does not exist", dir + ": not a regular file", `"name" is missing`} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("no %q in %v", want, err)
		}
	}
	var all yamlconf.Problems
	if !errors.As(err, &all) || !errors.Is(err, yamlconf.ErrInvalid) {
		t.Errorf("%T", err)
	}
	if _, err := Load(Options{}); !errors.Is(err, errNoFiles) {
		t.Error(err)
	}
}

func FuzzLoad(f *testing.F) {
	f.Add(fullNodes + fullMesh[1:])
	f.Add("services: &s [*s]\nworkloads: *s\n")
	f.Add("services: [{name: a, ports: [{}], endpoints: [{port: 1}]}]")
	opts := Options{Node: mesh.Node{Name: "a"}, LookupUser: func(string) (string, error) { return "1", nil }}.withDefaults()
	f.Fuzz(func(t *testing.T, s string) {
		u, err := decode(opts, []content{{File: File{Path: "f"}, data: []byte(s)}})
		if err != nil {
			if !errors.Is(err, yamlconf.ErrInvalid) {
				t.Error(err)
			}
			return
		}
		mesh.Build(mesh.BuildInput{Services: u.Services, Workloads: u.Workloads, Policies: u.Policies})
	})
}
