// SPDX-License-Identifier: Apache-2.0

package node

import (
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/meshproxy/meshproxy/discovery/mesh"
	"github.com/meshproxy/meshproxy/nodeproxy/config"
	"github.com/meshproxy/meshproxy/sockmap"
)

// directWorld is a node with the workload web, which serves web at 10.0.0.1:8080,
// and its client front. Both services' virtual IPs and web's endpoint are asked
// for.
type directWorld struct {
	front, web *mesh.Workload
	service    *mesh.Service
	policies   []*mesh.Policy
	defaults   mesh.PolicyDefaults
	usable     []bool // nil: all
	namespaces map[mesh.Name]uint64
	reachable  bool
}

func newDirectWorld() *directWorld {
	id := func(w string) spiffeid.ID {
		return spiffeid.RequireFromString("spiffe://mesh.internal/ns/default/sa/" + w)
	}
	return &directWorld{
		front: &mesh.Workload{Name: name("front"), Identity: id("front")},
		web:   &mesh.Workload{Name: name("web"), Identity: id("web")},
		service: &mesh.Service{
			Name: name("web"), Ports: []mesh.Port{{Port: 80, Protocol: mesh.ProtocolTCP}}, VirtualIPs: []netip.Addr{addr("240.0.0.1")},
			Endpoints: []*mesh.Endpoint{webAt("10.0.0.1")},
		},
		defaults:   mesh.PolicyDefaults{Default: mesh.ActionAllow},
		namespaces: make(map[mesh.Name]uint64),
		reachable:  true,
	}
}

func webAt(a string) *mesh.Endpoint {
	return &mesh.Endpoint{Address: addr(a), Ports: []uint16{8080}, Node: "a", Workload: name("web"), Transport: mesh.TransportHBONE}
}

func (w *directWorld) also(e *mesh.Endpoint) *mesh.Endpoint {
	w.service.Endpoints = append(w.service.Endpoints, e)
	return e
}

// way is what the kernel is told of the virtual IP, and of front to web's first
// endpoint.
func (w *directWorld) way() (locals []sockmap.Local, only bool, front sockmap.Verdict) {
	s := mesh.Build(mesh.BuildInput{
		Node: mesh.Node{Name: "a"}, Services: []*mesh.Service{w.service}, Workloads: []*mesh.Workload{w.front, w.web},
		Policies: w.policies, Defaults: w.defaults,
	})
	v := newViews(func() config.DefaultIdentity { return config.DefaultIdentity{} })
	namespace := func(n mesh.Name) uint64 { return w.namespaces[n] }
	state := captureState(s, namespace, nil)
	d := direct{
		view: v.derive(s, 1, 1), node: "a", state: &state, namespace: namespace,
		reaches: func(mesh.Name, sockmap.Local) bool { return w.reachable },
		usable: func(svc *mesh.Service) []bool {
			list := make([]bool, len(svc.Endpoints))
			for i := range list {
				list[i] = w.usable == nil || w.usable[i]
			}
			return list
		},
	}
	d.add()
	for _, to := range state.Destinations {
		if to.Addr == addrPort("240.0.0.1:80") {
			locals, only = to.Locals, to.OnlyLocal
		}
	}
	for _, a := range state.Accesses {
		if a.Source == w.front.Name {
			front = a.Verdict
		}
	}
	return locals, only, front
}

// TestWhoGoesDirectly goes through what can be said about services, workloads and
// policies: the kernel leads nobody past what only the proxy does.
func TestWhoGoesDirectly(t *testing.T) {
	here := func(addrs ...string) (list []sockmap.Local) {
		for _, a := range addrs {
			list = append(list, sockmap.Local{Addr: addrPort(a), Workload: name("web")})
		}
		return list
	}
	one := here("10.0.0.1:8080")
	from := func(w *directWorld, action mesh.Action, source mesh.PolicySource) *mesh.Policy {
		p := &mesh.Policy{Name: name("p"), Action: action, From: []mesh.PolicySource{source}, To: []mesh.PolicyTarget{{Service: name("web")}}}
		w.policies = append(w.policies, p)
		return p
	}
	isFront := func(w *directWorld) mesh.PolicySource { return mesh.PolicySource{Identity: w.front.Identity} }
	for _, tc := range []struct {
		name   string
		change func(*directWorld)
		locals []sockmap.Local
		only   bool
		front  sockmap.Verdict
	}{
		{"as it is", func(*directWorld) {}, one, true, sockmap.Allow},

		{"the protocol is HTTP", func(w *directWorld) { w.service.Ports[0].Protocol = mesh.ProtocolHTTP }, nil, false, sockmap.Ask},
		{"the protocol is gRPC", func(w *directWorld) { w.service.Ports[0].Protocol = mesh.ProtocolGRPC }, nil, false, sockmap.Ask},
		{"no protocol is given", func(w *directWorld) { w.service.Ports[0].Protocol = "" }, one, true, sockmap.Allow},
		{"rules for requests", func(w *directWorld) { w.service.Routing = &mesh.Routing{} }, nil, false, sockmap.Ask},
		// The application's own connect(2) meets a listener or nothing; the
		// proxy's wait for an endpoint is not involved.
		{"a connect timeout", func(w *directWorld) { w.service.ConnectTimeout = time.Second }, one, true, sockmap.Allow},

		{"the client has a limit", func(w *directWorld) { w.front.MaxConnections = 5 }, one, true, sockmap.Ask},
		{"the server has a limit", func(w *directWorld) { w.web.MaxConnections = 5 }, nil, false, sockmap.Ask},
		{"the client may not be spliced", func(w *directWorld) { w.front.Splice = mesh.SpliceOff }, one, true, sockmap.Allow},
		{"the client has no identity", func(w *directWorld) { w.front.Identity = spiffeid.ID{} }, one, true, sockmap.Ask},
		{"in another namespace", func(w *directWorld) { w.namespaces[w.web.Name] = 7 }, []sockmap.Local{{Addr: addrPort("10.0.0.1:8080"), Workload: name("web"), NetNS: 7}}, true, sockmap.Allow},
		{"in another namespace, without a way", func(w *directWorld) { w.namespaces[w.web.Name], w.reachable = 7, false }, []sockmap.Local{{Addr: addrPort("10.0.0.1:8080"), Workload: name("web"), NetNS: 7}}, true, sockmap.Ask},

		{"at loopback", func(w *directWorld) { w.service.Endpoints[0].Address = addr("127.0.0.1") }, nil, false, sockmap.Ask},
		{"outside the mesh", func(w *directWorld) { w.service.Endpoints[0].Transport = mesh.TransportNone }, nil, false, sockmap.Ask},
		{"of another node", func(w *directWorld) { w.service.Endpoints[0].Node = "b" }, nil, false, sockmap.Ask},
		{"nobody's", func(w *directWorld) { w.service.Endpoints[0].Node = "" }, nil, false, sockmap.Ask},
		{"of a workload that is not known", func(w *directWorld) { w.service.Endpoints[0].Workload = name("gone") }, nil, false, sockmap.Ask},
		// Its own address is dialled, too: who does so wants that one.
		{"not usable", func(w *directWorld) { w.usable = []bool{false} }, nil, false, sockmap.Allow},

		{"also on another node", func(w *directWorld) { w.also(webAt("10.0.0.2")).Node = "b" }, one, false, sockmap.Allow},
		{"usable on another node only", func(w *directWorld) { w.also(webAt("10.0.0.2")).Node = "b"; w.usable = []bool{false, true} }, nil, false, sockmap.Allow},
		{"for failover only", func(w *directWorld) { w.service.Endpoints[0].Priority = 1; w.also(webAt("10.0.0.2")).Node = "b" }, nil, false, sockmap.Allow},
		{"failed over", func(w *directWorld) {
			w.service.Endpoints[0].Priority = 1
			w.also(webAt("10.0.0.2")).Node = "b"
			w.usable = []bool{true, false}
		}, one, false, sockmap.Allow},

		{"two here", func(w *directWorld) { w.also(webAt("10.0.0.3")) }, here("10.0.0.1:8080", "10.0.0.3:8080"), true, sockmap.Allow},
		{"two here, the least loaded", func(w *directWorld) { w.also(webAt("10.0.0.3")); w.service.Balance = mesh.BalanceLeastRequest }, here("10.0.0.1:8080", "10.0.0.3:8080"), true, sockmap.Allow},
		{"two here, in turn", func(w *directWorld) { w.also(webAt("10.0.0.3")); w.service.Balance = mesh.BalanceRoundRobin }, nil, false, sockmap.Allow},
		{"one here, in turn", func(w *directWorld) { w.service.Balance = mesh.BalanceRoundRobin }, one, true, sockmap.Allow},
		{"two here with weights", func(w *directWorld) { w.also(webAt("10.0.0.3")).Weight = 3 }, nil, false, sockmap.Allow},
		{"two here of one weight", func(w *directWorld) { w.service.Endpoints[0].Weight = 3; w.also(webAt("10.0.0.3")).Weight = 3 }, here("10.0.0.1:8080", "10.0.0.3:8080"), true, sockmap.Allow},
		{"two here, one of which needs the proxy", func(w *directWorld) { w.also(webAt("127.0.0.1")) }, nil, false, sockmap.Allow},
		{"more here than the kernel takes", func(w *directWorld) {
			for i := range sockmap.MaxLocals {
				w.also(webAt(netip.AddrFrom4([4]byte{10, 0, 1, byte(i)}).String()))
			}
		}, nil, false, sockmap.Allow},

		{"denied by default", func(w *directWorld) { w.defaults.Default = mesh.ActionDeny }, one, true, sockmap.Deny},
		{"allowed by name", func(w *directWorld) { w.defaults.Default = mesh.ActionDeny; from(w, mesh.ActionAllow, isFront(w)) }, one, true, sockmap.Allow},
		{"denied by name", func(w *directWorld) { from(w, mesh.ActionDeny, isFront(w)) }, one, true, sockmap.Deny},
		{"denied in an order", func(w *directWorld) { from(w, mesh.ActionDeny, isFront(w)).Precedence = 9 }, one, true, sockmap.Deny},
		{"denied on other ports", func(w *directWorld) { from(w, mesh.ActionDeny, isFront(w)).To[0].Ports = []uint16{9} }, one, true, sockmap.Allow},
		{"allowed by address", func(w *directWorld) {
			from(w, mesh.ActionAllow, mesh.PolicySource{CIDR: netip.MustParsePrefix("10.0.0.0/8")})
		}, one, true, sockmap.Ask},
		{"denied by address", func(w *directWorld) {
			from(w, mesh.ActionDeny, mesh.PolicySource{CIDR: netip.MustParsePrefix("192.0.2.0/24")})
		}, one, true, sockmap.Ask},
		{"a rule about addresses elsewhere", func(w *directWorld) {
			from(w, mesh.ActionDeny, mesh.PolicySource{CIDR: netip.MustParsePrefix("10.0.0.0/8")}).To[0].Service = name("other")
		}, one, true, sockmap.Allow},
		{"a denial that is audited", func(w *directWorld) { from(w, mesh.ActionDeny, isFront(w)).Audit = true }, one, true, sockmap.Ask},
		{"everything is audited", func(w *directWorld) { w.defaults.Audit, w.defaults.Default = true, mesh.ActionDeny }, one, true, sockmap.Ask},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newDirectWorld()
			tc.change(w)
			locals, only, front := w.way()
			if diff := cmp.Diff(tc.locals, locals, cmpopts.EquateComparable(netip.AddrPort{})); diff != "" {
				t.Errorf("endpoints (-want +got):\n%s", diff)
			}
			if only != tc.only || front != tc.front {
				t.Errorf("only %v, want %v; front %d, want %d", only, tc.only, front, tc.front)
			}
		})
	}
}
