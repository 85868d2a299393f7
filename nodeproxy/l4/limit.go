// SPDX-License-Identifier: Apache-2.0

package l4

import (
	"errors"
	"sync/atomic"

	"github.com/meshproxy/meshproxy/nodeproxy/telemetry/reason"
)

// Limits are reached.
var (
	ErrConnections = reason.Wrap(reason.LimitWorkload, errors.New("workload has too many connections"))
	ErrMemory      = reason.Wrap(reason.LimitMemory, errors.New("workload has too much data buffered"))
)

// Limit bounds what the connections of one workload may take, over all loops.
// A nil Limit bounds nothing.
type Limit struct {
	maxConnections, maxBuffered atomic.Int64
	connections, buffered       atomic.Int64
}

// NewLimit makes a limit; 0 means none.
func NewLimit(connections int, buffered int64) *Limit {
	l := new(Limit)
	l.Set(connections, buffered)
	return l
}

// Set changes the limit. What is open stays open.
func (l *Limit) Set(connections int, buffered int64) {
	l.maxConnections.Store(int64(connections))
	l.maxBuffered.Store(buffered)
}

// Connections is the number of open connections.
func (l *Limit) Connections() int { return int(l.connections.Load()) }

// Buffered is the number of bytes of memory that data waits in.
func (l *Limit) Buffered() int64 { return l.buffered.Load() }

// Enter counts a connection that has an end at the workload besides the one whose
// Route has its limit, until Leave.
func (l *Limit) Enter() error { return l.enter() }

// Leave ends what Enter began.
func (l *Limit) Leave() { l.leave() }

func (l *Limit) enter() error {
	if l == nil {
		return nil
	}
	n, m := l.connections.Add(1), l.maxConnections.Load()
	if m > 0 && n > m {
		l.connections.Add(-1)
		return ErrConnections
	}
	return nil
}

func (l *Limit) leave() {
	if l != nil {
		l.connections.Add(-1)
	}
}

// buffer takes n bytes, or gives them back when n is negative.
func (l *Limit) buffer(n int) bool {
	if l == nil {
		return true
	}
	b, m := l.buffered.Add(int64(n)), l.maxBuffered.Load()
	if n > 0 && m > 0 && b > m {
		l.buffered.Add(int64(-n))
		return false
	}
	return true
}
