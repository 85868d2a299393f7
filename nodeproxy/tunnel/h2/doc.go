// SPDX-License-Identifier: Apache-2.0

// Package h2 is the HTTP/2 (RFC 9113) of an HBONE tunnel, client and server, as
// a state machine that is fed with bytes.
//
// It owns frames, streams, flow control, header blocks, limits and the order of
// what is sent. It must not know sockets, TLS, goroutines, timers, nor what a
// workload is: its owner (package tunnel) feeds it plaintext, takes plaintext
// from it, and lends it the memory that output needs while there is any.
//
// # Turns
//
// A Conn and its Streams belong to one event loop; nothing here is safe for
// concurrent use. In a turn of the loop the owner
//
//   - calls Conn.Feed with whatever plaintext arrived, in any split. DATA
//     payload is handed to the stream's Sink in place and is never buffered here;
//   - lets relays send: Stream.Reserve gives slots inside the connection's batch
//     that readv(2) may fill directly, Stream.Commit turns them into DATA frames;
//   - calls Conn.WriteTo with the tls.Conn at the end of the turn. Each Write is
//     the plaintext of exactly one TLS record.
//
// One record carries one full DATA frame: 9 bytes of frame header and 16375 of
// payload are the 16384 bytes that a record may hold. Frames of 16384 bytes would
// straddle records and cost a third of the throughput.
//
// # Callbacks
//
// Sink is called from inside Feed, WriteTo, Drain, Fail and Close only, never from
// the methods of Stream: a relay that resets its stream is not called back for it.
// Of Events, OnOutput, OnFull and OnRelease may come from any method, OnDrained
// from what releases a stream. Inside a callback every method may be called except
// Feed, Start, and WriteTo (allowed in OnFull alone; Sink.Writable of other streams
// may then be called from inside a Stream's Reserve or Write).
//
// # Memory
//
// An idle stream is one Stream and a slot of the table. An idle connection is one
// Conn, plus an HPACK decoder once the peer has sent a header block that needs one.
package h2
