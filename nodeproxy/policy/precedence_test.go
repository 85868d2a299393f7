// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/meshproxy/meshproxy/discovery/mesh"
)

func ranked(precedence int, p *mesh.Policy) *mesh.Policy {
	p.Precedence = precedence
	return p
}

func consulSource(service string) mesh.PolicySource { return mesh.PolicySource{Service: name(service)} }

// TestPrecedence has lists as Consul's intentions make them: 9 for exact to
// exact, 8 for any to exact, 6 for exact to any, 5 for any to any, and 1 for
// the default.
func TestPrecedence(t *testing.T) {
	api, apiElsewhere := id("/ns/default/dc/dc1/svc/api"), id("/ns/default/dc/dc2/svc/api")
	ops, apiOfDev := id("/ns/default/dc/dc1/svc/ops"), id("/ns/dev/dc/dc1/svc/api")
	allow, deny := mesh.ActionAllow, mesh.ActionDeny
	list := []*mesh.Policy{
		ranked(1, policy("default", deny, toWeb)),
		ranked(5, policy("any-any", allow, toWeb, consulSource("*"))),
		ranked(6, policy("ops-any", allow, toWeb, consulSource("ops"))),
		ranked(8, policy("any-web", deny, toWeb, consulSource("*"))),
		ranked(9, policy("api-web", allow, toWeb, consulSource("api"))),
	}
	openByDefault := []*mesh.Policy{
		ranked(9, policy("api-web", deny, toWeb, consulSource("api"))),
		ranked(1, policy("default", allow, toWeb)),
	}
	for _, tt := range []struct {
		name     string
		from     spiffeid.ID
		policies []*mesh.Policy
		want     Decision
	}{
		{"exact allow before a wildcard deny", api, list, Decision{Allowed: true, Verdict: by("api-web", ReasonOrderedAllowed)}},
		{"any datacenter", apiElsewhere, list, Decision{Allowed: true, Verdict: by("api-web", ReasonOrderedAllowed)}},
		{"wildcard deny before a lower allow", ops, list, Decision{Verdict: by("any-web", ReasonOrderedDenied)}},
		{"another namespace is another service", apiOfDev, list, Decision{Verdict: by("default", ReasonOrderedDenied)}},
		{"an identity of another form", curl, list, Decision{Verdict: by("default", ReasonOrderedDenied)}},
		{"plaintext meets the first deny", spiffeid.ID{}, list, Decision{Verdict: by("any-web", ReasonOrderedDenied)}},
		{"default allow", ops, openByDefault, Decision{Allowed: true, Verdict: by("default", ReasonOrderedAllowed)}},
		{"exact deny before the default", api, openByDefault, Decision{Verdict: by("api-web", ReasonOrderedDenied)}},
		{"plaintext cannot disprove a deny", spiffeid.ID{}, openByDefault, Decision{Verdict: by("api-web", ReasonOrderedDenied)}},
		{
			"of equals, deny", api,
			[]*mesh.Policy{ranked(9, policy("a", allow, toWeb)), ranked(9, policy("d", deny, toWeb))},
			Decision{Verdict: by("d", ReasonOrderedDenied)},
		},
		{
			"a deny without precedence closes what the list opens", api,
			append([]*mesh.Policy{policy("file", deny, toWeb, mesh.PolicySource{AnyIdentity: true})}, list...),
			Decision{Verdict: by("file", ReasonDenied)},
		},
		{
			"an allow without precedence does not open what the list closes", ops,
			append([]*mesh.Policy{policy("file", allow, toWeb)}, list...),
			Decision{Verdict: by("any-web", ReasonOrderedDenied)},
		},
		{
			"an allow without precedence for others closes what the list opens", api,
			append([]*mesh.Policy{policy("file", allow, toWeb, consulSource("ops"))}, list...),
			Decision{Verdict: by("", ReasonNotAllowed)},
		},
		{
			"audit-only in the list decides nothing", api,
			[]*mesh.Policy{ranked(9, audited(policy("api-web", deny, toWeb, consulSource("api")))), ranked(1, policy("default", allow, toWeb))},
			Decision{Allowed: true, Verdict: by("default", ReasonOrderedAllowed), Audited: true, Audit: by("api-web", ReasonOrderedDenied)},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := Compile(mesh.PolicyDefaults{Default: mesh.ActionAllow}, tt.policies)
			r := request(tt.from)
			if diff := cmp.Diff(tt.want, e.Decide(r)); diff != "" {
				t.Errorf("decision (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.want, e.Explain(r).Decision); diff != "" {
				t.Errorf("explanation (-want +got):\n%s", diff)
			}
		})
	}
}

func TestIdentityService(t *testing.T) {
	for path, want := range map[string]mesh.Name{
		"/ns/default/dc/dc1/svc/web":   {Namespace: "default", Name: "web"},
		"/ns/dev/dc/east/svc/web":      {Namespace: "dev", Name: "web"},
		"/ns/default/sa/web":           {},
		"/ns/default/dc/dc1/svc/web/x": {},
		"/ns/default/dc/a/b/svc/web":   {},
		"/ap/x/ns/default/dc/a/svc/b":  {Namespace: "default", Name: "b"},
		"/ap/x":                        {},
		"/agent/client/dc/a/id/b":      {},
	} {
		if got := identityService(id(path)); got != want {
			t.Errorf("%s is service %+v, want %+v", path, got, want)
		}
	}
}

// TestPartition: a service without a partition is one of the default partition.
func TestPartition(t *testing.T) {
	web := mesh.Name{Name: "web"}
	home, east := "/ns/default/dc/dc1/svc/web", "/ap/east/ns/default/dc/dc1/svc/web"
	for _, tt := range []struct {
		source     mesh.PolicySource
		home, east bool
	}{
		{mesh.PolicySource{Service: web}, true, false},
		{mesh.PolicySource{Service: web, Partition: "default"}, true, false},
		{mesh.PolicySource{Service: web, Partition: "east"}, false, true},
		{mesh.PolicySource{Service: web, Partition: "*"}, true, true},
		{mesh.PolicySource{Partition: "east", AnyIdentity: true}, false, true},
		{mesh.PolicySource{AnyIdentity: true}, true, true},
	} {
		p := &mesh.Policy{Name: web, Action: mesh.ActionDeny, Precedence: 9, From: []mesh.PolicySource{tt.source}}
		e := Compile(mesh.PolicyDefaults{Default: mesh.ActionAllow}, []*mesh.Policy{p})
		for path, denied := range map[string]bool{home: tt.home, east: tt.east} {
			r := Request{Identity: id(path)}
			if e.Decide(r).Allowed == denied || e.Explain(r).Decision.Allowed == denied {
				t.Errorf("%+v denies %s: want %t", tt.source, path, denied)
			}
		}
	}
}
