// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/meshproxy/meshproxy/discovery/mesh"
)

// choices draws from a byte string, so that the fuzzer steers what is built.
type choices []byte

func (c *choices) next(n int) int {
	if len(*c) == 0 {
		return 0
	}
	b := int((*c)[0])
	*c = (*c)[1:]
	return b % n
}

func pick[T any](c *choices, from ...T) T { return from[c.next(len(from))] }

func (c *choices) identity() spiffeid.ID {
	return pick(c, spiffeid.ID{}, curl, dev, far, id("/ns/default/dc/dc1/svc/web"), id("/ns/dev/dc/dc2/svc/web"), id("/ns/default/dc/a/b/svc/web"), id("/ns/dev"), id("/x/ns/dev/sa/curl"), id("/ns/default/sa/curl/x"))
}

func (c *choices) name() mesh.Name {
	return pick(c, mesh.Name{}, name("web"), name("db"), mesh.Name{Namespace: "default", Name: "web"}, mesh.Name{Namespace: "dev", Name: "web"})
}

func (c *choices) source() mesh.PolicySource {
	var s mesh.PolicySource
	fields := c.next(128)
	if fields&1 != 0 {
		s.Identity = c.identity()
	}
	if fields&2 != 0 {
		s.IdentityPrefix = pick(c, "spiffe://", "spiffe://mesh.test", "spiffe://mesh.test/", "spiffe://mesh.test/ns",
			"spiffe://mesh.test/ns/dev", "spiffe://mesh.test/ns/dev/", "spiffe://mesh.test/ns/de", curl.String(), "x")
	}
	if fields&4 != 0 {
		s.Namespace = pick(c, "default", "dev", "de")
	}
	if fields&8 != 0 {
		s.TrustDomain = pick(c, "mesh.test", "spiffe://mesh.test", "other.test", "mesh")
	}
	if fields&16 != 0 {
		s.CIDR = netip.MustParsePrefix(pick(c, "10.0.0.0/8", "10.1.2.3/32", "10.1.9.9/16", "0.0.0.0/0", "::/0",
			"fe80::/10", "::ffff:10.1.0.0/112", "::ffff:0:0/90"))
	}
	s.AnyIdentity = fields&32 != 0
	if fields&64 != 0 {
		s.Service = pick(c, name("web"), name("db"), mesh.Name{Namespace: "dev", Name: "web"}, name("*"), mesh.Name{Namespace: "dev", Name: "*"})
	}
	return s
}

func (c *choices) policy(i int) *mesh.Policy {
	p := &mesh.Policy{
		Name:   mesh.Name{Name: fmt.Sprint("p", i)},
		Action: pick(c, mesh.ActionAllow, mesh.ActionDeny, mesh.ActionDeny, mesh.ActionAllow, "other"),
		Audit:  c.next(4) == 3,

		Precedence: pick(c, 0, 0, 0, 9, 8, 1),
	}
	for range c.next(3) {
		p.From = append(p.From, c.source())
	}
	for range c.next(3) {
		p.To = append(p.To, mesh.PolicyTarget{
			Service:  c.name(),
			Workload: c.name(),
			Ports:    pick(c, nil, []uint16{80}, []uint16{81, 82}),
		})
	}
	return p
}

func (c *choices) request() Request {
	r := Request{
		Identity: c.identity(),
		Source:   pick(c, netip.AddrPort{}, ap("10.1.2.3:1"), ap("[::ffff:10.1.2.3]:1"), ap("[fe80::1%eth0]:1"), ap("192.0.2.1:1")),
		Claimed: pick(c, netip.Addr{}, netip.Addr{}, netip.MustParseAddr("10.1.2.3"), netip.MustParseAddr("10.1.9.9"),
			netip.MustParseAddr("::ffff:10.9.9.9"), netip.MustParseAddr("fe80::1%eth0")),
		Workload: c.name(),
		Port:     pick[uint16](c, 80, 81, 0),
	}
	for range c.next(3) {
		r.Services = append(r.Services, c.name())
	}
	return r
}

func ap(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

func checkAgainstExplain(t *testing.T, in []byte) {
	t.Helper()
	c := choices(in)
	defaults := mesh.PolicyDefaults{
		Default: pick(&c, mesh.ActionDeny, mesh.ActionAllow, ""),
		Audit:   c.next(4) == 3,
	}
	var policies []*mesh.Policy
	for i := range c.next(12) {
		policies = append(policies, c.policy(i))
	}
	e := Compile(defaults, policies)
	for range 8 {
		r := c.request()
		if diff := cmp.Diff(e.Explain(r).Decision, e.Decide(r)); diff != "" {
			t.Fatalf("index differs from evaluation in turn (-turn +index):\n%s\nrequest %+v\nexplained %+v", diff, r, e.Explain(r))
		}
	}
}

// TestIndexDecidesAsInTurn and the fuzz test compare the index with Explain,
// which reads the policies one by one.
func TestIndexDecidesAsInTurn(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	in := make([]byte, 400)
	for range 5000 {
		for i := range in {
			in[i] = byte(rnd.Uint32())
		}
		checkAgainstExplain(t, in)
	}
}

func FuzzIndex(f *testing.F) {
	f.Add([]byte{1, 0, 3, 0, 0, 1, 1, 1, 1, 1, 0, 1, 2, 2, 1})
	f.Add([]byte{0, 3, 11, 1, 3, 2, 18, 4, 3, 63, 1, 2, 3, 4, 5, 6, 7, 8, 9})
	f.Fuzz(checkAgainstExplain)
}

// TestDenyRulesCollapseForPlaintext keeps a plaintext connection from paying
// for each identity that is denied.
func TestDenyRulesCollapseForPlaintext(t *testing.T) {
	var policies []*mesh.Policy
	for i := range 1000 {
		policies = append(policies, policy(fmt.Sprint(i), mesh.ActionDeny, toWeb,
			mesh.PolicySource{Identity: id(fmt.Sprint("/ns/default/sa/", i))}))
	}
	e := Compile(mesh.PolicyDefaults{}, policies)
	deny := &e.enforced.services[mesh.Name{Namespace: "default", Name: "web"}].deny
	if got := len(deny.unidentified); got != 1 {
		t.Errorf("%d rules about plaintext, want 1", got)
	}
}

func manyPolicies(n int) []*mesh.Policy {
	var policies []*mesh.Policy
	for i := range n {
		self := name(fmt.Sprint("svc", i%100))
		from := mesh.PolicySource{Identity: id(fmt.Sprintf("/ns/default/sa/a%d", i))}
		switch i % 4 {
		case 1:
			from = mesh.PolicySource{IdentityPrefix: fmt.Sprintf("spiffe://mesh.test/ns/n%d", i)}
		case 2:
			from = mesh.PolicySource{CIDR: netip.PrefixFrom(netip.AddrFrom4([4]byte{172, 16, byte(i >> 8), byte(i)}), 32)}
		}
		action := mesh.ActionAllow
		if i%3 == 0 {
			action = mesh.ActionDeny
		}
		policies = append(policies,
			policy(fmt.Sprint("one", i), action, []mesh.PolicyTarget{{Service: self}}, from),
			policy(fmt.Sprint("all", i), mesh.ActionDeny, nil, from))
	}
	return append(policies, policy("web", mesh.ActionAllow, toWeb, mesh.PolicySource{Namespace: "default"}))
}

func TestDecideDoesNotAllocate(t *testing.T) {
	e := Compile(mesh.PolicyDefaults{Default: mesh.ActionDeny}, manyPolicies(1000))
	for _, from := range []spiffeid.ID{curl, dev, {}} {
		r := request(from)
		if n := testing.AllocsPerRun(100, func() { e.Decide(r) }); n != 0 {
			t.Errorf("%v: %v allocations, want none", from, n)
		}
	}
}

func BenchmarkDecide(b *testing.B) {
	for _, n := range []int{0, 10, 5000} {
		e := Compile(mesh.PolicyDefaults{Default: mesh.ActionDeny}, manyPolicies(n))
		for _, from := range []spiffeid.ID{curl, {}} {
			r := request(from)
			b.Run(fmt.Sprintf("policies=%d/identified=%v", e.Len(), !from.IsZero()), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					e.Decide(r)
				}
			})
		}
	}
}
