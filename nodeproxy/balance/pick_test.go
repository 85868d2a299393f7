// SPDX-License-Identifier: Apache-2.0

package balance

import (
	"math"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/meshproxy/meshproxy/discovery/mesh"
)

// shares picks n times, with each connection closed at once, and returns how
// often each endpoint was chosen.
func shares(t *testing.T, b *Balancer, s *mesh.Service, n int) []int {
	t.Helper()
	count := make([]int, len(s.Endpoints))
	for range n {
		p := mustPick(t, b, s)
		count[slices.Index(s.Endpoints, p.Endpoint)]++
		b.Done(p, OutcomeOK)
	}
	return count
}

func TestSharesFollowWeights(t *testing.T) {
	const n = 20000
	for _, policy := range []mesh.Balance{mesh.BalanceLeastRequest, mesh.BalanceRandom, mesh.BalanceRoundRobin, ""} {
		for _, weights := range [][]uint32{{1, 1, 1}, {0, 0, 0, 0}, {1, 2, 3}, {5, 1}, {10000, 1, 1}, {1, 1, 1, 97}} {
			s := weighted(policy, weights...)
			var total float64
			for _, w := range weights {
				total += float64(max(1, w))
			}
			for i, got := range shares(t, seeded(), s, n) {
				p := float64(max(1, weights[i])) / total
				// Five standard deviations of a binomial distribution; the
				// seed is fixed, so this never flickers.
				tolerance := 5 * math.Sqrt(n*p*(1-p))
				if policy == mesh.BalanceLeastRequest || policy == "" {
					// The second choice breaks no tie while nothing is in
					// flight, so the share is that of the first.
					tolerance *= 1.5
				}
				if math.Abs(float64(got)-n*p) > tolerance {
					t.Errorf("%q %v: endpoint %d got %d of %d, want %.0f±%.0f", policy, weights, i, got, n, n*p, tolerance)
				}
			}
		}
	}
}

func TestRoundRobinIsExact(t *testing.T) {
	for _, weights := range [][]uint32{{1, 1, 1}, {1, 2, 3}, {4, 1, 1}, {7, 5}} {
		var total int
		for _, w := range weights {
			total += int(w)
		}
		s, b := weighted(mesh.BalanceRoundRobin, weights...), seeded()
		for round := range 5 {
			for i, got := range shares(t, b, s, total) {
				if got != int(weights[i]) {
					t.Errorf("%v round %d: endpoint %d got %d", weights, round, i, got)
				}
			}
		}
	}
	// The heavy one does not come in one run.
	s, b := weighted(mesh.BalanceRoundRobin, 5, 5), seeded()
	s.Endpoints[0].Weight, s.Endpoints[1].Weight = 6, 4
	run, longest := 0, 0
	var last *mesh.Endpoint
	for range 10 {
		p := mustPick(t, b, s)
		if p.Endpoint != last {
			run = 0
		}
		run++
		longest, last = max(longest, run), p.Endpoint
	}
	if longest > 3 {
		t.Errorf("one of two endpoints came %d times in a row", longest)
	}
}

// TestLeastRequestEvensOut keeps all connections open: the most loaded of 100
// endpoints must be far below what chance alone would make it.
func TestLeastRequestEvensOut(t *testing.T) {
	const endpoints, connections = 100, 10000
	spread := func(policy mesh.Balance) int64 {
		b, s := seeded(), weighted(policy, make([]uint32, endpoints)...)
		for range connections {
			mustPick(t, b, s)
		}
		var most int64
		for _, e := range b.Summary(s).Endpoints {
			most = max(most, e.InFlight)
		}
		return most - connections/endpoints
	}
	two, one := spread(mesh.BalanceLeastRequest), spread(mesh.BalanceRandom)
	if two > 4 || one < 15 {
		t.Errorf("most loaded above the mean: %d with two choices (want ≤ 4), %d with one (want ≥ 15)", two, one)
	}
}

func TestLeastRequestByWeight(t *testing.T) {
	b, s := seeded(), weighted(mesh.BalanceLeastRequest, 1, 3)
	for range 4000 {
		mustPick(t, b, s)
	}
	for i, e := range b.Summary(s).Endpoints {
		if want := []int64{1000, 3000}[i]; e.InFlight < want-20 || e.InFlight > want+20 {
			t.Errorf("endpoint %d has %d connections, want %d", i, e.InFlight, want)
		}
	}
}

func TestLeastRequestAvoidsTheBusy(t *testing.T) {
	b, s := seeded(), weighted(mesh.BalanceLeastRequest, 1, 1)
	for range 10 {
		if _, ok := b.Hold(s, 0, s.Endpoints[0]); !ok {
			t.Fatal("cannot hold")
		}
	}
	for range 10 {
		if p := mustPick(t, b, s); p.Endpoint != s.Endpoints[1] {
			t.Fatal("the busy endpoint was chosen")
		}
	}
}

func TestLocality(t *testing.T) {
	node, zone, region, far, unknown := endpointAt("node", 1), endpointAt("zone", 1), endpointAt("region", 1), endpointAt("far", 1), endpointAt("unknown", 1)
	with := func(e *mesh.Endpoint, h mesh.Health) *mesh.Endpoint {
		c := *e
		c.Health = h
		return &c
	}
	tests := []struct {
		name      string
		endpoints []*mesh.Endpoint
		ejected   []*mesh.Endpoint
		want      []*mesh.Endpoint
	}{
		{"this node", []*mesh.Endpoint{far, region, zone, node}, nil, []*mesh.Endpoint{node}},
		{"zone", []*mesh.Endpoint{far, region, zone}, nil, []*mesh.Endpoint{zone}},
		{"region", []*mesh.Endpoint{far, unknown, region}, nil, []*mesh.Endpoint{region}},
		{"anywhere", []*mesh.Endpoint{far, unknown}, nil, []*mesh.Endpoint{far, unknown}},
		{"spill when unhealthy", []*mesh.Endpoint{with(node, mesh.HealthUnhealthy), zone}, nil, []*mesh.Endpoint{zone}},
		{"spill when ejected", []*mesh.Endpoint{node, zone, far}, []*mesh.Endpoint{node}, []*mesh.Endpoint{zone}},
		{"spill twice", []*mesh.Endpoint{node, zone, far, unknown}, []*mesh.Endpoint{node, zone}, []*mesh.Endpoint{far, unknown}},
		{"draining is last", []*mesh.Endpoint{with(node, mesh.HealthDraining), far}, nil, []*mesh.Endpoint{far}},
		{"draining before panic", []*mesh.Endpoint{with(node, mesh.HealthDraining), far}, []*mesh.Endpoint{far}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b, s := seeded(), serviceOf("", tt.endpoints...)
			for _, e := range tt.ejected {
				fail(b, s, e, DefaultFailures)
			}
			if tt.want == nil {
				tt.want = s.Endpoints[:1]
			}
			seen := make(map[*mesh.Endpoint]bool)
			for range 100 {
				p := mustPick(t, b, s)
				seen[p.Endpoint] = true
				if !slices.Contains(tt.want, p.Endpoint) || p.Panic {
					t.Fatalf("picked %v on %q, panic %v", p.Endpoint.Address, p.Endpoint.Node, p.Panic)
				}
				b.Done(p, OutcomeOK)
			}
			if len(seen) != len(tt.want) {
				t.Errorf("%d of %d endpoints were picked", len(seen), len(tt.want))
			}
		})
	}
}

func TestNodeWithoutLocality(t *testing.T) {
	b := New(Options{Node: mesh.Node{Name: "n1"}})
	s := serviceOf(mesh.BalanceRoundRobin, endpointAt("unknown", 1), endpointAt("far", 1))
	if got := shares(t, b, s, 10); got[0] != 5 {
		t.Errorf("shares %v; where nothing is known, nothing is near", got)
	}
}

func TestNothingToPick(t *testing.T) {
	b := seeded()
	sick := endpointAt("node", 1)
	sick.Health = mesh.HealthUnhealthy
	elsewhere := endpointAt("node", 2)
	elsewhere.Ports = []uint16{0}
	for name, s := range map[string]*mesh.Service{
		"no endpoints":       serviceOf(""),
		"unhealthy only":     serviceOf("", sick),
		"port is not served": serviceOf("", elsewhere),
	} {
		if p, ok := b.Pick(s, 0, nil); ok {
			t.Errorf("%s: picked %+v", name, p.Endpoint)
		}
	}
	good := serviceOf("", endpointAt("node", 3))
	for _, port := range []int{-1, 1, 100} {
		if _, ok := b.Pick(good, port, nil); ok {
			t.Errorf("picked for port %d", port)
		}
	}
	b.Done(Picked{}, OutcomeConnectFailed) // as a caller's zero value does
	b.Connected(Picked{})
}

func TestTriedIsNotPickedAgain(t *testing.T) {
	for _, policy := range []mesh.Balance{mesh.BalanceLeastRequest, mesh.BalanceRandom, mesh.BalanceRoundRobin} {
		b, s := seeded(), weighted(policy, 1, 1000, 1, 1)
		var tried []*mesh.Endpoint
		for range s.Endpoints {
			p := mustPick(t, b, s, tried...)
			if slices.Contains(tried, p.Endpoint) {
				t.Fatalf("%s: picked again", policy)
			}
			tried = append(tried, p.Endpoint)
		}
		if _, ok := b.Pick(s, 0, tried); ok {
			t.Errorf("%s: picked with all tried", policy)
		}
	}
}

func TestStateSurvivesSnapshots(t *testing.T) {
	b, s := seeded(), weighted("", 1, 1)
	p := mustPick(t, b, s)
	busy := slices.Index(s.Endpoints, p.Endpoint)
	// The same endpoints, as a source says them anew.
	next := weighted("", 1, 1)
	b.Update(mesh.Build(mesh.BuildInput{Services: []*mesh.Service{next}}))
	if q := mustPick(t, b, next); q.Endpoint != next.Endpoints[1-busy] {
		t.Error("connections in flight are forgotten with the snapshot")
	}
	b.Done(p, OutcomeOK)
	if got := b.Summary(next).Endpoints[busy].InFlight; got != 0 {
		t.Errorf("%d in flight after the end", got)
	}
	if _, ok := b.groups.Load(s); ok {
		t.Error("the old service is remembered")
	}
}

func TestLoopbackAddressesOfNodesDiffer(t *testing.T) {
	a, z := endpointAt("node", 1), endpointAt("zone", 1)
	a.Address, z.Address = mustAddr("127.0.0.1"), mustAddr("127.0.0.1")
	b, s := seeded(), serviceOf("", a, z)
	fail(b, s, a, DefaultFailures)
	if p := mustPick(t, b, s); p.Endpoint != z || p.Panic {
		t.Error("another node's loopback address shares this node's failures")
	}
}

func TestPickDoesNotAllocate(t *testing.T) {
	for _, policy := range []mesh.Balance{mesh.BalanceLeastRequest, mesh.BalanceRandom, mesh.BalanceRoundRobin} {
		b, s := New(Options{Node: here}), weighted(policy, 1, 2, 3, 4)
		if n := testing.AllocsPerRun(100, func() {
			p, _ := b.Pick(s, 0, nil)
			tried := [1]*mesh.Endpoint{p.Endpoint}
			q, _ := b.Pick(s, 0, tried[:])
			h, _ := b.Hold(s, 0, s.Endpoints[0])
			for _, x := range []Picked{p, q, h} {
				b.Connected(x)
				b.Done(x, OutcomeOK)
			}
		}); n != 0 {
			t.Errorf("%s: %v allocations", policy, n)
		}
	}
}

// TestConcurrentUse is for the race detector; at the end nothing is in flight.
func TestConcurrentUse(t *testing.T) {
	b := New(Options{Node: here, Ejection: time.Microsecond})
	services := []*mesh.Service{weighted("", 1, 2, 3), weighted(mesh.BalanceRoundRobin, 1, 1)}
	services[1].Name = mesh.ParseName("other")
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := range 2000 {
				s := services[i%2]
				p, ok := b.Pick(s, 0, nil)
				if !ok {
					t.Error("no endpoint")
					return
				}
				if (i+w)%3 == 0 {
					b.Done(p, OutcomeConnectFailed)
					continue
				}
				b.Connected(p)
				b.Done(p, OutcomeOK)
				if i%100 == 0 {
					b.Summary(s)
					b.Update(mesh.Build(mesh.BuildInput{Services: services[:1+w%2]}))
				}
			}
		})
	}
	wg.Wait()
	for _, s := range services {
		for _, e := range b.Summary(s).Endpoints {
			if e.InFlight != 0 {
				t.Errorf("%d in flight", e.InFlight)
			}
		}
	}
}

func BenchmarkPick(b *testing.B) {
	for _, policy := range []mesh.Balance{mesh.BalanceLeastRequest, mesh.BalanceRoundRobin, mesh.BalanceRandom} {
		b.Run(string(policy), func(b *testing.B) {
			bal, s := New(Options{Node: here}), weighted(policy, make([]uint32, 1000)...)
			b.ReportAllocs()
			for b.Loop() {
				p, _ := bal.Pick(s, 0, nil)
				bal.Done(p, OutcomeOK)
			}
		})
	}
}
