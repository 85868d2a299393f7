// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"math"
	"net/netip"
	"slices"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/meshproxy/meshproxy/discovery/mesh"
)

// none is the index of no policy; greater than every other, so that the first
// policy is the minimum.
const none int32 = math.MaxInt32

// hits are the first policies that matched, and whether an allow policy
// selects the destination. ordered is a rank in the ordered list.
type hits struct {
	deny, allow, ordered int32
	selected             bool
}

var noHits = hits{deny: none, allow: none, ordered: none}

// ruleset finds rules by destination: under the service where a target names
// one, else under the workload, else everywhere.
type ruleset struct {
	services, workloads map[mesh.Name]*bucket
	everywhere          bucket
}

// bucket holds the rules of one destination.
type bucket struct {
	deny, allow table
	// ordered rules go by rank, those that deny and those that allow apart:
	// what is unknown counts as a match of the former only.
	orderedDeny, orderedAllow table
	// selected: an allow policy selects the destination whatever the
	// workload; selectedWorkloads: only on these workloads.
	selected          bool
	selectedWorkloads map[mesh.Name]struct{}
}

// rule is one source of a policy together with one target.
type rule struct {
	policy int32
	source *sourceRule
	target *targetRule
}

var (
	everySource = []mesh.PolicySource{{}}
	everyTarget = []mesh.PolicyTarget{{}}
)

func (rs *ruleset) add(policy int32, p *mesh.Policy) {
	rs.each(policy, p, func(b *bucket, t *targetRule) { b.selectFor(t) }, func(b *bucket) (allow, deny *table) {
		return &b.allow, &b.deny
	})
}

// addOrdered adds a policy of the ordered list, which selects nothing.
func (rs *ruleset) addOrdered(rank int32, p *mesh.Policy) {
	rs.each(rank, p, func(*bucket, *targetRule) {}, func(b *bucket) (allow, deny *table) {
		return &b.orderedAllow, &b.orderedDeny
	})
}

func (rs *ruleset) each(policy int32, p *mesh.Policy, selected func(*bucket, *targetRule), tables func(*bucket) (allow, deny *table)) {
	from, to := p.From, p.To
	if len(from) == 0 {
		from = everySource
	}
	if len(to) == 0 {
		to = everyTarget
	}
	sources := make([]sourceRule, len(from))
	for i := range from {
		sources[i] = newSourceRule(from[i])
	}
	targets := make([]targetRule, len(to))
	for i := range to {
		targets[i] = newTargetRule(to[i])
	}
	for t := range targets {
		b := rs.bucketFor(&targets[t])
		t := &targets[t]
		if p.Action == mesh.ActionAllow {
			selected(b, t)
		}
		allow, deny := tables(b)
		for s := range sources {
			r := rule{policy: policy, source: &sources[s], target: t}
			if p.Action == mesh.ActionAllow {
				allow.add(r)
			} else {
				deny.add(r)
				deny.addUnknown(r)
			}
		}
	}
}

func (rs *ruleset) bucketFor(t *targetRule) *bucket {
	switch (mesh.Name{}) {
	case t.service:
		if t.workload == (mesh.Name{}) {
			return &rs.everywhere
		}
		return bucketIn(&rs.workloads, t.workload)
	default:
		return bucketIn(&rs.services, t.service)
	}
}

func bucketIn(m *map[mesh.Name]*bucket, n mesh.Name) *bucket {
	if *m == nil {
		*m = make(map[mesh.Name]*bucket)
	}
	b := (*m)[n]
	if b == nil {
		b = &bucket{}
		(*m)[n] = b
	}
	return b
}

// selectFor records that an allow policy selects the target, whatever the
// port.
func (b *bucket) selectFor(t *targetRule) {
	if t.service == (mesh.Name{}) || t.workload == (mesh.Name{}) {
		b.selected = true
		return
	}
	if b.selectedWorkloads == nil {
		b.selectedWorkloads = make(map[mesh.Name]struct{})
	}
	b.selectedWorkloads[t.workload] = struct{}{}
}

// find lowers h to the first policies that match q.
func (rs *ruleset) find(q *query, h *hits) {
	rs.everywhere.find(q, h)
	if len(rs.workloads) > 0 {
		if b := rs.workloads[q.workload]; b != nil {
			b.find(q, h)
		}
	}
	if len(rs.services) > 0 {
		for _, s := range q.Services {
			if b := rs.services[fullName(s)]; b != nil {
				b.find(q, h)
			}
		}
	}
}

func (b *bucket) find(q *query, h *hits) {
	if !h.selected {
		h.selected = b.selected
		if len(b.selectedWorkloads) > 0 {
			_, ok := b.selectedWorkloads[q.workload]
			h.selected = h.selected || ok
		}
	}
	b.deny.find(q, true, &h.deny)
	b.allow.find(q, false, &h.allow)
	b.orderedDeny.find(q, true, &h.ordered)
	b.orderedAllow.find(q, false, &h.ordered)
}

// table finds rules by source. A rule stands in exactly one of the lists, the
// one of its most selective field, in the order of policies; fields beyond
// that are compared.
type table struct {
	identities   map[spiffeid.ID][]rule
	prefixes     map[string][]rule
	services     map[mesh.Name][]rule
	namespaces   map[string][]rule
	trustDomains map[string][]rule
	cidrs        map[netip.Prefix][]rule
	bits4, bits6 []int // the lengths that occur in cidrs
	rest         []rule

	// For deny policies: the rules under an identity field as a plaintext
	// connection meets them, without those that then mean the same, and the
	// rules under a CIDR for an unknown address.
	unidentified []rule
	plaintext    map[string]struct{} // the meanings in unidentified
	unaddressed  []rule
}

func (t *table) add(r rule) {
	s := r.source
	switch {
	case !s.identity.IsZero():
		push(&t.identities, s.identity, r)
	case s.prefix != "":
		push(&t.prefixes, s.prefix, r)
	case s.service != (mesh.Name{}):
		push(&t.services, s.service, r)
	case s.namespace != "":
		push(&t.namespaces, s.namespace, r)
	case s.trustDomain != "":
		push(&t.trustDomains, s.trustDomain, r)
	case s.cidr.IsValid():
		push(&t.cidrs, s.cidr, r)
		bits := &t.bits6
		if s.cidr.Addr().Is4() {
			bits = &t.bits4
		}
		if !slices.Contains(*bits, s.cidr.Bits()) {
			*bits = append(*bits, s.cidr.Bits())
		}
	default:
		t.rest = append(t.rest, r)
	}
}

// addUnknown records where a deny rule is found by queries that lack the field
// it stands under. Thousands of deny rules on identities for one destination
// come down to one rule about plaintext.
func (t *table) addUnknown(r rule) {
	s := r.source
	switch {
	case s.namesIdentity():
		key := fmt.Sprint(s.cidr, r.target.workload, r.target.ports)
		if _, ok := t.plaintext[key]; ok {
			return
		}
		if t.plaintext == nil {
			t.plaintext = make(map[string]struct{})
		}
		t.plaintext[key] = struct{}{}
		t.unidentified = append(t.unidentified, r)
	case s.cidr.IsValid():
		t.unaddressed = append(t.unaddressed, r)
	}
}

func push[K comparable](m *map[K][]rule, k K, r rule) {
	if *m == nil {
		*m = make(map[K][]rule)
	}
	(*m)[k] = append((*m)[k], r)
}

// find lowers first to the first policy that matches; unknown as in
// sourceRule.matches.
func (t *table) find(q *query, unknown bool, first *int32) {
	scan(t.rest, q, unknown, first)
	if q.identified {
		t.findIdentity(q, unknown, first)
	} else if unknown {
		scan(t.unidentified, q, unknown, first)
	}
	if q.source.IsValid() {
		t.findAddress(q.source, q, unknown, first)
		if q.claimed.IsValid() {
			t.findAddress(q.claimed, q, unknown, first)
		}
	} else if unknown {
		scan(t.unaddressed, q, unknown, first)
	}
}

func (t *table) findIdentity(q *query, unknown bool, first *int32) {
	if len(t.identities) > 0 {
		scan(t.identities[q.Identity], q, unknown, first)
	}
	if len(t.services) > 0 && q.peer != (mesh.Name{}) {
		scan(t.services[q.peer], q, unknown, first)
		scan(t.services[mesh.Name{Namespace: q.peer.Namespace, Name: anyService}], q, unknown, first)
	}
	if len(t.namespaces) > 0 && q.namespace != "" {
		scan(t.namespaces[q.namespace], q, unknown, first)
	}
	if len(t.trustDomains) > 0 {
		scan(t.trustDomains[q.trustDomain], q, unknown, first)
	}
	if len(t.prefixes) == 0 {
		return
	}
	// A prefix ends at a segment or with its slash: those are the only
	// substrings to look up.
	id := q.Identity.String()
	for i := range len(id) {
		if id[i] == '/' {
			scan(t.prefixes[id[:i]], q, unknown, first)
			scan(t.prefixes[id[:i+1]], q, unknown, first)
		}
	}
	scan(t.prefixes[id], q, unknown, first)
}

func (t *table) findAddress(a netip.Addr, q *query, unknown bool, first *int32) {
	bits := t.bits6
	if a.Is4() {
		bits = t.bits4
	}
	for _, n := range bits {
		if p, err := a.Prefix(n); err == nil {
			scan(t.cidrs[p], q, unknown, first)
		}
	}
}

// scan stops at the first match: rules are in the order of policies.
func scan(rules []rule, q *query, unknown bool, first *int32) {
	for i := range rules {
		r := &rules[i]
		if r.policy >= *first {
			return
		}
		if r.source.matches(q, unknown) && r.target.matches(q) {
			*first = r.policy
			return
		}
	}
}
