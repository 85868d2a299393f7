// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/meshproxy/meshproxy/discovery/mesh"
)

// Outcome is what became of one policy.
type Outcome string

// The outcomes of a policy.
const (
	OutcomeNotSelected Outcome = "not_selected" // another destination
	OutcomeNoMatch     Outcome = "no_match"     // this destination, another source or port
	OutcomeMatch       Outcome = "match"
)

// Step is one policy, considered.
type Step struct {
	Policy string      `json:"policy"`
	Action mesh.Action `json:"action"`
	Audit  bool        `json:"audit,omitempty"`
	// Precedence is that of a policy of the ordered list.
	Precedence int     `json:"precedence,omitempty"`
	Outcome    Outcome `json:"outcome"`
	Why        string  `json:"why"`
}

// Explanation is a decision and the way to it.
type Explanation struct {
	Decision Decision `json:"decision"`
	// Steps has the deny policies, then those of the ordered list, then the
	// others, each in their order.
	Steps []Step `json:"steps"`
	// Conclusion is the rule that decided, in a sentence.
	Conclusion string `json:"conclusion"`
}

// Explain comes to Decide's decision by asking every policy in turn. It reads
// the policies themselves, not the index: the two check each other.
func (e *Engine) Explain(r Request) Explanation {
	q := newQuery(&r)
	enforced, all := noHits, noHits
	var denies, others []Step
	ranked := make([]Step, len(e.ordered))
	ranks := make(map[int32]int32, len(e.ordered))
	for rank, i := range e.ordered {
		ranks[i] = int32(rank)
	}
	for i, p := range e.policies {
		step := explainPolicy(p, &q)
		step.Policy = e.names[i]
		if rank, ok := ranks[int32(i)]; ok {
			step.Precedence = p.Precedence
			ranked[rank] = step
			all.noteOrdered(rank, step.Outcome)
			if !p.Audit {
				enforced.noteOrdered(rank, step.Outcome)
			}
			continue
		}
		all.note(int32(i), p.Action, step.Outcome)
		if !p.Audit {
			enforced.note(int32(i), p.Action, step.Outcome)
		}
		if p.Action == mesh.ActionAllow {
			others = append(others, step)
		} else {
			denies = append(denies, step)
		}
	}
	d := applyAudit(e.defaults.Audit, e.conclude(enforced), e.conclude(all))
	return Explanation{
		Decision:   d,
		Steps:      slices.Concat(denies, ranked, others),
		Conclusion: conclusion(d),
	}
}

// noteOrdered adds the outcome of a policy of the ordered list.
func (h *hits) noteOrdered(rank int32, o Outcome) {
	if o == OutcomeMatch {
		h.ordered = min(h.ordered, rank)
	}
}

// note adds the outcome of a policy.
func (h *hits) note(i int32, action mesh.Action, o Outcome) {
	if action == mesh.ActionAllow {
		h.selected = h.selected || o != OutcomeNotSelected
		if o == OutcomeMatch {
			h.allow = min(h.allow, i)
		}
	} else if o == OutcomeMatch {
		h.deny = min(h.deny, i)
	}
}

func explainPolicy(p *mesh.Policy, q *query) Step {
	step := Step{Action: p.Action, Audit: p.Audit}
	selected, onPort := explainTargets(p.To, q)
	switch {
	case !selected:
		step.Outcome, step.Why = OutcomeNotSelected, "is about other destinations"
		return step
	case !onPort:
		step.Outcome = OutcomeNoMatch
		step.Why = fmt.Sprintf("selects the destination, not port %d", q.Port)
		return step
	case len(p.From) == 0:
		step.Outcome, step.Why = OutcomeMatch, "matches every source"
		return step
	}
	var mismatches []string
	for _, s := range p.From {
		ok, why := explainSource(s, q, p.Action != mesh.ActionAllow)
		if ok {
			step.Outcome, step.Why = OutcomeMatch, why
			return step
		}
		if !slices.Contains(mismatches, why) {
			mismatches = append(mismatches, why)
		}
	}
	step.Outcome, step.Why = OutcomeNoMatch, strings.Join(mismatches, "; ")
	return step
}

func explainTargets(targets []mesh.PolicyTarget, q *query) (selected, onPort bool) {
	if len(targets) == 0 {
		return true, true
	}
	for _, t := range targets {
		if t.Workload != (mesh.Name{}) && fullName(t.Workload) != q.workload {
			continue
		}
		if t.Service != (mesh.Name{}) && !q.serves(fullName(t.Service)) {
			continue
		}
		selected = true
		onPort = onPort || len(t.Ports) == 0 || slices.Contains(t.Ports, q.Port)
	}
	return selected, onPort
}

// check is one field of a source: known says whether the query can tell.
type check struct {
	what      string
	known, ok bool
}

// explainSource asks the fields that are set. In a deny policy, what is not
// known counts as a match.
func explainSource(s mesh.PolicySource, q *query, deny bool) (bool, string) {
	var matched []string
	for _, c := range sourceChecks(s, q) {
		switch {
		case !c.known && deny:
			matched = append(matched, c.what+" cannot be ruled out")
		case !c.known:
			return false, c.what + " cannot be shown"
		case !c.ok:
			return false, c.what + " does not match"
		default:
			matched = append(matched, c.what+" matches")
		}
	}
	if len(matched) == 0 {
		return true, "matches every source"
	}
	return true, strings.Join(matched, ", ")
}

func sourceChecks(s mesh.PolicySource, q *query) []check {
	var checks []check
	add := func(set bool, what string, known bool, ok func() bool) {
		if set {
			checks = append(checks, check{what, known, known && ok()})
		}
	}
	id, plaintext := q.Identity, q.Identity.IsZero()
	within := containsMapped(s.CIDR, q.source)
	known := q.knows(within, containsMapped(s.CIDR, q.claimed))
	add(s.CIDR.IsValid(), fmt.Sprintf("address %v", s.CIDR), known, func() bool { return within })
	add(!s.Identity.IsZero(), fmt.Sprintf("identity %v", s.Identity), !plaintext,
		func() bool { return id == s.Identity })
	add(s.IdentityPrefix != "", fmt.Sprintf("identity prefix %v", s.IdentityPrefix), !plaintext,
		func() bool {
			whole := strings.TrimSuffix(s.IdentityPrefix, "/") + "/"
			return id.String() == s.IdentityPrefix || strings.HasPrefix(id.String(), whole)
		})
	add(s.Service.Name != "", fmt.Sprintf("service %v of any datacenter", s.Service), !plaintext,
		func() bool { return isService(identityService(id), fullName(s.Service)) })
	if want := partitionOf(s); want != anyPartition && (s.Partition != "" || identityPartition(id) != want) {
		add(true, fmt.Sprintf("partition %v", want), !plaintext, func() bool { return identityPartition(id) == want })
	}
	add(s.Namespace != "", fmt.Sprintf("namespace %v", s.Namespace), !plaintext,
		func() bool { return strings.HasPrefix(id.Path()+"/", "/ns/"+s.Namespace+"/") })
	add(s.TrustDomain != "", fmt.Sprintf("trust domain %v", s.TrustDomain), !plaintext,
		func() bool { return id.TrustDomain().Name() == strings.TrimPrefix(s.TrustDomain, "spiffe://") })
	add(s.AnyIdentity, "any identity", !plaintext, func() bool { return true })
	return checks
}

// containsMapped is Contains that takes an IPv4 address for its mapped form
// too.
func containsMapped(p netip.Prefix, a netip.Addr) bool {
	return p.Contains(a) || a.Is4() && p.Bits() >= 96 && p.Contains(netip.AddrFrom16(a.As16()))
}

func conclusion(d Decision) string {
	text := map[Reason]string{
		ReasonDenied:         "denied: a deny policy matches",
		ReasonAllowed:        "allowed: no deny policy matches, an allow policy does",
		ReasonOrderedDenied:  "denied: of the policies with a precedence that match, the first one denies",
		ReasonOrderedAllowed: "allowed: of the policies with a precedence that match, the first one allows",
		ReasonNotAllowed:     "denied: allow policies select this destination and none matches",
		ReasonDefaultAllowed: "allowed: no policy decides, the default is allow",
		ReasonDefaultDenied:  "denied: no policy decides, the default is deny",
		ReasonAuditOnly:      "allowed: authorization is audit-only",
	}[d.Reason]
	if d.Policy != "" {
		text += " (" + d.Policy + ")"
	}
	if !d.Audited {
		return text
	}
	if d.Allowed {
		text += "; would be denied"
	} else {
		text += "; would be allowed"
	}
	if d.Audit.Policy != "" {
		text += " by " + d.Audit.Policy
	}
	return text + " if audit-only policies were enforced"
}
