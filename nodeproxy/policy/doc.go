// SPDX-License-Identifier: Apache-2.0

// Package policy decides whether a connection may reach a workload of this
// node.
//
// It owns the meaning of mesh.Policy: how policies combine, what plaintext
// counts as, what audit-only does. It must not know connections, sockets or
// certificates; the caller brings verified facts in a Request.
//
// # The rule
//
// A policy selects a destination when one of its targets names that service
// and workload, or when it has no targets. It matches a request when it
// selects the destination, one of its targets includes the port, and one of
// its sources (none means every source) matches. Then, in this order:
//
//  1. If a deny policy matches, the connection is denied.
//  2. Of the policies with a precedence that match, the one with the highest
//     speaks for all of them; of equals, one that denies. If it denies, the
//     connection is denied.
//  3. If an allow policy without a precedence matches, the connection is
//     allowed.
//  4. If an allow policy without a precedence selects the destination, the
//     connection is denied: who writes down one permitted client means that
//     the others are not. As with ztunnel, ports do not limit the selection:
//     allowing port 8080 of a workload closes its other ports.
//  5. If step 2 found a policy, which then allows, the connection is allowed.
//  6. The configured default decides. A default that is neither allow nor
//     deny is deny.
//
// Precedence is how Consul's intentions work, where an exact rule overrides a
// wildcard whatever either says. A source that delivers such a list ends it
// with its own default. Two lists, or a list and other policies, meet at a
// destination only where an operator wrote both; then each can close what the
// other leaves open.
//
// So "allow by default" means: destinations that no allow policy selects are
// open. The namespace of a policy is part of its name and limits nothing. An
// action that is neither allow nor deny denies.
//
// # What is not known
//
// An allow policy needs proof, a deny policy needs disproof. A plaintext
// connection has no identity, so a source with an identity field never matches
// it in an allow policy and always does in a deny policy (as far as that field
// goes): a deny rule that a client escapes by showing no certificate would be
// none. Where plaintext clients must get in beside such a rule, the rule is
// narrowed by CIDR. (ztunnel lets plaintext pass a deny rule on principals and
// offers notPrincipals to close the hole; here it is closed from the start.)
// An unknown source address is treated likewise, and so is one that a peer only
// claims for its client, where it matters whether that is so: an allow rule on
// addresses wants the peer's own address and the claimed one in its network, a
// deny rule one of them.
//
// A source's namespace is the leading "/ns/<namespace>" of the identity's path
// in any trust domain that the node trusts; with federated trust domains, name
// the trust domain too.
//
// # Audit
//
// A policy with Audit set decides nothing, nor does it select. With
// PolicyDefaults.Audit no denial is carried out at all. In both cases the
// decision carries what would have been decided had everything been enforced,
// when that differs.
package policy
