// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// TestBuildIncremental makes random changes and checks that a snapshot built
// on its predecessor answers as one built from nothing, and that predecessors
// stay as they were.
func TestBuildIncremental(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	in := BuildInput{Node: Node{Name: "n0"}, Domain: "m", Sources: []SourceState{{Name: "s0"}, {Name: "s1"}}}
	services := map[Name]*Service{}
	var prev *Snapshot
	var prevAnswers []string
	for step := range 400 {
		for range 1 + r.IntN(3) {
			svc := randomService(r)
			switch old := services[svc.Name]; {
			case r.IntN(4) == 0:
				delete(services, svc.Name)
			case old != nil && r.IntN(2) == 0: // change endpoints only
				c := *old
				c.Endpoints = randomEndpoints(r, len(c.Ports))
				services[svc.Name] = ShareService(old, &c)
			default:
				services[svc.Name] = svc
			}
		}
		if r.IntN(5) == 0 {
			in.Workloads = randomWorkloads(r)
		}
		in.Services = in.Services[:0:0]
		for _, s := range services {
			in.Services = append(in.Services, s) // in random order
		}
		in.Previous, in.Version = nil, uint64(step)
		fresh := Build(in)
		in.Previous = prev
		next := Build(in)
		if d := cmp.Diff(answers(fresh), answers(next)); d != "" {
			t.Fatalf("step %d: incremental differs (-fresh +incremental):\n%s", step, d)
		}
		if prev != nil && !slices.Equal(answers(prev), prevAnswers) {
			t.Fatalf("step %d: the previous snapshot changed", step)
		}
		prev, prevAnswers = next, answers(next)
	}
}

// answers are all lookups over the small space that the random data is from.
func answers(s *Snapshot) []string {
	out := []string{fmt.Sprint(s.EndpointCount(), len(s.Services()), s.Sources())}
	for i := range 8 {
		for port := range uint16(6) {
			dst := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), port)
			d, ok := s.Destination(Name{Name: "w0"}, dst)
			out = append(out, fmt.Sprintf("%v: %v %p %d %p %v", dst, ok, d.Service, d.PortIndex, d.Endpoint, d.Kind))
			for _, l := range s.LocalEndpoints(dst) {
				out = append(out, fmt.Sprintf("local %p %d %p %p", l.Service, l.PortIndex, l.Endpoint, l.Workload))
			}
		}
		svc, _ := s.Host(fmt.Sprintf("h%d", i))
		out = append(out, fmt.Sprintf("host %p service %p", svc, s.Service(Name{Name: fmt.Sprintf("svc%d", i)})))
	}
	return out
}

func randomService(r *rand.Rand) *Service {
	s := &Service{
		Name:   Name{DefaultNamespace, fmt.Sprintf("svc%d", r.IntN(8))},
		Source: fmt.Sprintf("s%d", r.IntN(2)),
	}
	for i := range 1 + r.IntN(2) {
		s.Ports = append(s.Ports, Port{Port: uint16(1 + i + r.IntN(2))})
	}
	if r.IntN(2) == 0 {
		s.VirtualIPs = []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, byte(4 + r.IntN(4))})}
	}
	if r.IntN(2) == 0 {
		s.Hostnames = []string{fmt.Sprintf("h%d", r.IntN(8))}
	}
	s.Endpoints = randomEndpoints(r, len(s.Ports))
	return s
}

func randomEndpoints(r *rand.Rand, ports int) []*Endpoint {
	var out []*Endpoint
	for range r.IntN(4) {
		e := &Endpoint{Address: netip.AddrFrom4([4]byte{10, 0, 0, byte(r.IntN(4))}), Node: fmt.Sprintf("n%d", r.IntN(2)), Workload: Name{Name: "w0"}}
		for range ports {
			e.Ports = append(e.Ports, uint16(r.IntN(6)))
		}
		// One address and port at most once: which of two claims of one
		// service wins depends on the way there.
		if !slices.ContainsFunc(out, func(o *Endpoint) bool { return overlap(o, e) }) && !overlap(&Endpoint{Address: e.Address}, e) {
			out = append(out, e)
		}
	}
	slices.SortFunc(out, CompareEndpoints)
	return out
}

func overlap(a, b *Endpoint) bool {
	return a.Address == b.Address && slices.ContainsFunc(a.Ports, func(p uint16) bool { return slices.Contains(b.Ports, p) })
}

func randomWorkloads(r *rand.Rand) []*Workload {
	w := &Workload{Name: Name{DefaultNamespace, fmt.Sprintf("w%d", r.IntN(2))}, Source: "s0"}
	w.Upstreams = []Upstream{{
		Listen:  netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(r.IntN(8))}), uint16(r.IntN(6))),
		Service: Name{Name: fmt.Sprintf("svc%d", r.IntN(8))},
	}}
	return []*Workload{w}
}

func TestDiff(t *testing.T) {
	in := testInput()
	old := Build(in)
	if c := Diff(nil, old); len(c.Services) != 2 || len(c.Workloads) != 2 || len(c.Policies) != 1 || !c.Defaults {
		t.Errorf("from nothing: %+v", c)
	}
	next := testInput() // all pointers differ, the content of two things does
	next.Services[0].Endpoints[1].Health = HealthUnhealthy
	next.Policies = nil
	for i := range next.Services {
		next.Services[i] = ShareService(old.Service(next.Services[i].Name), next.Services[i])
	}
	for i := range next.Workloads {
		next.Workloads[i] = ShareWorkload(old.Workload(next.Workloads[i].Name), next.Workloads[i])
	}
	next.Previous = old
	now := Build(next)
	want := Changes{Services: []Name{{"default", "web"}}, Policies: []Name{{"default", "p"}}}
	if d := cmp.Diff(want, Diff(old, now)); d != "" {
		t.Error(d)
	}
	if now.Service(Name{"", "web"}).Endpoints[0] != old.Service(Name{"", "web"}).Endpoints[0] {
		t.Error("an unchanged endpoint is not shared")
	}
	if !Diff(now, now).Empty() {
		t.Error("a snapshot differs from itself")
	}
}

func TestJSONRoundTrip(t *testing.T) {
	in := testInput()
	in.Built = time.Unix(1700000000, 0).UTC()
	in.Node.TrustDomain = spiffeid.RequireTrustDomainFromString("example.org")
	in.Services[0].HealthCheck = &HealthCheck{HTTPPath: "/", Interval: time.Second}
	in.Services[0].Endpoints[0].Identity = spiffeid.RequireFromString("spiffe://example.org/ns/default/sa/web")
	in.Services[0].Endpoints[0].Health = HealthDraining
	in.Workloads[0].Selectors = []Selector{{SelectUnit, "web.service"}}
	in.Policies[0].From = []PolicySource{{CIDR: netip.MustParsePrefix("10.0.0.0/8")}}
	s := Build(in)
	b, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	var back BuildInput
	if err := json.Unmarshal(b, &back); err != nil {
		t.Fatal(err)
	}
	opts := cmp.Options{
		cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
		cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }),
		cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
		cmp.Comparer(func(a, b spiffeid.ID) bool { return a == b }),
		cmp.Comparer(func(a, b spiffeid.TrustDomain) bool { return a == b }),
		cmpopts.IgnoreFields(BuildInput{}, "Previous"),
	}
	if d := cmp.Diff(s.Input(), back, opts); d != "" {
		t.Errorf("-written +read:\n%s", d)
	}
}

// BenchmarkBuildOneEndpoint changes one endpoint of 100 000.
func BenchmarkBuildOneEndpoint(b *testing.B) {
	for _, shape := range []struct{ services, endpoints int }{{1, 100000}, {1000, 100}, {10000, 10}, {100000, 1}} {
		b.Run(fmt.Sprintf("%dx%d", shape.services, shape.endpoints), func(b *testing.B) {
			in := bigInput(shape.services, shape.endpoints)
			s := Build(in)
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				list := slices.Clone(s.Services())
				at := (i * 7919) % len(list)
				svc := *list[at]
				svc.Endpoints = slices.Clone(svc.Endpoints)
				ep := *svc.Endpoints[i%len(svc.Endpoints)]
				ep.Health ^= HealthUnhealthy
				svc.Endpoints[i%len(svc.Endpoints)] = &ep
				list[at] = &svc
				in.Services, in.Previous = list, s
				s = Build(in)
			}
		})
	}
}

func BenchmarkBuildFresh(b *testing.B) {
	in := bigInput(10000, 10)
	b.ReportAllocs()
	for b.Loop() {
		Build(in)
	}
}

func BenchmarkDestination(b *testing.B) {
	s := Build(bigInput(10000, 10))
	dst := netip.AddrPortFrom(s.Services()[77].Endpoints[0].Address, 8080)
	vip := netip.AddrPortFrom(s.Services()[77].VirtualIPs[0], 80)
	w := Name{"default", "w"}
	b.Run("endpoint", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			s.Destination(w, dst)
		}
	})
	b.Run("virtualIP", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			s.Destination(w, vip)
		}
	})
}

func bigInput(services, endpoints int) BuildInput {
	in := BuildInput{Node: Node{Name: "n0"}, Sources: []SourceState{{Name: "s"}}}
	n := uint32(0)
	for i := range services {
		s := &Service{
			Name: Name{"default", fmt.Sprintf("svc%06d", i)}, Source: "s", Ports: []Port{{Port: 80}},
			VirtualIPs: []netip.Addr{netip.AddrFrom4([4]byte{240, byte(i >> 16), byte(i >> 8), byte(i)})},
		}
		for range endpoints {
			n++
			s.Endpoints = append(s.Endpoints, &Endpoint{
				Address: netip.AddrFrom4([4]byte{10, byte(n >> 16), byte(n >> 8), byte(n)}), Ports: []uint16{8080}, Node: fmt.Sprintf("n%d", n%1000),
			})
		}
		in.Services = append(in.Services, s)
	}
	return in
}
