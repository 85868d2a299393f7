// SPDX-License-Identifier: Apache-2.0

package consul_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/hashicorp/consul/api"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/meshproxy/meshproxy/discovery"
	"github.com/meshproxy/meshproxy/discovery/consul"
	"github.com/meshproxy/meshproxy/discovery/consulagent"
	"github.com/meshproxy/meshproxy/discovery/mesh"
	engine "github.com/meshproxy/meshproxy/nodeproxy/policy"
)

const enterpriseDomain = "11111111-2222-3333-4444-555555555555.consul"

// enterprise stands in for an agent with namespaces and partitions, which the
// community edition lacks. It has one service, and notes what it is asked.
type enterprise struct {
	namespace, partition string // of the service; empty: the community edition's
	intentions           []map[string]any

	registered chan api.AgentServiceRegistration // what the node registers

	mu    sync.Mutex
	asked map[string][]url.Values // by path
}

func (e *enterprise) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	e.mu.Lock()
	if e.asked == nil {
		e.asked = make(map[string][]url.Values)
	}
	e.asked[r.URL.Path] = append(e.asked[r.URL.Path], r.URL.Query())
	e.mu.Unlock()
	if r.Method == http.MethodPut {
		var row api.AgentServiceRegistration
		if err := json.NewDecoder(r.Body).Decode(&row); err != nil {
			panic(err) // hashicorp/consul/api wrote it
		}
		select {
		case e.registered <- row:
		case <-r.Context().Done():
		}
		return
	}
	const index = "7"
	if r.URL.Query().Get("index") == index {
		<-r.Context().Done() // nothing ever changes
		return
	}
	w.Header().Set("X-Consul-Index", index)
	w.Header().Set("X-Consul-KnownLeader", "true")
	w.Header().Set("X-Consul-LastContact", "0")
	w.Header().Set("X-Consul-Default-ACL-Policy", "allow")
	if err := json.NewEncoder(w).Encode(e.answer(r)); err != nil {
		panic(err) // texts and numbers
	}
}

func (e *enterprise) answer(r *http.Request) any {
	type object = map[string]any
	switch path := r.URL.Path; path {
	case "/v1/agent/self":
		return object{"Config": object{"Datacenter": "dc1", "NodeName": "n1", "Partition": e.partition}, "Member": object{"Addr": "127.0.0.1"}}
	case "/v1/agent/services":
		return object{"web": object{
			"ID": "web", "Service": "web", "Port": 8080, "Datacenter": "dc1", "Namespace": e.namespace, "Partition": e.partition,
		}}
	case "/v1/agent/connect/ca/roots":
		return object{"TrustDomain": enterpriseDomain}
	case "/v1/status/leader":
		return "127.0.0.1:8300"
	case "/v1/catalog/services":
		return object{"web": []string{}}
	case "/v1/connect/intentions/match":
		return object{r.URL.Query().Get("name"): e.intentions}
	case "/v1/discovery-chain/web":
		target := object{"ID": "t", "Service": "web", "Namespace": e.namespace, "Partition": e.partition, "Datacenter": "dc1"}
		return object{"Chain": object{
			"ServiceName": "web", "Namespace": e.namespace, "Partition": e.partition, "Datacenter": "dc1", "StartNode": "r",
			"Nodes":   object{"r": object{"Type": "resolver", "Resolver": object{"Target": "t"}}},
			"Targets": object{"t": target},
		}}
	}
	return []object{}
}

// follow is a source of that agent, once it knows everything.
func (e *enterprise) follow(t *testing.T, namespace, partition string, services ...consul.Service) *following {
	t.Helper()
	h := httptest.NewServer(e)
	t.Cleanup(h.Close)
	agent, err := consulagent.New(consulagent.Settings{Address: h.URL, Namespace: namespace, Partition: partition}, consul.MaxConnections)
	if err != nil {
		t.Fatal(err)
	}
	return start(t, consul.Options{
		Agent: agent, Namespace: namespace, Partition: partition, HBONEPort: 15008, Services: services,
		Node:     mesh.Node{Name: "n1", Address: netip.MustParseAddr("127.0.0.1")},
		Workload: mesh.Workload{Inbound: mesh.InboundStrict, Egress: mesh.EgressPassthrough},
	})
}

func hasWorkload(u discovery.Update, err error) bool { return err == nil && len(u.Workloads) == 1 }

// TestTenancyIsAsked: what configuration names is named in every question; the
// community edition, which refuses both, is not told of any.
func TestTenancyIsAsked(t *testing.T) {
	for _, tt := range []struct {
		name                 string
		server               *enterprise
		namespace, partition string // configured
	}{
		{"community edition", &enterprise{}, "", ""},
		{"community edition that names its only ones", &enterprise{namespace: "default", partition: "default"}, "", ""},
		{"both", &enterprise{namespace: "team", partition: "east"}, "team", "east"},
		{"the default ones, configured", &enterprise{namespace: "default", partition: "default"}, "default", "default"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			u := tt.server.follow(t, tt.namespace, tt.partition).until("the service", hasWorkload)
			path := "/ns/default/dc/dc1/svc/web"
			if tt.namespace == "team" {
				path = "/ap/east/ns/team/dc/dc1/svc/web"
			}
			if got := u.Workloads[0].Identity.Path(); got != path {
				t.Errorf("identity %s, want %s", got, path)
			}
			tt.server.mu.Lock()
			defer tt.server.mu.Unlock()
			for at, list := range tt.server.asked {
				namespace := tt.namespace
				if namespace != "" && (strings.HasSuffix(at, "/proxy-defaults") || strings.HasSuffix(at, "/mesh")) {
					namespace = "default" // where a partition has its only one
				}
				for _, q := range list {
					if q.Get("ns") != namespace || q.Get("partition") != tt.partition || q.Has("ns") != (namespace != "") {
						t.Errorf("%s is asked for with %v, want namespace %q, partition %q", at, q, namespace, tt.partition)
					}
				}
			}
		})
	}
}

// TestOwnNamespace: what configuration says about services is about those of the
// namespace that the agent is asked for, by configuration or by its token.
func TestOwnNamespace(t *testing.T) {
	const port, leftOut = 20001, "of sources.consul.services is left out"
	for _, tt := range []struct {
		name                string
		server              *enterprise
		configured, written string
		meant               bool
		registered          string // the namespace of what the node registers
	}{
		{"community edition", &enterprise{}, "", "", true, ""},
		{"community edition, default", &enterprise{}, "", "default", true, ""},
		{"configured", &enterprise{namespace: "team", partition: "east"}, "team", "", true, "team"},
		{"configured and written", &enterprise{namespace: "team", partition: "east"}, "team", "team", true, "team"},
		{"default, configured", &enterprise{namespace: "default", partition: "default"}, "default", "", true, "default"},
		{"the token's", &enterprise{namespace: "team", partition: "east"}, "", "", true, ""},
		{"the token's, written", &enterprise{namespace: "team", partition: "east"}, "", "team", true, ""},
		{"another than the token's", &enterprise{namespace: "team", partition: "east"}, "", "default", false, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			listen := netip.MustParseAddrPort("127.0.0.1:9191")
			s := consul.Service{
				Name: mesh.Name{Namespace: tt.written, Name: "web"}, Port: port,
				Upstreams: []consul.Upstream{{Listen: listen, Service: mesh.Name{Namespace: tt.written, Name: "web"}}},
			}
			shop := consul.Service{Name: mesh.Name{Namespace: tt.written, Name: "shop"}, Register: &consul.Registration{Port: 80}}
			tt.server.registered = make(chan api.AgentServiceRegistration, 8)
			u := tt.server.follow(t, tt.configured, "", s, shop).until("the service", hasWorkload)
			w := u.Workloads[0]
			if !tt.meant {
				if w.MTLSPort != 0 || len(w.Upstreams) != 0 || !strings.Contains(strings.Join(u.Warnings, "\n"), leftOut) {
					t.Errorf("workload %+v, warnings %q", w, u.Warnings)
				}
				return
			}
			want := []mesh.Upstream{{Listen: listen, Service: w.Name}}
			if w.MTLSPort != port || !slices.Equal(w.Upstreams, want) || strings.Contains(strings.Join(u.Warnings, "\n"), leftOut) {
				t.Errorf("workload %+v, warnings %q; want upstreams %v", w, u.Warnings, want)
			}
			if row := <-tt.server.registered; row.Name != "shop" || row.Namespace != tt.registered {
				t.Errorf("registered: %s in namespace %q, want %q", row.Name, row.Namespace, tt.registered)
			}
		})
	}
}

// TestIntentionsOfPartitions: a node in a partition heeds the intentions there,
// tells the sources of partitions apart, and denies where it does not know whom
// a denial means.
func TestIntentionsOfPartitions(t *testing.T) {
	type object = map[string]any
	ix := func(partition, name, group, action string, precedence int) object {
		return object{
			"SourcePartition": partition, "SourceNS": "default", "SourceName": name, "SourceSamenessGroup": group,
			"DestinationNS": "default", "DestinationName": "web", "Action": action, "Precedence": precedence,
		}
	}
	s := &enterprise{namespace: "default", partition: "east", intentions: []map[string]any{
		ix("east", "api", "", "deny", 9), ix("west", "db", "", "deny", 9), ix("", "cache", "", "deny", 9),
		ix("", "batch", "all", "deny", 9), ix("", "ops", "all", "allow", 9), ix("east", "ops", "", "deny", 8),
	}}
	u := s.follow(t, "", "").until("the service", hasWorkload)
	e := engine.Compile(mesh.PolicyDefaults{Default: mesh.ActionAllow}, u.Policies)
	td := spiffeid.RequireTrustDomainFromString(enterpriseDomain)
	for _, tt := range []struct {
		partition, service string
		allowed            bool
	}{
		{"east", "api", false},
		{"west", "api", true},
		{"", "api", true},
		{"west", "db", false},
		{"east", "db", true},
		{"", "db", true},
		{"east", "cache", false},
		{"west", "cache", true},
		{"east", "batch", false},
		{"west", "batch", false},
		{"", "batch", false},
		{"east", "ops", false},
		{"east", "other", true},
	} {
		path := fmt.Sprintf("/ns/default/dc/dc1/svc/%s", tt.service)
		if tt.partition != "" {
			path = "/ap/" + tt.partition + path
		}
		id, err := spiffeid.FromPath(td, path)
		if err != nil {
			t.Fatal(err)
		}
		got := e.Decide(engine.Request{
			Identity: id, Source: netip.MustParseAddrPort("10.1.2.3:40000"), Workload: mesh.ParseName("web"),
			Services: []mesh.Name{mesh.ParseName("web")}, Port: 8080,
		})
		if got.Allowed != tt.allowed {
			t.Errorf("%s is allowed: %t, by %s", path, got.Allowed, got.Policy)
		}
	}
	if text := strings.Join(u.Warnings, "\n"); !strings.Contains(text, "intention of default/ops of sameness group all for web is left out") &&
		!strings.Contains(text, "intention of ops of sameness group all for web is left out") {
		t.Errorf("warnings %q", u.Warnings)
	}
}
