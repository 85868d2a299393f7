// SPDX-License-Identifier: Apache-2.0

// Package tunnel carries streams between nodes: HTTP/2 CONNECT (package h2) in
// mutual TLS 1.3 over TCP, on event loops.
//
// A Carrier is what one loop needs for that. A Pool opens streams from it,
// sharing connections by Key; a Server takes connections for all loops and asks
// an Acceptor about each stream. What a stream's bytes are for is the business
// of whoever implements Waiter or Acceptor.
//
// # How TLS meets the loop
//
// The handshake runs on an ordinary goroutine with ordinary blocking reads.
// Then the descriptor moves to the loop, and crypto/tls reads and writes memory:
// records of a turn are collected and leave with one write(2), up to sixteen
// come in with one read(2). Alerts, KeyUpdate and tickets stay the business of
// crypto/tls.
//
// The package owns connections, their pooling, keep-alive, age and drain. It
// must not know workloads, policy, certificates' origin (it asks a
// ClientIdentity, and is given the server's tls.Config), nor application
// sockets.
package tunnel
