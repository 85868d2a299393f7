// SPDX-License-Identifier: Apache-2.0

// Package l4 relays bytes between an application's socket and a stream of a
// tunnel, or between two sockets, on event loops.
//
// A Relays hosts the connections of one loop. Those that arrive at a listener
// are taken by an opening, which asks a Router and tries its targets in turn;
// streams that arrive in a tunnel by an admission, which asks a Gate, and lines
// by an arrival, which asks a LineGate. Either becomes a relay (socket and
// stream), a wire (socket and line) or a pair (two sockets) once both ends stand,
// and is forgotten. A relay is one struct: while nothing moves it has no buffer,
// no goroutine and no timer.
//
// The package owns the faithful transport of what TCP can say: data, half-close
// in either direction, and reset. It must not know workloads, policy, services
// or how endpoints are chosen; a Session stands for all of that.
//
// # Copying
//
// From the socket, readv(2) puts bytes where the tunnel's records will be
// sealed. To the socket, payload is written from where it was decrypted;
// only what the socket doesn't take is copied, into chunks of the loop, and the
// flow-control window is given back as they drain. So a slow reader stalls its
// own stream and costs at most that stream's window. A line is not read while its
// application has some left over, and its application not while the line has.
package l4
