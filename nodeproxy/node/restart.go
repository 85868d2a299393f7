// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"os"
	"time"

	"github.com/meshproxy/meshproxy/nodeproxy/handover"
	"github.com/meshproxy/meshproxy/nodeproxy/telemetry"
	"github.com/meshproxy/meshproxy/nodeproxy/tunnel"
	"github.com/meshproxy/meshproxy/systemd"
)

// restartTail is what connections get that were accepted while the others
// drained. Attempts wait meanwhile, so it is short.
const restartTail = time.Second

// inheritStored takes up what the service manager kept over a restart.
func (n *Node) inheritStored() error {
	stored, err := systemd.Stored()
	if err != nil {
		n.log.Warn("read the descriptor store", "error", err)
	}
	if len(stored) == 0 {
		return nil
	}
	var list []handover.Socket
	var leaves []*os.File
	for _, d := range stored {
		if d.Name == leavesName {
			leaves = append(leaves, os.NewFile(uintptr(d.FD), d.Name))
			continue
		}
		list = append(list, handover.Socket{Scope: d.Name, FD: d.FD})
	}
	n.leaves.inheritLeaves(leaves)
	if n.sockets.inherited, err = handover.NewSockets(list); err != nil {
		n.log.Warn("take up what was stored", "error", err)
	}
	n.log.Info("listeners were kept open", "sockets", len(list))
	return nil
}

// storeAll has the service manager keep what this process listens on, and what it
// will: the process that serves is the only one that may.
func (n *Node) storeAll() {
	if left := n.sockets.closeInherited(); len(left) > 0 {
		n.log.Info("closed listeners that are not configured any more", "scopes", left)
		for _, scope := range left {
			n.discard(scope)
		}
	}
	n.sockets.follow(n.store, n.discard)
}

func (n *Node) store(s handover.Socket) {
	if err := n.manager.Store(s.Scope, s.FD); err != nil {
		n.log.Warn("store listener", "scope", s.Scope, "error", err)
	}
}

func (n *Node) discard(scope string) {
	if err := n.manager.Discard(scope); err != nil {
		n.log.Warn("discard listener", "scope", scope, "error", err)
	}
}

var errRestarting = errors.New("the node restarts")

// drainForRestart finishes what was open when the process was told to stop, and
// meanwhile goes on accepting, since nobody else does. At the end connections
// wait in the listeners, which the service manager keeps open for the next
// process. Whether there will be one cannot be told: systemd stops a service in
// the same way when it is to start it again.
func (n *Node) drainForRestart() {
	n.returning.Store(true)
	if err := n.manager.Stopping(); err != nil {
		n.log.Debug("notify service manager", "error", err)
	}
	since, limit := time.Now(), n.settingsFile().DrainTimeout
	n.log.Info("draining; connections go on to be accepted", "timeout", limit, "connections", n.open())
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	n.tunnels.Retire(func(*tunnel.Peer) bool { return true })
	if !n.await(ctx, func() bool { return n.openSince(since) == 0 && !n.upgrades.draining() }) {
		n.log.Info("drain timeout is over", "connections", n.openSince(since))
	}
	n.leaveWaiting()
}

// openSince counts the connections that were opened before a moment.
func (n *Node) openSince(moment time.Time) int {
	return len(n.metrics.Connections(func(v *telemetry.View) bool { return v.Opened.Before(moment) }))
}

// leaveWaiting stops accepting and leaves the listeners open.
func (n *Node) leaveWaiting() {
	n.draining.Store(true)
	limit := n.settingsFile().RestartTimeout
	if err := n.capture.Await(limit); err != nil {
		n.log.Warn("announce the restart", "error", err)
	}
	n.namespaces.stopAccepting()
	n.resolver.Drain()
	n.tunnels.Leave()
	n.lines.Leave()
	ctx, cancel := context.WithTimeout(context.Background(), restartTail)
	defer cancel()
	n.await(ctx, func() bool { return n.open() == 0 })
	// The tail has cost some of it.
	if err := n.capture.Await(limit); err != nil {
		n.log.Warn("announce the restart", "error", err)
	}
}

// await reports whether the condition held before ctx ended.
func (n *Node) await(ctx context.Context, condition func() bool) bool {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for !condition() {
		select {
		case <-ctx.Done():
			return false
		case <-tick.C:
		}
	}
	return true
}
