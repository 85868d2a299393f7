// SPDX-License-Identifier: Apache-2.0

// Package load is the benchmark's client and server: real sockets, driven so
// that they are never the bottleneck.
//
// A round trip between bare processes takes 20 µs, of which Go's scheduler
// would add several. Threads that ping are therefore locked and make their
// system calls without telling the scheduler (RawSyscall), with blocking
// sockets for one connection and an epoll loop for many. That needs a process
// of its own which doesn't collect garbage (Tune): nothing may want to stop
// such a thread.
//
// The client's first byte chooses what the server does with the connection,
// so that one address, and one listener of a proxy, is enough.
package load

import (
	"runtime"
	"runtime/debug"
)

// What the server does with a connection.
const (
	opEcho   = 'e' // returns messages of messageSize
	opSink   = 's' // reads
	opSource = 'g' // writes
)

// messageSize is that of a ping, in bytes.
const messageSize = 64

// bulkSize is how much one read or write of a bulk stream moves.
const bulkSize = 256 << 10

// Env has to be in the environment of a process that runs this package: a
// thread in a raw system call can't be preempted, only interrupted.
const Env = "GODEBUG=asyncpreemptoff=1"

// Tune prepares the process. Memory isn't collected from here on: what the
// roles need is allocated before they measure.
func Tune() {
	debug.SetGCPercent(-1)
	// Each thread in a raw system call keeps its P.
	runtime.GOMAXPROCS(16)
}
