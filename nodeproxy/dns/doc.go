// SPDX-License-Identifier: Apache-2.0

// Package dns answers the DNS queries of captured workloads: names of the mesh
// with virtual IPs, everything else with what the node's resolvers say.
//
// It owns the protocol on both sides. It must not know how names and addresses
// come about (Names tells), how queries are captured, or in which namespaces
// its listeners are.
//
// Queries for other names travel as they came, byte for byte but for the id,
// and so do their answers: options and record types that this package has
// never heard of pass. For the same reason nothing is cached here. Node
// resolvers cache already, and a second cache would have to get right what
// they do (RFC 2308, RFC 9520, client subnets, DNSSEC flags).
//
// The transport is not miekg/dns's Server: that one starts a goroutine for each
// datagram however many there are, handles the queries of a connection one by
// one, and spins when descriptors run out.
package dns

import "errors"

var (
	// ErrClosed means that the server has been closed.
	ErrClosed = errors.New("DNS server is closed")
	// ErrUnspecified means that a listener is not bound to one address.
	// Answers must come from the address that was asked, and the server must
	// know its own addresses so as never to forward to itself.
	ErrUnspecified = errors.New("listener is not bound to one address")

	errNoUpstream = errors.New("no resolver to forward to")
	errMismatch   = errors.New("answer does not belong to the query")
)
