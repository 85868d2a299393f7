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
	// Precedence, if not 0, makes the policy one of an ordered list: of those
	// in it that match a connection, the one with the highest number speaks
	// for all of them, whatever its action. Consul's intentions are such.
	Precedence int `json:"precedence,omitempty"`
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
	// Service matches identities of Consul's form,
	// "/ns/<namespace>/dc/<datacenter>/svc/<name>", in any datacenter; the
	// name "*" matches every service of the namespace.
	Service Name `json:"service,omitzero"`
	// Partition matches identities of that admin partition of Consul's,
	// "/ap/<partition>/ns/...", or those of other forms if it is "default"; "*"
	// matches all. Empty means "*", with a Service "default".
	Partition string `json:"partition,omitempty"`
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
