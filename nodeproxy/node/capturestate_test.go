// SPDX-License-Identifier: Apache-2.0

package node

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/meshproxy/meshproxy/discovery/mesh"
	"github.com/meshproxy/meshproxy/sockmap"
)

func snapshotOf(workloads []*mesh.Workload, services ...*mesh.Service) *mesh.Snapshot {
	return mesh.Build(mesh.BuildInput{
		Node:      mesh.Node{Name: "a"},
		Services:  services,
		Workloads: workloads,
	})
}

func addr(s string) netip.Addr         { return netip.MustParseAddr(s) }
func addrPort(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }
func name(s string) mesh.Name          { return mesh.Name{Namespace: mesh.DefaultNamespace, Name: s} }

// TestCaptureStateAnyPort: a service without a port of its own is at every
// port of its virtual IP, and nobody means it who dials its proxy's address.
func TestCaptureStateAnyPort(t *testing.T) {
	db := &mesh.Service{
		Name: name("db"), Ports: []mesh.Port{{}}, VirtualIPs: []netip.Addr{addr("240.0.0.1")},
		Endpoints: []*mesh.Endpoint{
			{Address: addr("10.0.0.2"), Ports: []uint16{21000}, Tunnel: addrPort("10.0.0.2:21000")},
			{Address: addr("10.0.0.3"), Ports: []uint16{5432}, Tunnel: addrPort("10.0.0.3:15008"), Priority: 1},
		},
	}
	state := captureState(snapshotOf(nil, db), func(mesh.Name) uint64 { return 0 }, nil)
	direct := addrPort("10.0.0.3:5432")
	want := []sockmap.Destination{
		{Addr: addrPort("240.0.0.1:0"), Service: name("db"), AnyPort: true, Direct: direct},
		{Addr: direct, Service: name("db"), Direct: direct},
	}
	if diff := cmp.Diff(want, state.Destinations, cmpopts.EquateComparable(netip.AddrPort{})); diff != "" {
		t.Errorf("destinations (-want +got):\n%s", diff)
	}
}

func TestCaptureStateDestinations(t *testing.T) {
	web := &mesh.Service{
		Name:       name("web"),
		Ports:      []mesh.Port{{Port: 80}},
		VirtualIPs: []netip.Addr{addr("240.240.0.1"), addr("2001:2::1")},
		Endpoints: []*mesh.Endpoint{
			{Address: addr("10.0.0.1"), Ports: []uint16{8080}, Node: "a", Workload: name("web"), Health: mesh.HealthUnhealthy},
			{Address: addr("10.0.0.2"), Ports: []uint16{8080}, Node: "b"},
			{Address: addr("127.0.0.1"), Ports: []uint16{8080}, Node: "b", Health: mesh.HealthUnhealthy},
		},
	}
	front := &mesh.Workload{Name: name("front"), Upstreams: []mesh.Upstream{
		{Listen: addrPort("127.0.0.1:9191"), Service: name("web")},
		{Listen: addrPort("127.0.0.1:9192"), Service: name("nowhere")},
	}}
	state := captureState(snapshotOf([]*mesh.Workload{front}, web), func(mesh.Name) uint64 { return 0 }, nil)

	direct := addrPort("10.0.0.2:8080")
	want := []sockmap.Destination{
		{Workload: name("front"), Addr: addrPort("127.0.0.1:9191"), Service: name("web"), Direct: direct},
		{Workload: name("front"), Addr: addrPort("127.0.0.1:9192"), Service: name("nowhere")},
		{Addr: addrPort("240.240.0.1:0"), Service: name("web")},
		{Addr: addrPort("240.240.0.1:80"), Service: name("web"), Direct: direct},
		{Addr: addrPort("[2001:2::1]:0"), Service: name("web")},
		{Addr: addrPort("[2001:2::1]:80"), Service: name("web"), Direct: direct},
		{Addr: addrPort("10.0.0.1:8080"), Service: name("web"), Direct: addrPort("10.0.0.1:8080")},
		{Addr: addrPort("10.0.0.2:8080"), Service: name("web"), Direct: direct},
	}
	if diff := cmp.Diff(want, state.Destinations, cmpopts.EquateComparable(netip.AddrPort{})); diff != "" {
		t.Errorf("destinations (-want +got):\n%s", diff)
	}
}

func TestCaptureStateWorkloads(t *testing.T) {
	web := &mesh.Workload{Name: name("web")}
	box := &mesh.Workload{Name: name("box"), Bypass: true}
	services := []*mesh.Service{
		{Name: name("web"), Ports: []mesh.Port{{Name: "http", Port: 80}, {Name: "admin", Port: 81}}, Endpoints: []*mesh.Endpoint{
			{Address: addr("10.0.0.1"), Ports: []uint16{8080, 8081}, Node: "a", Workload: name("web")},
			{Address: addr("10.0.0.2"), Ports: []uint16{7070, 7071}, Node: "b", Workload: name("web")},
		}},
		{Name: name("web2"), Ports: []mesh.Port{{Port: 80}}, Endpoints: []*mesh.Endpoint{
			{Address: addr("10.0.0.1"), Ports: []uint16{8080}, Node: "a", Workload: name("web")},
		}},
	}
	namespace := func(n mesh.Name) uint64 {
		if n == name("box") {
			return 7
		}
		return 0
	}
	state := captureState(snapshotOf([]*mesh.Workload{web, box}, services...), namespace, map[mesh.Name]bool{name("web"): true})
	want := []sockmap.Workload{
		{Name: name("box"), Bypass: true, NetNS: 7},
		{Name: name("web"), Bypass: true, InboundPorts: []uint16{8080, 8081}},
	}
	if diff := cmp.Diff(want, state.Workloads); diff != "" {
		t.Errorf("workloads (-want +got):\n%s", diff)
	}
}
