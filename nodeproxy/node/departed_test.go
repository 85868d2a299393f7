// SPDX-License-Identifier: Apache-2.0

package node

import (
	"net/netip"
	"testing"
	"time"

	"github.com/meshproxy/meshproxy/discovery/mesh"
)

func TestDepartures(t *testing.T) {
	first, second := netip.MustParseAddrPort("10.0.0.1:8080"), netip.MustParseAddrPort("10.0.0.1:8081")
	web, other := &mesh.Workload{Name: mesh.ParseName("web")}, &mesh.Workload{Name: mesh.ParseName("other")}
	serves := func(workload *mesh.Workload, at ...netip.AddrPort) *mesh.Snapshot {
		svc := &mesh.Service{Name: mesh.ParseName("shop"), Ports: []mesh.Port{{Port: 80, Protocol: mesh.ProtocolTCP}}}
		for _, a := range at {
			svc.Endpoints = append(svc.Endpoints, &mesh.Endpoint{
				Address: a.Addr(), Ports: []uint16{a.Port()}, Node: "a", Workload: workload.Name,
			})
		}
		return mesh.Build(mesh.BuildInput{
			Node:     mesh.Node{Name: "a", Address: first.Addr(), Addresses: []netip.Addr{first.Addr()}},
			Services: []*mesh.Service{svc}, Workloads: []*mesh.Workload{workload},
		})
	}
	begin := time.Now()
	var now *view
	at := func(after time.Duration, s *mesh.Snapshot) time.Time {
		when := begin.Add(after)
		now = &view{snapshot: s, departed: departures(now, s, when)}
		return when
	}
	former := func(at netip.AddrPort, when time.Time) string {
		w, services := now.formerly(at, when)
		if w == nil {
			return ""
		}
		return services[0].String() + " of " + w.String()
	}

	when := at(0, serves(web, first))
	if got := former(first, when); got != "" {
		t.Errorf("%s is there: %q", first, got)
	}
	when = at(time.Minute, serves(web, second))
	if got := former(first, when.Add(departure-1)); got != "shop of web" {
		t.Errorf("just gone: %q", got)
	}
	if got := former(first, when.Add(departure)); got != "" {
		t.Errorf("gone for long: %q", got)
	}
	// The next change does not make it longer, or forget it.
	at(time.Minute+time.Second, serves(web, second))
	if got := former(first, when.Add(departure-1)); got != "shop of web" {
		t.Errorf("after another change: %q", got)
	}
	at(time.Minute+2*time.Second, serves(web, first))
	if len(now.departed) != 1 || former(first, when) != "" || former(second, when) != "shop of web" {
		t.Errorf("one that came back: %v", now.departed)
	}
	// A workload that is gone takes its addresses along.
	when = at(time.Minute+3*time.Second, serves(other))
	if got := former(first, when); got != "" {
		t.Errorf("its workload is gone: %q", got)
	}
	at(2*time.Minute, serves(other))
	if len(now.departed) != 0 {
		t.Errorf("after a long time: %v", now.departed)
	}
}
