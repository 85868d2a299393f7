// SPDX-License-Identifier: Apache-2.0

// Package loop turns readiness of file descriptors into calls. A Loop owns
// descriptors and one goroutine; the protocol state machines that it hosts
// (relays, tunnels, HTTP) are called on that goroutine, one at a time, and need
// no locks among themselves.
//
// The package knows epoll, eventfd and time. It must not know what the bytes
// mean: nothing of meshes, TLS or HTTP.
//
// A turn is: wait for events, deliver them, run closures that other goroutines
// posted, fire timers, continue those who asked for another go (Again), and
// last call everybody who asked to be flushed (EndOfTurn). Each step does a
// bounded amount, so that a flood on one descriptor, a burst of closures or ten
// thousand due timers delay the others by a turn, not by the flood.
//
// # Rules for handlers
//
// Readiness is edge-triggered: a handler that stops reading before it has seen
// EAGAIN, end of file or an error must remember so and continue by itself, with
// Again. After PeerClosed it keeps reading until read returns 0.
//
// A handler does a bounded amount of work per call and never blocks.
//
// # Scheduling
//
// A loop with HoldProcessor keeps its P while it waits, see poller. GOMAXPROCS
// has to be larger than the number of such loops, or goroutines wait for a P
// for up to 10 ms.
//
// All methods belong to the loop's goroutine, save Post, Do, Close, Done and
// Stats, which may be called from anywhere.
package loop
