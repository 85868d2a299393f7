// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"net/netip"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Action is what a policy does with what it matches.
type Action string

// The actions of a policy.
const (
	ActionAllow Action = "allow"
	ActionDeny  Action = "deny"
)

// Policy allows or denies connections at their destination. Deny policies are
// looked at first.
type Policy struct {
	Name
	Source string `json:"source,omitempty"`
	Action Action `json:"action,omitempty"`
	// From matches the source; any entry suffices, none means every source.
	From []PolicySource `json:"from,omitempty"`
	// To matches the destination; any entry suffices, none means every
	// destination.
	To []PolicyTarget `json:"to,omitempty"`
	// Audit only reports what the policy would have denied or allowed; it
	// decides nothing.
	Audit bool `json:"audit,omitempty"`
}

// PolicySource matches where a connection comes from. All fields that are set
// must match. A plaintext connection has no identity: an identity field never
// matches it in an allow policy, and always does in a deny policy.
type PolicySource struct {
	Identity spiffeid.ID `json:"identity,omitzero"`
	// IdentityPrefix matches identities by string prefix; a prefix that does
	// not end in "/" ends at a path segment.
	IdentityPrefix string `json:"identityPrefix,omitempty"`
	// Namespace matches the "/ns/<namespace>/" part of the identity.
	Namespace string `json:"namespace,omitempty"`
	// TrustDomain matches every identity of the trust domain.
	TrustDomain string `json:"trustDomain,omitempty"`
	// CIDR matches the true source address.
	CIDR netip.Prefix `json:"cidr,omitzero"`
	// AnyIdentity matches any verified identity when true.
	AnyIdentity bool `json:"anyIdentity,omitempty"`
}

// PolicyTarget matches a destination. All fields that are set must match.
type PolicyTarget struct {
	Service  Name `json:"service,omitzero"`
	Workload Name `json:"workload,omitzero"`
	// Ports are those of the workload, not of the service.
	Ports []uint16 `json:"ports,omitempty"`
}

// PolicyDefaults decide what no policy decides.
type PolicyDefaults struct {
	Default Action `json:"default,omitempty"`
	// Audit makes every denial, the default one included, a report only.
	Audit bool `json:"audit,omitempty"`
}
