// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

var (
	addr = netip.MustParseAddr
	ap   = netip.MustParseAddrPort
)

// testInput is a small mesh seen from node a.
func testInput() BuildInput {
	web := &Service{
		Name: Name{"default", "web"}, Source: "static",
		Ports:      []Port{{"http", 80, ProtocolHTTP}, {"admin", 9000, ProtocolTCP}},
		VirtualIPs: []netip.Addr{addr("240.240.0.1"), addr("2001:2::1")},
		Hostnames:  []string{"www.example.com"},
		Endpoints: []*Endpoint{
			{Address: addr("10.0.0.1"), Ports: []uint16{8080, 9001}, Node: "a", Workload: Name{"", "web"}},
			{Address: addr("10.0.0.2"), Ports: []uint16{8080, 0}, Node: "b", Workload: Name{"", "web"}},
		},
	}
	db := &Service{
		Name: Name{"data", "db"}, Source: "static",
		Ports:      []Port{{"", 5432, ProtocolTCP}},
		VirtualIPs: []netip.Addr{addr("240.240.0.2")},
		Endpoints:  []*Endpoint{{Address: addr("127.0.0.1"), Ports: []uint16{5432}, Node: "a", Workload: Name{"data", "db"}}},
	}
	return BuildInput{
		Version: 1, Node: Node{Name: "a"}, Domain: "mesh.internal",
		Sources:  []SourceState{{Name: "static", Ready: true}, {Name: "consul"}},
		Services: []*Service{web, db}, // not in order
		Workloads: []*Workload{
			{Name: Name{"default", "web"}, Source: "static", Upstreams: []Upstream{
				{Listen: ap("127.0.0.1:9191"), Service: Name{"data", "db"}},
				{Listen: ap("127.0.0.1:9192"), Service: Name{"", "gone"}},
				{Listen: ap("127.0.0.1:9193"), Service: Name{"", "web"}, Port: 9000},
			}},
			{Name: Name{"data", "db"}, Source: "static"},
		},
		Policies: []*Policy{{Name: Name{"default", "p"}, Source: "static"}},
		Defaults: PolicyDefaults{Default: ActionDeny},
	}
}

func TestDestination(t *testing.T) {
	s := Build(testInput())
	tests := []struct {
		name     string
		workload string
		dst      string
		service  string // empty: no destination
		index    int
		kind     DestinationKind
		endpoint string
	}{
		{"upstream", "web", "127.0.0.1:9191", "data/db", 0, DestinationUpstream, ""},
		{"upstream mapped", "web", "[::ffff:127.0.0.1]:9191", "data/db", 0, DestinationUpstream, ""},
		{"upstream with port", "web", "127.0.0.1:9193", "web", 1, DestinationUpstream, ""},
		{"upstream of another workload", "data/db", "127.0.0.1:9191", "", 0, 0, ""},
		{"upstream to no service", "web", "127.0.0.1:9192", "", 0, 0, ""},
		{"virtual IP", "other", "240.240.0.1:80", "web", 0, DestinationVirtualIP, ""},
		{"virtual IP second port", "other", "240.240.0.1:9000", "web", 1, DestinationVirtualIP, ""},
		{"virtual IPv6", "other", "[2001:2::1]:80", "web", 0, DestinationVirtualIP, ""},
		{"virtual IP unknown port", "other", "240.240.0.1:81", "web", -1, DestinationVirtualIP, ""},
		{"endpoint", "other", "10.0.0.2:8080", "web", 0, DestinationEndpoint, "10.0.0.2"},
		{"endpoint second port", "other", "10.0.0.1:9001", "web", 1, DestinationEndpoint, "10.0.0.1"},
		{"endpoint port not served", "other", "10.0.0.2:9001", "", 0, 0, ""},
		{"endpoint on loopback", "other", "127.0.0.1:5432", "", 0, 0, ""},
		{"unknown", "other", "192.0.2.1:80", "", 0, 0, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d, ok := s.Destination(ParseName(tt.workload), ap(tt.dst))
			if ok != (tt.service != "") {
				t.Fatalf("found %v: %+v", ok, d)
			}
			if !ok {
				return
			}
			if d.Service.String() != tt.service || d.PortIndex != tt.index || d.Kind != tt.kind {
				t.Errorf("got %s[%d] by %s", d.Service, d.PortIndex, d.Kind)
			}
			if (d.Endpoint != nil) != (tt.endpoint != "") || d.Endpoint != nil && d.Endpoint.Address != addr(tt.endpoint) {
				t.Errorf("endpoint %+v", d.Endpoint)
			}
		})
	}
}

func TestLocalEndpoints(t *testing.T) {
	in := testInput()
	canary := &Service{
		Name: Name{"default", "canary"}, Source: "consul", Ports: []Port{{"", 80, ProtocolTCP}},
		Endpoints: []*Endpoint{{Address: addr("10.0.0.1"), Ports: []uint16{8080}, Node: "a", Workload: Name{"", "web"}}},
	}
	in.Services = append(in.Services, canary)
	s := Build(in)
	got := s.LocalEndpoints(ap("10.0.0.1:8080"))
	if len(got) != 2 || got[0].Service.String() != "web" || got[1].Service != canary {
		t.Fatalf("got %+v; the service of the first source comes first", got)
	}
	if got[0].Workload != s.Workload(Name{"", "web"}) || got[0].Workload == nil {
		t.Errorf("workload %+v", got[0].Workload)
	}
	if got := s.LocalEndpoints(ap("127.0.0.1:5432")); len(got) != 1 || got[0].Workload == nil {
		t.Errorf("loopback endpoint: %+v", got)
	}
	n := 0
	for at, targets := range s.AllLocalEndpoints() {
		n++
		if !slices.Equal(targets, s.LocalEndpoints(at)) || len(targets) == 0 {
			t.Errorf("%s: all say %+v", at, targets)
		}
	}
	if n != 3 {
		t.Errorf("there are %d local addresses", n)
	}
	if got := s.LocalEndpoints(ap("10.0.0.2:8080")); got != nil {
		t.Errorf("endpoint of another node is local: %+v", got)
	}
	// A workload that changes is followed by the targets.
	in2 := s.Input()
	in2.Previous = s
	in2.Workloads = []*Workload{in2.Workloads[0], {Name: Name{"default", "web"}, Source: "static", Bypass: true}}
	s2 := Build(in2)
	if w := s2.LocalEndpoints(ap("10.0.0.1:8080"))[0].Workload; w == nil || !w.Bypass {
		t.Errorf("workload after change: %+v", w)
	}
	if w := s.LocalEndpoints(ap("10.0.0.1:8080"))[0].Workload; w.Bypass {
		t.Error("the old snapshot changed")
	}
}

func TestHost(t *testing.T) {
	s := Build(testInput())
	for host, want := range map[string]string{
		"web":                         "web",
		"web.mesh.internal":           "web",
		"web.default.mesh.internal":   "web",
		"db.data.mesh.internal":       "data/db",
		"www.example.com":             "web",
		"db":                          "",
		"db.mesh.internal":            "",
		"mesh.internal":               "",
		".mesh.internal":              "",
		"webmesh.internal":            "",
		"a.web.default.mesh.internal": "",
		"example.com":                 "",
		"":                            "",
	} {
		svc, ok := s.Host(host)
		if ok != (want != "") || ok && svc.String() != want {
			t.Errorf("Host(%q) = %v, %v; want %q", host, svc, ok, want)
		}
	}
}

func TestConflictsBecomeWarnings(t *testing.T) {
	in := testInput()
	in.Services = append(in.Services,
		&Service{Name: Name{"default", "web"}, Source: "consul"}, // duplicate
		&Service{
			Name: Name{"default", "aaa"}, Source: "consul", Ports: []Port{{"", 80, ProtocolTCP}},
			VirtualIPs: []netip.Addr{addr("240.240.0.1")}, Hostnames: []string{"www.example.com"},
			Endpoints: []*Endpoint{
				{Address: addr("10.0.0.2"), Ports: []uint16{8080}, Node: "c"},
				{Address: addr("10.0.0.9"), Ports: []uint16{1}},
				{Address: addr("10.0.0.9"), Ports: []uint16{1}, Weight: 3},
			},
		})
	s := Build(in)
	if d, _ := s.Destination(Name{}, ap("240.240.0.1:80")); d.Service.String() != "web" {
		t.Errorf("virtual IP went to %s of the later source", d.Service)
	}
	if d, _ := s.Destination(Name{}, ap("10.0.0.2:8080")); d.Service.String() != "web" {
		t.Errorf("endpoint went to %s of the later source", d.Service)
	}
	if svc, _ := s.Host("www.example.com"); svc.String() != "web" {
		t.Errorf("hostname went to %s", svc)
	}
	wantWarnings(t, s, "consul",
		`claims virtual IP 240.240.0.1, which service "web" has`,
		`claims hostname www.example.com`,
		`disagree about the node, workload, identity or transport of endpoint 10.0.0.2:8080`,
		`lists endpoint 10.0.0.9:1 twice`,
		`service "web" appears twice`)
	wantWarnings(t, s, "static", `upstream 127.0.0.1:9192 of workload "web" stands for service "gone", which no source has`)

	// Once the other service is gone, so are the warnings.
	clean := testInput()
	clean.Previous = s
	clean.Workloads[0].Upstreams = nil
	s = Build(clean)
	wantWarnings(t, s, "consul")
	wantWarnings(t, s, "static")
}

func wantWarnings(t *testing.T, s *Snapshot, source string, want ...string) {
	t.Helper()
	for _, state := range s.Sources() {
		if state.Name != source {
			continue
		}
		if len(state.Warnings) != len(want) {
			t.Errorf("%s: %d warnings, want %d: %q", source, len(state.Warnings), len(want), state.Warnings)
		}
		for _, w := range want {
			if !strings.Contains(strings.Join(state.Warnings, "\n"), w) {
				t.Errorf("%s: no warning %q in %q", source, w, state.Warnings)
			}
		}
	}
}

func TestWarningsAreBounded(t *testing.T) {
	in := BuildInput{Sources: []SourceState{{Name: "k"}}}
	for i := range 50 {
		e := &Endpoint{Address: addr("10.0.0.1"), Ports: []uint16{uint16(i + 1)}}
		f := *e
		in.Services = append(in.Services, &Service{
			Name: Name{Name: "s" + string(rune('A'+i))}, Source: "k", Ports: []Port{{Port: 1}}, Endpoints: []*Endpoint{e, &f},
		})
	}
	w := Build(in).Sources()[0].Warnings
	if len(w) != maxWarnings+1 || w[maxWarnings] != "and 30 more" {
		t.Errorf("got %d warnings, last %q", len(w), w[len(w)-1])
	}
}

func TestLookupsDoNotAllocate(t *testing.T) {
	in := testInput()
	in.Services[0].Endpoints[0].Identity = spiffeid.RequireFromString("spiffe://x/ns/default/sa/web")
	s := Build(in)
	upstream, vip, endpoint, none := ap("127.0.0.1:9191"), ap("[2001:2::1]:80"), ap("10.0.0.2:8080"), ap("192.0.2.1:1")
	local, web := ap("10.0.0.1:8080"), Name{"", "web"}
	n := testing.AllocsPerRun(100, func() {
		for _, dst := range []netip.AddrPort{upstream, vip, endpoint, none} {
			s.Destination(web, dst)
		}
		s.LocalEndpoints(local)
		s.Service(web)
		s.Workload(web)
		s.Host("db.data.mesh.internal")
		s.Host("www.example.com")
	})
	if n != 0 {
		t.Errorf("%v allocations per run", n)
	}
}

func TestServiceWithoutPorts(t *testing.T) {
	s := Build(BuildInput{Services: []*Service{{
		Name: Name{"", "web"}, Ports: []Port{{Port: 0}, {Name: "admin", Port: 9000}}, VirtualIPs: []netip.Addr{addr("240.0.0.1")},
		Endpoints: []*Endpoint{
			{Address: addr("10.0.0.1"), Ports: []uint16{8080, 9000}, Tunnel: ap("10.0.0.1:15008")},
			{Address: addr("10.0.0.2"), Ports: []uint16{21000, 0}, Tunnel: ap("10.0.0.2:21000")},
		},
	}}})
	for dst, want := range map[string]int{"240.0.0.1:80": 0, "240.0.0.1:8080": 0, "240.0.0.1:9000": 1, "10.0.0.1:8080": 0} {
		if d, ok := s.Destination(Name{}, ap(dst)); !ok || d.PortIndex != want {
			t.Errorf("%s is %+v, want port %d", dst, d, want)
		}
	}
	if d, ok := s.Destination(Name{}, ap("10.0.0.2:21000")); ok {
		t.Errorf("the address of a proxy is %+v", d)
	}
}
