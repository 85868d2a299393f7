// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/meshproxy/meshproxy/discovery/mesh"
)

var ranges = []netip.Prefix{netip.MustParsePrefix("240.240.0.0/16"), netip.MustParsePrefix("2001:2::/48")}

// memory keeps assignments as a file would.
type memory struct {
	list []Assignment
	err  error
}

func (m *memory) Load() ([]Assignment, error) { return m.list, nil }
func (m *memory) Save(l []Assignment) error {
	if m.err == nil {
		m.list = l
	}
	return m.err
}

func TestVirtualIPs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src, kept := newScripted("s"), &memory{}
		m := start(t, Options{Sources: []Source{src}, VirtualIPs: ranges, Assignments: kept})
		src.send <- Update{Services: []*mesh.Service{service("web"), service("db", "10.0.0.9")}}
		settle()
		s := m.Store().Load()
		web := s.Service(name("web")).VirtualIPs
		if len(web) != 2 || !web[0].Is4() || !web[1].Is6() {
			t.Fatalf("web has %v", web)
		}
		if db := s.Service(name("db")).VirtualIPs; len(db) != 1 {
			t.Errorf("db has %v besides the one of its source", db)
		}
		if len(kept.list) != 2 {
			t.Errorf("saved %+v", kept.list)
		}

		// Another service's source claims web's address: web gets another one.
		src.send <- Update{Services: []*mesh.Service{service("web"), service("db", web[0].String())}}
		settle()
		s = m.Store().Load()
		if now := s.Service(name("web")).VirtualIPs; len(now) != 2 || now[0] == web[0] || now[1] != web[1] {
			t.Errorf("web has %v, had %v", now, web)
		}
		if w := s.Sources()[0].Warnings; len(w) != 0 {
			t.Errorf("warnings %q", w)
		}

		// A service that goes and comes back within the quarantine keeps its own.
		had := s.Service(name("web")).VirtualIPs
		src.send <- Update{}
		settle()
		time.Sleep(DefaultQuarantine / 2)
		src.send <- Update{Services: []*mesh.Service{service("web")}}
		settle()
		if now := m.Store().Load().Service(name("web")).VirtualIPs; !slices.Equal(now, had) {
			t.Errorf("web came back with %v, had %v", now, had)
		}
	})
}

func TestVirtualIPsRunOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := newScripted("s")
		m := start(t, Options{Sources: []Source{src}, VirtualIPs: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/30")}})
		src.send <- Update{Services: []*mesh.Service{service("a"), service("b"), service("c")}}
		settle()
		s := m.Store().Load()
		if ips := s.Service(name("c")).VirtualIPs; len(ips) != 0 {
			t.Errorf("c has %v", ips)
		}
		if w := s.Sources()[0].Warnings; len(w) != 1 || !strings.Contains(w[0], `"c" gets no virtual IP`) {
			t.Errorf("warnings %q", w)
		}
		// There is room once a's quarantine is over, though c did not change.
		src.send <- Update{Services: []*mesh.Service{service("b"), service("c")}}
		settle()
		time.Sleep(DefaultQuarantine)
		src.send <- Update{Services: []*mesh.Service{service("b"), service("c"), service("b2", "192.0.2.1")}}
		settle()
		if ips := m.Store().Load().Service(name("c")).VirtualIPs; len(ips) != 1 {
			t.Errorf("c has %v when there is room", ips)
		}
	})
}

func TestVirtualIPsSurviveARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		kept := &memory{}
		// A range so small that addresses depend on the order of arrival.
		small := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/29")}
		src := newScripted("s")
		m := start(t, Options{Sources: []Source{src}, VirtualIPs: small, Assignments: kept})
		for _, n := range []string{"f", "e", "d", "c", "b", "a"} {
			var all []*mesh.Service
			for _, s := range m.Store().Load().Services() {
				all = append(all, service(s.Name.Name))
			}
			src.send <- Update{Services: append(all, service(n))}
			settle()
		}
		before := m.Store().Load()
		again := newScripted("s")
		m2 := start(t, Options{Sources: []Source{again}, VirtualIPs: small, Assignments: kept})
		var all []*mesh.Service
		for _, s := range before.Services() {
			all = append(all, service(s.Name.Name))
		}
		again.send <- Update{Services: all}
		settle()
		for _, s := range m2.Store().Load().Services() {
			if was := before.Service(s.Name).VirtualIPs; !slices.Equal(was, s.VirtualIPs) {
				t.Errorf("%s has %v, had %v", s, s.VirtualIPs, was)
			}
		}
	})
}

func TestFailedSaveIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src, kept := newScripted("s"), &memory{err: errors.New("disk full")}
		m := start(t, Options{Sources: []Source{src}, VirtualIPs: ranges, Assignments: kept})
		src.send <- Update{Services: []*mesh.Service{service("web")}}
		settle()
		if len(m.Store().Load().Service(name("web")).VirtualIPs) != 2 {
			t.Error("no addresses without a disk")
		}
		kept.err = nil
		src.send <- Update{Services: []*mesh.Service{service("web"), service("db", "192.0.2.1")}}
		settle()
		if len(kept.list) != 2 {
			t.Errorf("saved %+v", kept.list)
		}
	})
}

func TestLastSnapshotIsInForceAtStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		consul, gone := newScripted("consul"), newScripted("gone")
		first := start(t, Options{Sources: []Source{consul, gone}, VirtualIPs: ranges})
		consul.send <- Update{
			Services: []*mesh.Service{service("web")}, Workloads: []*mesh.Workload{{Name: name("w")}},
			Policies: []*mesh.Policy{{Name: name("p")}}, Defaults: &mesh.PolicyDefaults{Default: mesh.ActionDeny},
		}
		gone.send <- Update{Services: []*mesh.Service{service("old")}}
		settle()
		last := first.Store().Load().Input()

		consul = newScripted("consul")
		m := start(t, Options{Sources: []Source{newScripted("static"), consul}, VirtualIPs: ranges, Last: &last})
		s := m.Store().Load()
		if s.Service(name("web")) == nil || s.Service(name("old")) != nil || s.Workload(name("w")) == nil || len(s.Policies()) != 1 {
			t.Errorf("services %v workloads %v policies %v", s.Services(), s.Workloads(), s.Policies())
		}
		if s.Defaults().Default != mesh.ActionDeny {
			t.Error("the defaults are not in force")
		}
		if state := s.Sources()[1]; !state.Ready || !state.Stale || !state.FromDisk || state.Err == "" || !state.Since.Equal(last.Built) {
			t.Errorf("state %+v", state)
		}
		if s.Sources()[0].Ready {
			t.Error("a source that the disk knows nothing of is ready")
		}
		had := first.Store().Load().Service(name("web")).VirtualIPs
		if now := s.Service(name("web")).VirtualIPs; !slices.Equal(now, had) {
			t.Errorf("web has %v, had %v", now, had)
		}
		time.Sleep(DefaultInitialWait)
		consul.send <- Update{Services: []*mesh.Service{service("web")}}
		settle()
		s = m.Store().Load()
		if state := s.Sources()[1]; state.Stale || state.FromDisk || state.Err != "" {
			t.Errorf("state after an update %+v", state)
		}
		if now := s.Service(name("web")).VirtualIPs; !slices.Equal(now, had) {
			t.Errorf("web has %v after the update, had %v", now, had)
		}
	})
}
