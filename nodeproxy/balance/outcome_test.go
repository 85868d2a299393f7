// SPDX-License-Identifier: Apache-2.0

package balance

import (
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/meshproxy/meshproxy/discovery/mesh"
)

func mustAddr(s string) netip.Addr { return netip.MustParseAddr(s) }

// ejected returns which of the service's endpoints are out.
func ejected(b *Balancer, s *mesh.Service) []bool {
	var out []bool
	for _, e := range b.Summary(s).Endpoints {
		out = append(out, e.EjectedFor > 0)
	}
	return out
}

func count(list []bool) (n int) {
	for _, x := range list {
		if x {
			n++
		}
	}
	return n
}

func TestEjection(t *testing.T) {
	type event struct {
		what string // fail, ok, unknown, wait
		wait time.Duration
	}
	failed, ok, unknown := event{what: "fail"}, event{what: "ok"}, event{what: "unknown"}
	wait := func(d time.Duration) event { return event{"wait", d} }
	tests := []struct {
		name   string
		events []event
		left   time.Duration // of the ejection; 0: not ejected
	}{
		{"two are not enough", []event{failed, failed}, 0},
		{"three in a row", []event{failed, failed, failed}, 10 * time.Second},
		{"a success in between", []event{failed, failed, ok, failed, failed}, 0},
		{"unknown says nothing", []event{failed, failed, unknown, failed}, 10 * time.Second},
		{"it ends", []event{failed, failed, failed, wait(10 * time.Second)}, 0},
		{"further failures do not extend it", []event{failed, failed, failed, wait(time.Second), failed, failed, failed, failed}, 9 * time.Second},
		{"on probation afterwards", []event{failed, failed, failed, wait(10 * time.Second), failed}, 20 * time.Second},
		{"probation is over with a success", []event{failed, failed, failed, wait(10 * time.Second), ok, failed, failed}, 0},
		{"but the next one is longer", []event{failed, failed, failed, wait(10 * time.Second), ok, failed, failed, failed}, 20 * time.Second},
		{"a success ends it", []event{failed, failed, failed, wait(time.Second), ok}, 0},
		{
			"exponential up to the limit",
			[]event{
				failed, failed, failed, wait(10 * time.Second), failed, wait(20 * time.Second), failed, wait(40 * time.Second),
				failed, wait(80 * time.Second), failed, wait(160 * time.Second), failed, wait(300 * time.Second), failed,
			},
			300 * time.Second,
		},
		{"forgotten when good for long", []event{failed, failed, failed, wait(10 * time.Second), ok, wait(301 * time.Second), failed, failed, failed}, 10 * time.Second},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b, s := seeded(), weighted("", 1, 1)
				e := s.Endpoints[0]
				for _, ev := range tt.events {
					if ev.what == "wait" {
						time.Sleep(ev.wait)
						continue
					}
					p, held := b.Hold(s, 0, e)
					if !held {
						t.Fatal("cannot hold")
					}
					switch ev.what {
					case "fail":
						b.Done(p, OutcomeConnectFailed)
					case "unknown":
						b.Done(p, OutcomeUnknown)
					case "ok":
						b.Connected(p)
						b.Done(p, OutcomeOK)
					}
				}
				if left := max(0, b.Summary(s).Endpoints[0].EjectedFor); left != tt.left {
					t.Errorf("ejected for %v, want %v", left, tt.left)
				}
				if ejected(b, s)[1] {
					t.Error("the other endpoint is ejected")
				}
			})
		})
	}
}

func TestEjectionIsBounded(t *testing.T) {
	for _, tt := range []struct{ endpoints, percent, want int }{
		{1, 0, 0},    // the only one never
		{2, 0, 1},    // 50 %
		{3, 0, 1},    // 50 % rounded down
		{10, 0, 5},   //
		{10, 10, 1},  //
		{3, 10, 1},   // always one of several
		{4, 100, 3},  // always one left
		{1, 100, 0},  //
		{10, 100, 9}, //
	} {
		b := New(Options{Node: here, EjectablePercent: tt.percent})
		s := weighted("", make([]uint32, tt.endpoints)...)
		for _, e := range s.Endpoints {
			fail(b, s, e, 2*DefaultFailures)
		}
		if got := count(ejected(b, s)); got != tt.want {
			t.Errorf("%d endpoints, %d %%: %d ejected, want %d", tt.endpoints, tt.percent, got, tt.want)
		}
	}
}

func TestPassingCheckEndsEjection(t *testing.T) {
	b, s := seeded(), weighted("", 1, 1)
	fail(b, s, s.Endpoints[0], DefaultFailures)
	if n := count(ejected(b, s)); n != 1 {
		t.Fatalf("%d are out, want 1", n)
	}
	b.readmit(s.Endpoints[0], 0)
	if n := count(ejected(b, s)); n != 0 {
		t.Errorf("%d are out, want none", n)
	}
}

func TestEjectedIsNotPicked(t *testing.T) {
	for _, policy := range []mesh.Balance{mesh.BalanceLeastRequest, mesh.BalanceRandom, mesh.BalanceRoundRobin} {
		b, s := New(Options{Node: here, EjectablePercent: 99}), weighted(policy, make([]uint32, 100)...)
		for _, e := range s.Endpoints[:99] {
			fail(b, s, e, DefaultFailures)
		}
		for range 50 {
			p := mustPick(t, b, s)
			if p.Endpoint != s.Endpoints[99] || p.Panic {
				t.Fatalf("%s: picked %v, panic %v", policy, p.Endpoint.Address, p.Panic)
			}
		}
	}
}

// TestPanic: with one endpoint ejected and the other one failing its check,
// both are tried rather than nothing.
func TestPanic(t *testing.T) {
	b, s := seeded(), weighted("", 1, 1)
	s.HealthCheck = &mesh.HealthCheck{Unhealthy: 1}
	fail(b, s, s.Endpoints[0], DefaultFailures)
	b.checks[checkKey{s.Name, s.Endpoints[1].AddrPort(0), ""}].failing.Store(true)
	seen := make(map[*mesh.Endpoint]bool)
	for range 100 {
		p := mustPick(t, b, s)
		if !p.Panic {
			t.Fatal("no panic")
		}
		seen[p.Endpoint] = true
		b.Done(p, OutcomeUnknown)
	}
	if len(seen) != 2 {
		t.Errorf("%d endpoints tried", len(seen))
	}
	// A connection that works ends the ejection, and thereby the panic.
	p, _ := b.Hold(s, 0, s.Endpoints[0])
	b.Connected(p)
	if p := mustPick(t, b, s); p.Panic || p.Endpoint != s.Endpoints[0] {
		t.Errorf("after a success: %+v", p)
	}
	// The nearest first, also in panic.
	near := endpointAt("node", 1)
	s2 := serviceOf("", near, endpointAt("far", 1))
	s2.HealthCheck = s.HealthCheck
	mustPick(t, b, s2)
	for _, c := range b.checks {
		c.failing.Store(true)
	}
	if p := mustPick(t, b, s2); !p.Panic || p.Endpoint != near {
		t.Errorf("picked %+v", p)
	}
}

func TestSweep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, s := seeded(), weighted("", 1)
		s.HealthCheck = &mesh.HealthCheck{}
		gone := weighted("", 1)
		gone.Name = mesh.ParseName("gone")
		gone.Endpoints[0].Address = mustAddr("10.9.9.9")
		gone.HealthCheck = &mesh.HealthCheck{}
		held := mustPick(t, b, gone)
		b.Done(mustPick(t, b, s), OutcomeOK)
		snapshot := mesh.Build(mesh.BuildInput{Services: []*mesh.Service{s}})
		pass := func(d time.Duration) { time.Sleep(d); b.Update(snapshot) }
		pass(forgetAfter)
		pass(forgetAfter + time.Second)
		if len(b.states) != 2 {
			t.Errorf("%d states; one has a connection in flight", len(b.states))
		}
		if len(b.checks) != 1 {
			t.Errorf("%d checks", len(b.checks))
		}
		b.Done(held, OutcomeOK)
		pass(forgetAfter)
		if len(b.states) != 1 {
			t.Errorf("%d states; one is used", len(b.states))
		}
	})
}
