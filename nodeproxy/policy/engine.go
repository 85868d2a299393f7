// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/meshproxy/meshproxy/discovery/mesh"
)

// Request is a connection as its destination sees it.
type Request struct {
	// Identity is the verified identity of the peer; zero for plaintext.
	Identity spiffeid.ID
	// Source is the true address of the client, or that of who speaks for it.
	Source netip.AddrPort
	// Claimed is the address that Source says the client has, without proof; the
	// zero Addr if Source is the client.
	Claimed netip.Addr
	// Services are those that the dialled address and port serve.
	Services []mesh.Name
	Workload mesh.Name
	// Port is the workload's, not the service's.
	Port uint16
}

// Reason says which step of the rule decided. It is fit for a metric label.
type Reason string

// The reasons of a decision.
const (
	ReasonDenied         Reason = "denied_by_policy"
	ReasonAllowed        Reason = "allowed_by_policy"
	ReasonNotAllowed     Reason = "no_allow_policy_matches"
	ReasonOrderedDenied  Reason = "denied_by_precedence"
	ReasonOrderedAllowed Reason = "allowed_by_precedence"
	ReasonDefaultAllowed Reason = "allowed_by_default"
	ReasonDefaultDenied  Reason = "denied_by_default"
	// ReasonAuditOnly allows what would have been denied, because nothing is
	// enforced.
	ReasonAuditOnly Reason = "audit_only"
)

// Verdict is a decision's cause: the policy, unless no policy decided, and the
// step of the rule.
type Verdict struct {
	Policy string `json:"policy,omitempty"`
	Reason Reason `json:"reason"`
}

// Decision is what becomes of a request.
type Decision struct {
	Allowed bool `json:"allowed"`
	Verdict
	// Audited is set when audit-only changed the outcome; Audit then tells
	// what would have made it the opposite of Allowed.
	Audited bool    `json:"audited"`
	Audit   Verdict `json:"audit,omitzero"`
}

// Engine holds compiled policies. It is immutable: one engine may serve any
// number of goroutines, and a change of policy is a new engine.
type Engine struct {
	defaults mesh.PolicyDefaults
	policies []*mesh.Policy
	names    []string // of policies, by index
	ordered  []int32  // the indexes of those with a precedence, by rank
	enforced ruleset
	audit    ruleset
	audited  bool // audit holds rules
}

// Compile indexes the policies. Of several policies that decide alike, the
// first in the given order is the one that a Decision names.
func Compile(defaults mesh.PolicyDefaults, policies []*mesh.Policy) *Engine {
	e := &Engine{
		defaults: defaults,
		policies: slices.Clone(policies),
		names:    make([]string, len(policies)),
	}
	order := byPrecedence(policies)
	for i, p := range policies {
		e.names[i] = p.String()
		rules := &e.enforced
		if p.Audit {
			rules, e.audited = &e.audit, true
		}
		if p.Precedence == 0 {
			rules.add(int32(i), p)
		}
	}
	for rank, i := range order {
		p := policies[i]
		rules := &e.enforced
		if p.Audit {
			rules = &e.audit
		}
		rules.addOrdered(int32(rank), p)
	}
	e.ordered = order
	return e
}

// byPrecedence returns the indexes of the policies of the ordered list, in its
// order: of one precedence, those that deny go first.
func byPrecedence(policies []*mesh.Policy) []int32 {
	var order []int32
	for i, p := range policies {
		if p.Precedence != 0 {
			order = append(order, int32(i))
		}
	}
	slices.SortStableFunc(order, func(a, b int32) int {
		x, y := policies[a], policies[b]
		return cmp.Or(cmp.Compare(y.Precedence, x.Precedence), compareBool(y.Action != mesh.ActionAllow, x.Action != mesh.ActionAllow))
	})
	return order
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return 1
	}
	return -1
}

// Len is the number of policies.
func (e *Engine) Len() int { return len(e.policies) }

// Decide applies the rule of the package documentation. It does not allocate;
// when policies change, the caller asks the new engine about every open
// connection.
func (e *Engine) Decide(r Request) Decision {
	q := newQuery(&r)
	found := noHits
	e.enforced.find(&q, &found)
	d := e.conclude(found)
	wouldBe := d
	if e.audited {
		e.audit.find(&q, &found)
		wouldBe = e.conclude(found)
	}
	return applyAudit(e.defaults.Audit, d, wouldBe)
}

// conclude applies the steps of the rule to the policies found.
func (e *Engine) conclude(h hits) Decision {
	switch {
	case h.deny != none:
		return Decision{Verdict: Verdict{Policy: e.names[h.deny], Reason: ReasonDenied}}
	case h.ordered != none && e.policyAt(h.ordered).Action != mesh.ActionAllow:
		return Decision{Verdict: Verdict{Policy: e.names[e.ordered[h.ordered]], Reason: ReasonOrderedDenied}}
	case h.allow != none:
		return Decision{Allowed: true, Verdict: Verdict{Policy: e.names[h.allow], Reason: ReasonAllowed}}
	case h.selected:
		return Decision{Verdict: Verdict{Reason: ReasonNotAllowed}}
	case h.ordered != none:
		return Decision{Allowed: true, Verdict: Verdict{Policy: e.names[e.ordered[h.ordered]], Reason: ReasonOrderedAllowed}}
	case e.defaults.Default == mesh.ActionAllow:
		return Decision{Allowed: true, Verdict: Verdict{Reason: ReasonDefaultAllowed}}
	default:
		return Decision{Verdict: Verdict{Reason: ReasonDefaultDenied}}
	}
}

// policyAt returns the policy of the ordered list at the rank.
func (e *Engine) policyAt(rank int32) *mesh.Policy { return e.policies[e.ordered[rank]] }

// applyAudit merges the enforced decision with the one that would be made if
// nothing were audit-only.
func applyAudit(global bool, d, wouldBe Decision) Decision {
	if global && !d.Allowed {
		d = Decision{Allowed: true, Verdict: Verdict{Reason: ReasonAuditOnly}}
	}
	if wouldBe.Allowed != d.Allowed {
		d.Audited, d.Audit = true, wouldBe.Verdict
	}
	return d
}
