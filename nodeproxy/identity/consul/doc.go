// SPDX-License-Identifier: Apache-2.0

// Package consul gives workloads the leaves of Consul's Connect CA, and the
// node its roots, through the agent of this node.
//
// A workload's identity is that of a Consul service:
// spiffe://<cluster>.consul/ns/default/dc/dc1/svc/web. The agent makes key and
// request, and keeps the leaf; whoever may ask the agent for it has it. The
// trust domain is learned from the roots and never guessed.
//
// # Keeping leaves up to date
//
// Roots have a blocking query of their own. A leaf has one only while it may
// change: the agent renews it at a moment of its choice between 60 and 90 % of
// its lifetime, and after a change of the signing root (agent/leafcert of
// Consul). Before that, asking would cost a connection of the 200 that an agent
// allows one client, for days. When more leaves may change than there are
// connections for, they take turns.
//
// First leaves are asked for a few at a time, since a CA signs no more than 50
// per second by default, for all its agents. Who is told to come back later
// does so at a random moment within a window that grows, which spreads the
// nodes of a mesh that start at once.
//
// While the agent is away, leaves and roots are the last ones. A node that
// starts before its agent has no leaves, and gets them when it is there.
package consul
