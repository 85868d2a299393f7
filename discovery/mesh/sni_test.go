// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

const uuid = "11111111-2222-3333-4444-555555555555.consul"

func TestParseSNI(t *testing.T) {
	for _, tc := range []struct {
		name string
		want SNI // zero: not one
	}{
		{"web.default.dc1.internal." + uuid, SNI{Service: "web", Namespace: "default", Datacenter: "dc1", TrustDomain: uuid}},
		{"v2.web.default.dc1.internal." + uuid, SNI{Subset: "v2", Service: "web", Namespace: "default", Datacenter: "dc1", TrustDomain: uuid}},
		{"web.ns1.ap1.dc1.internal-v1." + uuid, SNI{Service: "web", Namespace: "ns1", Partition: "ap1", Datacenter: "dc1", TrustDomain: uuid}},
		{"v2.web.ns1.ap1.dc1.internal-v1." + uuid, SNI{Subset: "v2", Service: "web", Namespace: "ns1", Partition: "ap1", Datacenter: "dc1", TrustDomain: uuid}},
		{"internal.default.dc1.internal." + uuid, SNI{Service: "internal", Namespace: "default", Datacenter: "dc1", TrustDomain: uuid}},
		{"web.default.dc1.internal.mesh.internal", SNI{Service: "web", Namespace: "default", Datacenter: "dc1", TrustDomain: "mesh.internal"}},
		{"web.default.dc1.internal", SNI{}},                       // no trust domain
		{"web.default.dc1.internal.", SNI{}},                      // an empty one
		{"web.default.internal." + uuid, SNI{}},                   // a label too few
		{"a.b.web.default.dc1.internal." + uuid, SNI{}},           // one too many
		{"web.default.dc1.internal-v1." + uuid, SNI{}},            // no partition
		{"web..dc1.internal." + uuid, SNI{}},                      // an empty label
		{"web.default.dc1.external." + uuid, SNI{}},               // through a gateway
		{"web.default.peer1.external." + uuid, SNI{}},             // of a peer
		{"web.mesh.internal", SNI{}},                              // a host name
		{"", SNI{}},                                               //
		{strings.Repeat("a", 250) + ".b.c.internal.d", SNI{}},     // longer than DNS allows
		{"0123456789abcdef0123456789abcdef.mesh.internal", SNI{}}, // meshproxy's own form
	} {
		got, ok := ParseSNI(tc.name)
		if ok != (tc.want != SNI{}) || got != tc.want {
			t.Errorf("ParseSNI(%q) = %+v, %v", tc.name, got, ok)
		}
		if ok && got.String() != tc.name {
			t.Errorf("%q comes back as %q", tc.name, got)
		}
	}
}

func FuzzParseSNI(f *testing.F) {
	for _, name := range []string{
		"web.default.dc1.internal." + uuid, "v2.web.ns1.ap1.dc1.internal-v1." + uuid, "internal.internal.internal.internal.internal",
		"....", "a.b.c.internal.", "internal-v1",
	} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		s, ok := ParseSNI(name)
		if !ok {
			if s != (SNI{}) {
				t.Errorf("%q is refused with %+v", name, s)
			}
			return
		}
		if s.String() != name {
			t.Errorf("%q comes back as %q", name, s)
		}
		for _, label := range []string{s.Service, s.Namespace, s.Datacenter} {
			if label == "" || strings.Contains(label, ".") {
				t.Errorf("%q has %+v", name, s)
			}
		}
	})
}

func TestIncoming(t *testing.T) {
	identity := func(path string) spiffeid.ID { return spiffeid.RequireFromString("spiffe://" + uuid + path) }
	web, api := identity("/ns/default/dc/dc1/svc/Web"), identity("/ns/default/dc/dc1/svc/api")
	lab := identity("/ap/lab/ns/team/dc/dc1/svc/job")
	in := BuildInput{
		Node: Node{Name: "a"},
		Workloads: []*Workload{
			{Name: Name{"", "web-1"}, Identity: web, MTLSPort: 21001},
			{Name: Name{"", "web-2"}, Identity: web},
			{Name: Name{"", "api"}, Identity: api, MTLSPort: 21002},
			{Name: Name{"", "job"}, Identity: lab},
			{Name: Name{"", "nobody"}},
		},
		Services: []*Service{
			// By its name it would come first.
			{Name: Name{"", "admin"}, Ports: []Port{{"", 90, ProtocolTCP}}, Endpoints: []*Endpoint{
				{Address: addr("10.0.0.1"), Ports: []uint16{9090}, Node: "a", Workload: Name{"", "web-1"}},
			}},
			{Name: Name{"", "web"}, Ports: []Port{{"", 80, ProtocolTCP}}, Endpoints: []*Endpoint{
				{Address: addr("10.0.0.1"), Ports: []uint16{8081}, Node: "a", Workload: Name{"", "web-1"}},
				{Address: addr("10.0.0.1"), Ports: []uint16{8082}, Node: "a", Workload: Name{"", "web-2"}},
				{Address: addr("10.0.0.9"), Ports: []uint16{8081}, Node: "b", Workload: Name{"", "web-1"}},
			}},
			{Name: Name{"", "api"}, Ports: []Port{{"", 80, ProtocolTCP}}, Endpoints: []*Endpoint{
				{Address: addr("127.0.0.1"), Ports: []uint16{8083}, Node: "a", Workload: Name{"", "api"}},
			}},
		},
	}
	s := Build(in)
	for name, want := range map[string]spiffeid.ID{
		"web.default.dc1.internal." + uuid:      web,
		"WEB.default.dc1.internal." + uuid:      web,
		"v2.web.default.dc1.internal." + uuid:   web,
		"api.default.dc1.internal." + uuid:      api,
		"job.team.lab.dc1.internal-v1." + uuid:  lab,
		"job.team.dc1.internal." + uuid:         {},
		"web.default.dc2.internal." + uuid:      {},
		"web.other.dc1.internal." + uuid:        {},
		"gone.default.dc1.internal." + uuid:     {},
		"web.default.dc1.internal.other.consul": {},
		"":                                      {},
	} {
		if got, ok := s.ServerName(name); got != want || ok == want.IsZero() {
			t.Errorf("%q stands for %v, %v", name, got, ok)
		}
	}
	places := func(id spiffeid.ID, port uint16) (list []string) {
		for _, target := range s.Incoming(id, port) {
			list = append(list, target.Service.String()+" "+target.Endpoint.AddrPort(target.PortIndex).String())
		}
		return list
	}
	for _, tc := range []struct {
		id   spiffeid.ID
		port uint16
		want []string
	}{
		{web, 20000, []string{"web 10.0.0.1:8081", "web 10.0.0.1:8082", "admin 10.0.0.1:9090"}},
		{web, 21001, []string{"web 10.0.0.1:8081", "admin 10.0.0.1:9090"}},
		{web, 21002, nil}, // api's own
		{api, 21002, []string{"api 127.0.0.1:8083"}},
		{lab, 20000, nil}, // no service
	} {
		if d := cmp.Diff(tc.want, places(tc.id, tc.port)); d != "" {
			t.Errorf("%s on %d (-want +got):\n%s", tc.id, tc.port, d)
		}
	}
	if id, ok := s.MTLSPort(21002); !ok || id != api {
		t.Error("port 21002 belongs to", id)
	}
	if _, ok := s.MTLSPort(0); ok {
		t.Error("port 0 belongs to somebody")
	}

	// A change of either side is seen.
	in.Previous = s
	in.Workloads = append(in.Workloads[:2:2], &Workload{Name: Name{"", "api"}, Identity: identity("/ns/default/dc/dc1/svc/api2")})
	next := Build(in)
	if _, ok := next.ServerName("api.default.dc1.internal." + uuid); ok {
		t.Error("an identity that is gone is still found")
	}
	if got := next.Incoming(identity("/ns/default/dc/dc1/svc/api2"), 20000); len(got) != 1 {
		t.Errorf("%d targets of the new identity", len(got))
	}
}
