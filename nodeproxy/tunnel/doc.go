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
// Then the descriptor moves to the loop, and package record takes over: up to
// sixteen records come in with one read(2) and are opened where they are, those
// of a turn leave with one write(2). Lines, which may be TLS 1.2 and resume
// sessions, stay with crypto/tls, which reads and writes memory.
//
// The package owns connections, their pooling, keep-alive, age and drain. It
// must not know workloads, policy, certificates' origin (it asks a
// ClientIdentity, and is given the server's tls.Config), nor application
// sockets.
package tunnel
