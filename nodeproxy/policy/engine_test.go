// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/meshproxy/meshproxy/discovery/mesh"
)

func name(s string) mesh.Name { return mesh.Name{Name: s} }

func id(path string) spiffeid.ID {
	return spiffeid.RequireFromString("spiffe://mesh.test" + path)
}

var (
	curl = id("/ns/default/sa/curl")
	dev  = id("/ns/dev/sa/curl")
	far  = spiffeid.RequireFromString("spiffe://other.test/ns/default/sa/curl")

	toWeb = []mesh.PolicyTarget{{Service: name("web")}}
)

// request goes to the workload web, which serves the service web on 8080.
func request(from spiffeid.ID) Request {
	return Request{
		Identity: from,
		Source:   netip.MustParseAddrPort("10.1.2.3:40000"),
		Services: []mesh.Name{{Namespace: "default", Name: "web"}},
		Workload: mesh.Name{Namespace: "default", Name: "web"},
		Port:     8080,
	}
}

func policy(n string, action mesh.Action, to []mesh.PolicyTarget, from ...mesh.PolicySource) *mesh.Policy {
	return &mesh.Policy{Name: name(n), Action: action, From: from, To: to}
}

func audited(p *mesh.Policy) *mesh.Policy {
	p.Audit = true
	return p
}

func by(policy string, r Reason) Verdict { return Verdict{Policy: policy, Reason: r} }

func TestRule(t *testing.T) {
	allowDefault := mesh.PolicyDefaults{Default: mesh.ActionAllow}
	denyDefault := mesh.PolicyDefaults{Default: mesh.ActionDeny}
	auditAll := mesh.PolicyDefaults{Default: mesh.ActionDeny, Audit: true}
	isCurl, isDev := mesh.PolicySource{Identity: curl}, mesh.PolicySource{Identity: dev}
	onPort := func(port uint16) []mesh.PolicyTarget {
		return []mesh.PolicyTarget{{Workload: name("web"), Ports: []uint16{port}}}
	}

	for _, tt := range []struct {
		name     string
		defaults mesh.PolicyDefaults
		policies []*mesh.Policy
		want     Decision
	}{
		{
			"no policies, default allow", allowDefault, nil,
			Decision{Allowed: true, Verdict: by("", ReasonDefaultAllowed)},
		},
		{
			"no policies, default deny", denyDefault, nil,
			Decision{Verdict: by("", ReasonDefaultDenied)},
		},
		{
			"no policies, no default",
			mesh.PolicyDefaults{},
			nil,
			Decision{Verdict: by("", ReasonDefaultDenied)},
		},
		{
			"allow matches", denyDefault,
			[]*mesh.Policy{policy("a", mesh.ActionAllow, toWeb, isCurl)},
			Decision{Allowed: true, Verdict: by("a", ReasonAllowed)},
		},
		{
			"deny wins over an earlier allow", allowDefault,
			[]*mesh.Policy{
				policy("a", mesh.ActionAllow, toWeb, isCurl),
				policy("d", mesh.ActionDeny, nil, mesh.PolicySource{Namespace: "default"}),
			},
			Decision{Verdict: by("d", ReasonDenied)},
		},
		{
			"allow selects without matching, default allow", allowDefault,
			[]*mesh.Policy{policy("a", mesh.ActionAllow, toWeb, isDev)},
			Decision{Verdict: by("", ReasonNotAllowed)},
		},
		{
			"allow for another destination, default allow", allowDefault,
			[]*mesh.Policy{policy("a", mesh.ActionAllow, []mesh.PolicyTarget{{Service: name("db")}}, isDev)},
			Decision{Allowed: true, Verdict: by("", ReasonDefaultAllowed)},
		},
		{
			"allow for another port closes this one", allowDefault,
			[]*mesh.Policy{policy("a", mesh.ActionAllow, onPort(9090), isCurl)},
			Decision{Verdict: by("", ReasonNotAllowed)},
		},
		{
			"deny for another port leaves this one", allowDefault,
			[]*mesh.Policy{policy("d", mesh.ActionDeny, onPort(9090), isCurl)},
			Decision{Allowed: true, Verdict: by("", ReasonDefaultAllowed)},
		},
		{
			"service and workload must both match to select", allowDefault,
			[]*mesh.Policy{policy("a", mesh.ActionAllow,
				[]mesh.PolicyTarget{{Service: name("web"), Workload: name("web-canary")}}, isDev)},
			Decision{Allowed: true, Verdict: by("", ReasonDefaultAllowed)},
		},
		{
			"the first of equals is named", denyDefault,
			[]*mesh.Policy{
				policy("b", mesh.ActionAllow, nil),
				policy("a", mesh.ActionAllow, toWeb, isCurl),
			},
			Decision{Allowed: true, Verdict: by("b", ReasonAllowed)},
		},
		{
			"unknown action denies", allowDefault,
			[]*mesh.Policy{policy("x", "alow", toWeb)},
			Decision{Verdict: by("x", ReasonDenied)},
		},
		{
			"audited deny reports only", allowDefault,
			[]*mesh.Policy{audited(policy("d", mesh.ActionDeny, toWeb, isCurl))},
			Decision{
				Allowed: true, Verdict: by("", ReasonDefaultAllowed),
				Audited: true, Audit: by("d", ReasonDenied),
			},
		},
		{
			"audited allow does not select", allowDefault,
			[]*mesh.Policy{audited(policy("a", mesh.ActionAllow, toWeb, isDev))},
			Decision{
				Allowed: true, Verdict: by("", ReasonDefaultAllowed),
				Audited: true, Audit: by("", ReasonNotAllowed),
			},
		},
		{
			"audited allow does not allow", denyDefault,
			[]*mesh.Policy{audited(policy("a", mesh.ActionAllow, toWeb, isCurl))},
			Decision{
				Verdict: by("", ReasonDefaultDenied),
				Audited: true, Audit: by("a", ReasonAllowed),
			},
		},
		{
			"audit that would change nothing is silent", denyDefault,
			[]*mesh.Policy{audited(policy("d", mesh.ActionDeny, toWeb, isCurl))},
			Decision{Verdict: by("", ReasonDefaultDenied)},
		},
		{
			"everything audited", auditAll,
			[]*mesh.Policy{policy("d", mesh.ActionDeny, toWeb, isCurl)},
			Decision{
				Allowed: true, Verdict: by("", ReasonAuditOnly),
				Audited: true, Audit: by("d", ReasonDenied),
			},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := Compile(tt.defaults, tt.policies)
			if diff := cmp.Diff(tt.want, e.Decide(request(curl))); diff != "" {
				t.Errorf("Decide (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.want, e.Explain(request(curl)).Decision); diff != "" {
				t.Errorf("Explain (-want +got):\n%s", diff)
			}
		})
	}
}

// TestSources asks, for each source, whether an allow and a deny policy with
// it match.
func TestSources(t *testing.T) {
	plaintext := request(spiffeid.ID{})
	from := func(addr string) Request {
		r := request(curl)
		r.Source = netip.MustParseAddrPort(addr)
		return r
	}
	claiming := func(addr string) Request {
		r := request(curl)
		r.Claimed = netip.MustParseAddr(addr)
		return r
	}
	nowhere := request(curl)
	nowhere.Source = netip.AddrPort{}
	prefix := func(p string) mesh.PolicySource { return mesh.PolicySource{IdentityPrefix: p} }
	cidr := func(p string) mesh.PolicySource { return mesh.PolicySource{CIDR: netip.MustParsePrefix(p)} }

	for _, tt := range []struct {
		name        string
		source      mesh.PolicySource
		request     Request
		allow, deny bool
	}{
		{"identity", mesh.PolicySource{Identity: curl}, request(curl), true, true},
		{"other identity", mesh.PolicySource{Identity: curl}, request(dev), false, false},
		{"same path, other trust domain", mesh.PolicySource{Identity: curl}, request(far), false, false},
		{"identity, plaintext", mesh.PolicySource{Identity: curl}, plaintext, false, true},

		{"prefix", prefix("spiffe://mesh.test/ns/default"), request(curl), true, true},
		{"prefix with slash", prefix("spiffe://mesh.test/ns/default/"), request(curl), true, true},
		{"prefix is the identity", prefix(curl.String()), request(curl), true, true},
		{"prefix within a segment", prefix("spiffe://mesh.test/ns/def"), request(curl), false, false},
		{"prefix is the trust domain", prefix("spiffe://mesh.test"), request(curl), true, true},
		{"prefix within the trust domain", prefix("spiffe://mesh"), request(curl), false, false},
		{"prefix with slash is longer", prefix(curl.String() + "/"), request(curl), false, false},
		{"prefix, plaintext", prefix("spiffe://mesh.test/ns/default"), plaintext, false, true},

		{"namespace", mesh.PolicySource{Namespace: "default"}, request(curl), true, true},
		{"other namespace", mesh.PolicySource{Namespace: "default"}, request(dev), false, false},
		{"namespace further down", mesh.PolicySource{Namespace: "dev"}, request(id("/x/ns/dev/sa/a")), false, false},
		{"namespace in two fields", mesh.PolicySource{Namespace: "default", TrustDomain: "mesh.test"}, request(far), false, false},
		{"namespace, plaintext", mesh.PolicySource{Namespace: "default"}, plaintext, false, true},

		{"trust domain", mesh.PolicySource{TrustDomain: "mesh.test"}, request(curl), true, true},
		{"trust domain as an identity", mesh.PolicySource{TrustDomain: "spiffe://mesh.test"}, request(curl), true, true},
		{"other trust domain", mesh.PolicySource{TrustDomain: "mesh.test"}, request(far), false, false},
		{"trust domain, plaintext", mesh.PolicySource{TrustDomain: "mesh.test"}, plaintext, false, true},

		{"any identity", mesh.PolicySource{AnyIdentity: true}, request(far), true, true},
		{"any identity, plaintext", mesh.PolicySource{AnyIdentity: true}, plaintext, false, true},

		{"address", cidr("10.1.0.0/16"), request(curl), true, true},
		{"address, plaintext", cidr("10.1.0.0/16"), plaintext, true, true},
		{"other address", cidr("10.2.0.0/16"), request(curl), false, false},
		{"mapped address", cidr("10.1.0.0/16"), from("[::ffff:10.1.2.3]:1"), true, true},
		{"mapped prefix", cidr("::ffff:10.1.0.0/112"), request(curl), true, true},
		{"prefix with host bits", cidr("10.1.9.9/16"), request(curl), true, true},
		{"address with a zone", cidr("fe80::/10"), from("[fe80::1%eth0]:1"), true, true},
		{"every IPv6 address is no IPv4 address", cidr("::/0"), request(curl), false, false},
		{"unknown address", cidr("10.1.0.0/16"), nowhere, false, true},
		{"claimed address, from there", cidr("10.1.0.0/16"), claiming("10.1.9.9"), true, true},
		{"claimed address, from elsewhere", cidr("10.9.0.0/16"), claiming("10.9.1.1"), false, true},
		{"claimed to be elsewhere", cidr("10.1.0.0/16"), claiming("10.9.1.1"), false, true},
		{"claimed, and neither is there", cidr("10.2.0.0/16"), claiming("10.9.1.1"), false, false},
		{"claimed, mapped", cidr("10.9.0.0/16"), claiming("::ffff:10.9.1.1"), false, true},
		{"claimed, of another family", cidr("fd00::/8"), claiming("fd00::1"), false, true},

		{"both fields match", mesh.PolicySource{Identity: curl, CIDR: netip.MustParsePrefix("10.1.2.3/32")}, request(curl), true, true},
		{"address of two fields differs", mesh.PolicySource{Identity: curl, CIDR: netip.MustParsePrefix("10.1.2.4/32")}, request(curl), false, false},
		{"address rules out the plaintext", mesh.PolicySource{Identity: curl, CIDR: netip.MustParsePrefix("10.1.2.4/32")}, plaintext, false, false},
		{"empty", mesh.PolicySource{}, plaintext, true, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for action, want := range map[mesh.Action]bool{mesh.ActionAllow: tt.allow, mesh.ActionDeny: tt.deny} {
				e := Compile(mesh.PolicyDefaults{}, []*mesh.Policy{policy("p", action, toWeb, tt.source)})
				if got := e.Decide(tt.request).Policy == "p"; got != want {
					t.Errorf("%s: Decide matches: %v, want %v", action, got, want)
				}
				ex := e.Explain(tt.request)
				if got := ex.Decision.Policy == "p"; got != want {
					t.Errorf("%s: Explain matches: %v, want %v: %+v", action, got, want, ex)
				}
			}
		})
	}
}

func TestExplain(t *testing.T) {
	e := Compile(mesh.PolicyDefaults{Default: mesh.ActionDeny}, []*mesh.Policy{
		policy("to-db", mesh.ActionAllow, []mesh.PolicyTarget{{Service: name("db")}}),
		policy("to-web", mesh.ActionAllow, toWeb, mesh.PolicySource{Identity: curl}, mesh.PolicySource{Namespace: "ops"}),
		policy("admin", mesh.ActionAllow, []mesh.PolicyTarget{{Service: name("web"), Ports: []uint16{9000}}}),
		policy("no-dev", mesh.ActionDeny, nil, mesh.PolicySource{Namespace: "dev"}),
	})
	got := e.Explain(request(spiffeid.ID{}))
	want := []Step{
		{Policy: "no-dev", Action: mesh.ActionDeny, Outcome: OutcomeMatch, Why: "namespace dev cannot be ruled out"},
		{Policy: "to-db", Action: mesh.ActionAllow, Outcome: OutcomeNotSelected, Why: "is about other destinations"},
		{
			Policy: "to-web", Action: mesh.ActionAllow, Outcome: OutcomeNoMatch,
			Why: "identity " + curl.String() + " cannot be shown; namespace ops cannot be shown",
		},
		{Policy: "admin", Action: mesh.ActionAllow, Outcome: OutcomeNoMatch, Why: "selects the destination, not port 8080"},
	}
	if diff := cmp.Diff(want, got.Steps); diff != "" {
		t.Errorf("steps (-want +got):\n%s", diff)
	}
	if want := "denied: a deny policy matches (no-dev)"; got.Conclusion != want {
		t.Errorf("conclusion %q, want %q", got.Conclusion, want)
	}
	text, err := json.Marshal(got)
	if err != nil {
		t.Fatal(err)
	}
	if want := `"decision":{"allowed":false,"policy":"no-dev","reason":"denied_by_policy","audited":false}`; !strings.Contains(string(text), want) {
		t.Errorf("JSON %s lacks %s", text, want)
	}
}

func TestExplainAudit(t *testing.T) {
	e := Compile(mesh.PolicyDefaults{Default: mesh.ActionAllow}, []*mesh.Policy{
		audited(policy("d", mesh.ActionDeny, toWeb)),
	})
	want := "allowed: no policy decides, the default is allow; would be denied by d if audit-only policies were enforced"
	if got := e.Explain(request(curl)).Conclusion; got != want {
		t.Errorf("conclusion %q, want %q", got, want)
	}
}
