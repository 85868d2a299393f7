// SPDX-License-Identifier: Apache-2.0

package static

import (
	"fmt"
	"strings"

	"github.com/meshproxy/meshproxy/discovery/mesh"
	"github.com/meshproxy/meshproxy/discovery/yamlconf"
)

func (d *decoder) policy(m *yamlconf.Map) {
	p := &mesh.Policy{
		Name:   d.name(m),
		Action: either(m.Required("action"), "", mesh.ActionAllow, mesh.ActionDeny),
		Audit:  m.Get("audit").Bool(),
	}
	from, to := m.Get("from"), m.Get("to")
	if n := from.List(func(v yamlconf.Value) { p.From = append(p.From, policySource(v)) }); n == 0 && from.IsList() {
		from.Reject("found an empty list", "at least one entry, or no from for every source")
	}
	if n := to.List(func(v yamlconf.Value) { p.To = append(p.To, d.policyTarget(v, p.Namespace)) }); n == 0 && to.IsList() {
		to.Reject("found an empty list", "at least one entry, or no to for every destination")
	}
	if p.Name.Name == "" {
		return
	}
	if before, dup := d.policies[p.Name]; dup {
		m.Get("name").Rejectf("policy %q is there twice, first at %s", p.Name, before)
		return
	}
	d.policies[p.Name] = m.Value().Position()
	d.out.Policies = append(d.out.Policies, p)
}

func policySource(v yamlconf.Value) mesh.PolicySource {
	m := v.Map()
	defer m.Done()
	identity, prefix, domain := m.Get("identity"), m.Get("identityPrefix"), m.Get("trustDomain")
	anyone := m.Get("anyIdentity")
	s := mesh.PolicySource{
		Identity:    identity.Identity(),
		Namespace:   m.Get("namespace").Label(),
		TrustDomain: domain.TrustDomain().Name(),
		CIDR:        m.Get("cidr").Prefix(),
		AnyIdentity: anyone.Bool(),
	}
	if prefix.Present() {
		s.IdentityPrefix = identityPrefix(prefix)
	}
	switch {
	case !v.IsMap():
	case len(m.Keys()) == 0:
		v.Reject("found an empty entry, which would match every source",
			"at least one of identity, identityPrefix, namespace, trustDomain, cidr, anyIdentity; no from at all for every source")
	case identity.Present() && prefix.Present():
		prefix.Reject("found both identity and identityPrefix in one entry", "one of them, or two entries")
	case anyone.Present() && !s.AnyIdentity:
		anyone.Reject("found the boolean false, which would match nothing more or less", "true, or no anyIdentity")
	}
	if !s.Identity.IsZero() {
		never := ""
		switch {
		case s.TrustDomain != "" && s.Identity.TrustDomain().Name() != s.TrustDomain:
			never = "trustDomain " + s.TrustDomain
		case s.Namespace != "" && !strings.HasPrefix(s.Identity.Path(), "/ns/"+s.Namespace+"/"):
			never = "namespace " + s.Namespace
		}
		if never != "" {
			identity.Rejectf("%s is not of %s, so the entry can never match", s.Identity, never)
		}
	}
	return s
}

func identityPrefix(v yamlconf.Value) string {
	s := v.Text()
	rest, ok := strings.CutPrefix(s, "spiffe://")
	if s != "" && (!ok || rest == "" || rest[0] == '/' || strings.ContainsAny(rest, "*? \t")) {
		v.Reject(fmt.Sprintf("found %q", s), "the beginning of a SPIFFE ID, such as spiffe://example.org/ns/web/")
		return ""
	}
	return s
}

func (d *decoder) policyTarget(v yamlconf.Value, namespace string) mesh.PolicyTarget {
	m := v.Map()
	defer m.Done()
	var t mesh.PolicyTarget
	service, workload, list := m.Get("service"), m.Get("workload"), m.Get("ports")
	if service.Present() {
		t.Service = reference(service, namespace)
		if !t.Service.IsZero() && d.services[t.Service] == nil {
			d.warnf(service, "no service %q in the files; the policy applies if another source has it", t.Service)
		}
	}
	if workload.Present() {
		t.Workload = reference(workload, namespace)
	}
	t.Ports = ports(list)
	if list.IsList() && len(t.Ports) == 0 {
		list.Reject("found no port", "at least one port, or no ports for all")
	}
	if v.IsMap() && len(m.Keys()) == 0 {
		v.Reject("found an empty entry, which would match every destination",
			"at least one of service, workload, ports; no to at all for every destination")
	}
	return t
}

// authorization decodes the section that decides what no policy decides. It
// may be there once.
func (d *decoder) authorization(v yamlconf.Value) {
	if !v.Present() {
		return
	}
	m := v.Map()
	defer m.Done()
	a := &mesh.PolicyDefaults{
		Default: either(m.Required("default"), "", mesh.ActionAllow, mesh.ActionDeny),
		Audit:   m.Get("audit").Bool(),
	}
	if d.out.Defaults != nil {
		v.Rejectf("authorization is there twice, first at %s", d.authorizationAt)
		return
	}
	d.out.Defaults, d.authorizationAt = a, v.Position()
}
