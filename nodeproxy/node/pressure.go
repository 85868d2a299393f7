// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"sync/atomic"
	"time"

	"github.com/meshproxy/meshproxy/nodeproxy/telemetry/reason"
	"github.com/meshproxy/meshproxy/sockmap/cgroup"
)

const (
	// pressureInterval is how often the memory in use is read. It is
	// restInterval after restAfter readings without a new connection: a node
	// that has nothing to do should do nothing. Where there is no limit, somebody
	// may set one: that is looked for every restWithoutLimit.
	pressureInterval = 100 * time.Millisecond
	restInterval     = time.Second
	restWithoutLimit = 10 * time.Second
	restAfter        = 10
	// perConnection is what a connection may take before the next reading:
	// two sockets with something in their buffers, its share of a handshake.
	perConnection = 32 << 10
)

// errShort: an open connection is worth more than one that can try again.
var errShort = reason.Wrap(reason.LimitMemory, errors.New("the node's memory is short"))

// pressure refuses new connections before the memory that the node may have
// ends: where it does, the kernel kills the node with all that are open.
type pressure struct {
	memory *cgroup.Memory
	// left is how many connections there is room for until the next reading.
	left atomic.Int64
	// resting says that it is long until the next reading; wake ends that.
	resting atomic.Bool
	wake    chan struct{}
	last    cgroup.Usage // of the goroutine that reads
	room    int64        // what left was then
}

// unbounded connections are as good as no bound.
const unbounded = 1 << 40

func (n *Node) startPressure(context.Context) error {
	m, err := cgroup.OwnMemory()
	if err != nil {
		n.log.Warn("find own memory limit; none is kept", "error", err)
		m = &cgroup.Memory{}
	}
	n.pressure = newPressure(m)
	return nil
}

func newPressure(m *cgroup.Memory) *pressure {
	p := &pressure{memory: m, wake: make(chan struct{}, 1)}
	p.read()
	return p
}

// shortage describes what new connections are refused for; nil when they are not.
func (p *pressure) shortage() error {
	if p.left.Load() > 0 {
		return nil
	}
	u := p.memory.Read()
	return fmt.Errorf("new connections are refused: %d of %d MiB of memory are used", u.Used>>20, u.Limit>>20)
}

// admit takes room for one connection. It may be called from any goroutine.
func (p *pressure) admit() error {
	if p.resting.Load() && p.resting.CompareAndSwap(true, false) {
		select {
		case p.wake <- struct{}{}:
		default:
		}
	}
	if p.left.Add(-1) < 0 {
		return errShort
	}
	return nil
}

// read finds out how much room there is: up to nine tenths of the limit.
func (p *pressure) read() {
	u := p.memory.Read()
	if u.Limit != p.last.Limit {
		p.tellCollector(u.Limit)
	}
	p.last = u
	p.room = unbounded
	if u.Limit > 0 {
		ceiling := int64(u.Limit / 10 * 9)
		p.room = max(0, ceiling-int64(u.Used)) / perConnection
	}
	p.left.Store(p.room)
}

// tellCollector lets garbage be collected ever more often rather than reach the
// limit: the rest of it is the kernel's, for sockets and maps. GOMEMLIMIT in the
// environment wins.
func (p *pressure) tellCollector(limit uint64) {
	if os.Getenv("GOMEMLIMIT") != "" || limit == 0 && p.last.Limit == 0 {
		return
	}
	if limit == 0 {
		debug.SetMemoryLimit(1<<63 - 1)
		return
	}
	debug.SetMemoryLimit(int64(limit / 10 * 7))
}

// watch reads until ctx is done.
func (p *pressure) watch(ctx context.Context) {
	timer := time.NewTimer(pressureInterval)
	defer timer.Stop()
	quiet := 0
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-p.wake:
			quiet = 0
		}
		if p.left.Load() != p.room {
			quiet = 0
		}
		p.read()
		quiet++
		timer.Reset(p.until(quiet))
	}
}

// until is the time to the next reading, after so many without a connection.
func (p *pressure) until(quiet int) time.Duration {
	if quiet < restAfter || p.last.Limit > 0 && p.last.Used > p.last.Limit/2 {
		return pressureInterval
	}
	p.resting.Store(true)
	if p.last.Limit == 0 {
		return restWithoutLimit
	}
	return restInterval
}

// bufferLimit bounds what waits for one workload's slow readers: all it may have,
// or a quarter of what the node has.
func (p *pressure) bufferLimit() int64 {
	if u := p.memory.Read(); u.Limit > 0 {
		return min(bufferedPerWorkload, int64(u.Limit/4))
	}
	return bufferedPerWorkload
}
