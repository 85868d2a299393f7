// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"time"
)

// beginDrain takes nothing new. Capture is told first that the proxy goes, so
// that new connections are refused at once or go direct, as each workload wants
// it.
func (n *Node) beginDrain() {
	if n.draining.Swap(true) {
		return
	}
	if err := n.manager.Stopping(); err != nil {
		n.log.Debug("notify service manager", "error", err)
	}
	if err := n.capture.Retire(); err != nil {
		n.log.Warn("retire", "error", err)
	}
	for _, w := range n.loops {
		w.drain()
	}
	n.tunnels.Leave()
	n.lines.Leave()
	if !n.relieved() {
		n.sockets.forgetMesh()
	}
}

// drain lets open connections finish, for as long as is configured. running ends
// when the process is told to.
func (n *Node) drain(running context.Context) {
	if !n.draining.Load() && n.manager.Keeps() {
		n.drainForRestart()
		return
	}
	n.beginDrain()
	limit := n.settingsFile().DrainTimeout
	n.log.Info("draining", "timeout", limit, "connections", n.open())
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	if n.relieved() {
		n.tasks.Go(func() { n.reportDrain(ctx) })
		n.tasks.Go(func() { n.cutDrainShort(ctx, running, cancel) })
	}
	if err := n.tunnels.Drain(ctx); err != nil {
		n.log.Info("drain timeout is over", "error", err)
	}
	if err := n.lines.Drain(ctx); err != nil {
		n.log.Info("drain timeout is over", "error", err)
	}
	n.awaitIdle(ctx)
}

// open is the number of connections that this process still has, and of queries
// that it has not answered.
func (n *Node) open() (open int) {
	for _, w := range n.loops {
		open += w.open()
	}
	return open + n.resolver.Pending()
}

// awaitIdle waits until no connection is open or ctx ends.
func (n *Node) awaitIdle(ctx context.Context) {
	if !n.await(ctx, func() bool { return n.open() == 0 }) {
		n.log.Warn("closing connections that did not finish", "connections", n.open())
	}
}

// reportDrain tells the process that serves now how this one is doing.
func (n *Node) reportDrain(ctx context.Context) {
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	last := -1
	for {
		if open := n.open(); open != last {
			last = open
			if n.upgrades.after.Draining(open) != nil {
				return // it is gone, or gone on
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// cutDrainShort ends the drain of a process that is told to stop while the one
// that serves is gone: the service manager starts it anew, and waits for this
// one.
func (n *Node) cutDrainShort(ctx, running context.Context, cancel func()) {
	for _, both := range []<-chan struct{}{running.Done(), n.upgrades.after.Gone()} {
		select {
		case <-both:
		case <-ctx.Done():
			return
		}
	}
	cancel()
}
