// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/meshproxy/meshproxy/discovery/mesh"
)

// scripted is a source that a test drives.
type scripted struct {
	name string
	send chan Update
	fail chan error // what Run returns
	runs int
}

func newScripted(name string) *scripted {
	return &scripted{name: name, send: make(chan Update), fail: make(chan error)}
}

func (s *scripted) Name() string { return s.name }

func (s *scripted) Run(ctx context.Context, updates chan<- Update) error {
	s.runs++
	for {
		select {
		case u := <-s.send:
			select {
			case updates <- u:
			case <-ctx.Done():
				return nil
			}
		case err := <-s.fail:
			if err == errPanic {
				panic("boom")
			}
			return err
		case <-ctx.Done():
			return nil
		}
	}
}

var (
	errPanic          = errors.New("panic, please")
	errBackend        = errors.New("connection refused")
	_          Source = (*scripted)(nil)
)

// start runs a merger within a synctest bubble.
func start(t *testing.T, opts Options) *Merger {
	t.Helper()
	m, err := NewMerger(opts)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- m.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return m
}

func service(n string, vips ...string) *mesh.Service {
	s := &mesh.Service{Name: mesh.ParseName(n), Ports: []mesh.Port{{Port: 80}}}
	if !strings.Contains(n, "/") {
		s.Namespace = "" // sources may leave it out
	}
	for _, v := range vips {
		s.VirtualIPs = append(s.VirtualIPs, netip.MustParseAddr(v))
	}
	return s
}

func endpoint(a string) *mesh.Endpoint {
	return &mesh.Endpoint{Address: netip.MustParseAddr(a), Ports: []uint16{8080}}
}

func settle() {
	time.Sleep(DefaultMaxDelay + DefaultSettle)
	synctest.Wait()
}

func TestMergePrecedence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first, second := newScripted("static"), newScripted("consul")
		m := start(t, Options{Sources: []Source{first, second}})
		first.send <- Update{
			Services:  []*mesh.Service{service("web", "10.1.0.1"), service("api")}, // out of order
			Workloads: []*mesh.Workload{{Name: name("w"), Bypass: true}},
			Policies:  []*mesh.Policy{{Name: name("p"), Action: mesh.ActionAllow}},
		}
		second.send <- Update{
			Services:  []*mesh.Service{service("db"), service("web", "10.2.0.1")},
			Workloads: []*mesh.Workload{{Name: name("w")}},
			Policies:  []*mesh.Policy{{Name: name("p"), Action: mesh.ActionDeny}},
			Defaults:  &mesh.PolicyDefaults{Default: mesh.ActionDeny},
			Warnings:  []string{"odd"},
		}
		settle()
		s := m.Store().Load()
		var got []string
		for _, svc := range s.Services() {
			got = append(got, svc.String()+"@"+svc.Source)
		}
		if want := []string{"api@static", "db@consul", "web@static"}; !slices.Equal(got, want) {
			t.Errorf("services %q, want %q", got, want)
		}
		if w := s.Workloads(); len(w) != 1 || w[0].Source != "static" || !w[0].Bypass {
			t.Errorf("workloads %+v", w)
		}
		if p := s.Policies(); len(p) != 2 {
			t.Errorf("%d policies; none may be shadowed", len(p))
		}
		if s.Defaults().Default != mesh.ActionDeny {
			t.Errorf("defaults %+v", s.Defaults())
		}
		warnings := strings.Join(s.Sources()[1].Warnings, "\n")
		for _, want := range []string{"odd", `service "web" is shadowed by that of source "static"`, `workload "w" is shadowed`} {
			if !strings.Contains(warnings, want) {
				t.Errorf("no warning %q in:\n%s", want, warnings)
			}
		}

		// Once the first source drops it, the second one's service is there.
		first.send <- Update{}
		settle()
		if svc := m.Store().Load().Service(name("web")); svc == nil || svc.Source != "consul" {
			t.Errorf("service %+v", svc)
		}
	})
}

func TestFirstSnapshotWaitsForAllSources(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newScripted("a"), newScripted("b")
		m := start(t, Options{Sources: []Source{a, b}})
		a.send <- Update{Services: []*mesh.Service{service("web")}}
		time.Sleep(DefaultInitialWait - time.Millisecond)
		synctest.Wait()
		if n := len(m.Store().Load().Services()); n != 0 {
			t.Fatalf("%d services before all sources were ready", n)
		}
		time.Sleep(time.Millisecond)
		synctest.Wait()
		s := m.Store().Load()
		if len(s.Services()) != 1 || s.Sources()[1].Ready {
			t.Errorf("after InitialWait: %d services, sources %+v", len(s.Services()), s.Sources())
		}
	})
}

func TestFailedSourceStaysInForce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := newScripted("consul")
		m := start(t, Options{Sources: []Source{src}})
		src.send <- Update{Services: []*mesh.Service{service("web")}}
		settle()
		fresh := m.Store().Load().Sources()[0]
		if !fresh.Ready || fresh.Stale || fresh.Err != "" {
			t.Fatalf("fresh: %+v", fresh)
		}
		time.Sleep(time.Minute)
		failedAt := time.Now()
		src.send <- Update{Err: errBackend}
		settle()
		s := m.Store().Load()
		state := s.Sources()[0]
		if !state.Ready || !state.Stale || state.Err != errBackend.Error() || !state.Since.Equal(failedAt) {
			t.Errorf("failed: %+v, at %v", state, failedAt)
		}
		if s.Service(name("web")) == nil {
			t.Error("the last view is not in force")
		}
		// The same failure again is no news.
		src.send <- Update{Err: errBackend}
		settle()
		if m.Store().Load() != s {
			t.Error("a repeated failure made a snapshot")
		}
		src.send <- Update{Services: []*mesh.Service{service("web")}}
		settle()
		if state := m.Store().Load().Sources()[0]; state.Stale || state.Err != "" {
			t.Errorf("recovered: %+v", state)
		}
		if c := mesh.Diff(s, m.Store().Load()); !c.Empty() {
			t.Errorf("nothing changed but the state, yet %+v", c)
		}
	})
}

// TestStaleInPart: what could be read is new, and yet the source does not work
// again before all of it can be.
func TestStaleInPart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := newScripted("consul")
		var log strings.Builder
		m := start(t, Options{Sources: []Source{src}, Logger: slog.New(slog.NewTextHandler(&log, nil))})
		src.send <- Update{Services: []*mesh.Service{service("web")}}
		src.send <- Update{Err: errBackend}
		settle()
		since := m.Store().Load().Sources()[0].Since
		time.Sleep(time.Minute)
		for _, also := range []string{"db", "cache"} {
			src.send <- Update{Services: []*mesh.Service{service("web"), service(also)}, Stale: errBackend}
			settle()
			s := m.Store().Load()
			if state := s.Sources()[0]; !state.Ready || !state.Stale || state.Err != errBackend.Error() || !state.Since.Equal(since) {
				t.Errorf("with %s: %+v, want it stale since %v", also, state, since)
			}
			if s.Service(name(also)) == nil {
				t.Errorf("%s is not there", also)
			}
		}
		src.send <- Update{Services: []*mesh.Service{service("web")}}
		settle()
		if state := m.Store().Load().Sources()[0]; state.Stale || state.Err != "" {
			t.Errorf("recovered: %+v", state)
		}
		if n := strings.Count(log.String(), "source works again"); n != 1 {
			t.Errorf("it worked again %d times: %s", n, log.String())
		}
	})
}

func TestEndedSourceIsRunAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := newScripted("s")
		m := start(t, Options{Sources: []Source{src}})
		src.send <- Update{Services: []*mesh.Service{service("web")}}
		for i, err := range []error{errBackend, nil, errPanic} {
			src.fail <- err
			time.Sleep(time.Millisecond)
			settle()
			if state := m.Store().Load().Sources()[0]; !state.Stale || state.Err == "" {
				t.Errorf("%v: state %+v", err, state)
			}
			time.Sleep(maxRestart)
			synctest.Wait()
			if src.runs != i+2 {
				t.Fatalf("%v: run %d times", err, src.runs)
			}
		}
		src.send <- Update{Services: []*mesh.Service{service("web"), service("db")}}
		settle()
		if len(m.Store().Load().Services()) != 2 {
			t.Error("not working after the restarts")
		}
	})
}

func TestBurstsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := newScripted("s")
		m := start(t, Options{Sources: []Source{src}})
		src.send <- Update{}
		settle()
		before := m.Store().Load().Version()
		for i := range 100 { // every 10 ms for one second: never quiet
			src.send <- Update{Services: []*mesh.Service{service(fmt.Sprintf("svc%d", i))}}
			time.Sleep(DefaultSettle / 2)
		}
		settle()
		s := m.Store().Load()
		if n := s.Version() - before; n < 2 || n > 4 {
			t.Errorf("%d snapshots of 100 updates in a second", n)
		}
		if s.Service(name("svc99")) == nil || len(s.Services()) != 1 {
			t.Error("the last update is not in force")
		}
	})
}

func TestSubscribe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := newScripted("s")
		m := start(t, Options{Sources: []Source{src}})
		changed, cancel := m.Store().Subscribe()
		<-changed // at once
		for i := range 3 {
			src.send <- Update{Services: []*mesh.Service{service(fmt.Sprint("s", i))}}
			settle()
		}
		<-changed
		select {
		case <-changed:
			t.Error("changes are not coalesced")
		default:
		}
		cancel()
		src.send <- Update{}
		settle()
		select {
		case <-changed:
			t.Error("told after cancel")
		default:
		}
	})
}

func TestUnchangedContentIsShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := newScripted("s")
		m := start(t, Options{Sources: []Source{src}, VirtualIPs: ranges})
		update := func(h mesh.Health) Update { // everything anew, each time
			web, db := service("web"), service("db")
			web.Endpoints = []*mesh.Endpoint{endpoint("10.0.0.2"), endpoint("10.0.0.1")}
			web.Endpoints[0].Health = h
			return Update{
				Services: []*mesh.Service{web, db}, Workloads: []*mesh.Workload{{Name: name("w")}},
				Policies: []*mesh.Policy{{Name: name("p")}},
			}
		}
		src.send <- update(mesh.HealthHealthy)
		settle()
		a := m.Store().Load()
		src.send <- update(mesh.HealthHealthy)
		settle()
		if m.Store().Load() != a {
			t.Fatal("the same content made a snapshot")
		}
		src.send <- update(mesh.HealthUnhealthy)
		settle()
		b := m.Store().Load()
		if c := mesh.Diff(a, b); len(c.Services) != 1 || len(c.Workloads)+len(c.Policies) != 0 {
			t.Errorf("changes %+v", c)
		}
		if a.Service(name("web")).Endpoints[0] != b.Service(name("web")).Endpoints[0] {
			t.Error("the unchanged endpoint is not shared")
		}
		if !slices.Equal(a.Service(name("web")).VirtualIPs, b.Service(name("web")).VirtualIPs) {
			t.Error("the virtual IPs changed")
		}
	})
}

func TestUnusableEndpointsAreLeftOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := newScripted("s")
		m := start(t, Options{Sources: []Source{src}})
		bad := service("web")
		noPort := endpoint("10.0.0.1")
		noPort.Ports = nil
		bad.Endpoints = []*mesh.Endpoint{{Ports: []uint16{1}}, noPort, endpoint("::ffff:10.0.0.3"), endpoint("fe80::1%eth0"), endpoint("10.0.0.2")}
		src.send <- Update{Services: []*mesh.Service{bad}}
		settle()
		src.send <- Update{Services: []*mesh.Service{bad, service("other")}} // web is not looked at again
		settle()
		s := m.Store().Load()
		var got []string
		for _, e := range s.Service(name("web")).Endpoints {
			got = append(got, e.Address.String())
		}
		if !slices.Equal(got, []string{"10.0.0.2", "10.0.0.3"}) {
			t.Errorf("endpoints %q", got)
		}
		if w := s.Sources()[0].Warnings; len(w) != 3 {
			t.Errorf("warnings %q", w)
		}
		if len(bad.Endpoints) != 5 || bad.Endpoints[0].Address.IsValid() {
			t.Error("the source's own data was changed")
		}
	})
}

func TestNewMergerRefuses(t *testing.T) {
	a := newScripted("a")
	for _, opts := range []Options{
		{},
		{Sources: []Source{a, newScripted("a")}},
		{Sources: []Source{a}, VirtualIPs: []netip.Prefix{ranges[0], ranges[0]}},
		{Sources: []Source{a}, VirtualIPs: []netip.Prefix{{}}},
	} {
		if _, err := NewMerger(opts); err == nil {
			t.Errorf("%+v accepted", opts)
		}
	}
}
