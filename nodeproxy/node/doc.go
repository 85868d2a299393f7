// SPDX-License-Identifier: Apache-2.0

// Package node wires a node together: configuration, discovery, identity,
// capture, loops, tunnels, relays, DNS and the admin interface. It is the one
// place that knows them all; each of them knows at most the model.
//
// node.go reads from top to bottom as the way of a connection. Decisions live
// in router.go (outbound) and acceptor.go (inbound), what the kernel is told in
// capturestate.go.
package node
