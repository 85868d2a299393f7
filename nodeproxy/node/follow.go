// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/meshproxy/meshproxy/discovery/mesh"
	"github.com/meshproxy/meshproxy/nodeproxy/telemetry"
	"github.com/meshproxy/meshproxy/nodeproxy/telemetry/reason"
	"github.com/meshproxy/meshproxy/sockmap"
)

// unaddressed is when a connection that was just being opened under the policy
// before can be closed.
const unaddressed = 50 * time.Millisecond

// bypassed are the workloads that a command took out of the mesh.
type bypassed struct {
	mu    sync.Mutex
	names map[mesh.Name]bool
}

func (b *bypassed) set(n mesh.Name, on bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.names == nil {
		b.names = make(map[mesh.Name]bool)
	}
	if on {
		b.names[n.Canonical()] = true
	} else {
		delete(b.names, n.Canonical())
	}
}

func (b *bypassed) all() map[mesh.Name]bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	list := make(map[mesh.Name]bool, len(b.names))
	for n := range b.names {
		list[n] = true
	}
	return list
}

// follow puts snapshots in force as they come. It is the only goroutine that
// changes what is in force.
func (n *Node) follow(ctx context.Context) error {
	n.saving.start(n)
	n.tasks.Go(func() {
		if n.upgrades.before == nil {
			n.begin(ctx)
		}
		tick := time.NewTicker(resyncInterval)
		defer tick.Stop()
		look := resync{node: n}
		for {
			select {
			case <-ctx.Done():
				return
			case <-n.changed:
				n.putInForce(ctx)
			case <-n.reloads.apply:
				n.putInForce(ctx)
			case done := <-n.reloads.applyNow:
				n.putInForce(ctx)
				close(done)
			case <-tick.C:
				if n.relieved() {
					continue
				}
				look.look(ctx)
			}
		}
	})
	n.tasks.Go(func() { n.reload(ctx) })
	n.tasks.Go(func() { n.feedWatchdog(ctx) })
	n.tasks.Go(func() { n.reportStanding(ctx) })
	n.tasks.Go(func() { n.pressure.watch(ctx) })
	return nil
}

// begin puts the first snapshot in force and accepts what has waited for it.
func (n *Node) begin(ctx context.Context) {
	n.awaitFirstWord(ctx)
	if ctx.Err() != nil {
		return
	}
	if s := n.merger.Store().Load(); anyReady(s) {
		n.decideBy(s)
	}
	if err := n.acceptAll(); err != nil {
		n.log.Error("accept connections", "error", err)
	}
	n.putInForce(ctx)
}

// firstWord is how long a node that has a snapshot from disk waits for its
// sources to say something newer: a file that was changed meanwhile must not be
// preceded by its old self. A backend that is away is not worth more.
const firstWord = time.Second

func (n *Node) awaitFirstWord(ctx context.Context) {
	timer := time.NewTimer(firstWord)
	defer timer.Stop()
	for {
		s := n.merger.Store().Load()
		if !slices.ContainsFunc(s.Sources(), func(src mesh.SourceState) bool { return src.FromDisk || !src.Ready }) {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
			return
		case <-n.changed:
		}
	}
}

// putInForce makes the snapshot of the store the one that decides: first for
// the data path, then for the kernel, which leads connections there.
func (n *Node) putInForce(ctx context.Context) {
	s := n.merger.Store().Load()
	if !anyReady(s) {
		return // what an earlier process left in the kernel stays in force
	}
	n.decideBy(s)
	for _, w := range n.loops {
		w.revalidate()
	}
	n.applyCapture(ctx)
}

// decideBy makes a snapshot the one by which the data path decides.
func (n *Node) decideBy(s *mesh.Snapshot) {
	c := n.settingsFile()
	next := n.views.derive(s, c.Defaults.MaxConnectionsPerWorkload, n.pressure.bufferLimit())
	n.keepLeaves(next)
	n.views.current.Store(next)
	n.balancer.Update(s)
}

func anyReady(s *mesh.Snapshot) bool {
	for _, src := range s.Sources() {
		if src.Ready {
			return true
		}
	}
	return false
}

// applyCapture tells the kernel. A failure leaves the state before, or a
// mixture that the next attempt puts right; it is retried at every resync.
func (n *Node) applyCapture(ctx context.Context) {
	s := n.views.load().snapshot
	if !anyReady(s) || n.relieved() {
		return
	}
	n.namespaces.find(ctx, s.Workloads(), n.cgroups, n.cgroups.cgroupsOf(s.Workloads()), false)
	n.applyFound(ctx, s)
}

// applyFound is applyCapture when the namespaces of the workloads are found.
func (n *Node) applyFound(ctx context.Context, s *mesh.Snapshot) {
	if !anyReady(s) || n.relieved() {
		return
	}
	n.lines.follow(ctx, s.Workloads())
	if !n.ready.Load() {
		// Before anything is captured: an application that dials meanwhile would
		// be refused because the proxy seems to be away.
		n.heartbeat()
	}
	err := n.capture.Apply(n.kernelState(s))
	if errors.Is(err, sockmap.ErrYielded) {
		return // to a process that may yet give it back
	}
	n.applyError.set(err)
	if err != nil {
		n.log.Error("apply snapshot to the kernel", "version", s.Version(), "error", err)
		return
	}
	if n.closeIllegal() {
		time.AfterFunc(unaddressed, n.reloads.applySoon)
	}
	if n.tookOver() {
		n.becomeReady(s)
	}
}

func (n *Node) heartbeat() {
	if err := n.capture.Heartbeat(); err != nil {
		n.log.Error("write heartbeat", "error", err)
	}
}

// becomeReady: capture is in force.
func (n *Node) becomeReady(s *mesh.Snapshot) {
	if n.ready.Swap(true) {
		return
	}
	n.heartbeat()
	n.storeAll()
	n.storeLeaves()
	text := n.summary()
	n.log.Info("ready", "node", n.name, "workloads", len(s.Workloads()), "services", len(s.Services()), "took", time.Since(n.started).Round(time.Millisecond))
	if err := n.manager.Ready(text); err != nil {
		n.log.Warn("notify service manager", "error", err)
	}
	// Not before capture was, which took the place of another layout's.
	if err := n.applySplicing(n.conf.Load()); err != nil {
		n.log.Error("splice connections", "error", err)
	}
}

// summary is the line that the service manager shows.
func (n *Node) summary() string {
	s := n.views.load().snapshot
	return fmt.Sprintf("%d workloads, %d services", len(s.Workloads()), len(s.Services()))
}

// feedWatchdog tells systemd that the loops turn, for as long as they do.
func (n *Node) feedWatchdog(ctx context.Context) {
	interval, err := n.manager.WatchdogInterval()
	if err != nil {
		n.log.Warn("read watchdog", "error", err)
	}
	if interval == 0 {
		return
	}
	// Often enough that one look which meets a loop out of breath costs nothing.
	tick := time.NewTicker(interval / 4)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if n.relieved() {
				return // the other process does
			}
			if err := n.stuckLoop(); err != nil {
				n.log.Error("not feeding the watchdog", "error", err)
				continue
			}
			if err := n.manager.Alive(); err != nil {
				n.log.Warn("feed watchdog", "error", err)
			}
		}
	}
}

// watchKernel turns what happens in the kernel into logs, metrics, and
// listeners for namespaces that nobody knew.
func (n *Node) watchKernel() {
	for e := range n.capture.Events() {
		switch e := e.(type) {
		case *sockmap.NetNSSeen:
			if n.namespaces.own != nil && n.namespaces.seen(context.Background(), e) {
				n.reloads.applySoon()
			}
		case *sockmap.CgroupEnrolled:
			n.cgroupNews.Add(1)
			n.log.Debug("cgroup enrolled", "workload", e.Workload, "path", e.Path)
		case *sockmap.CgroupGone:
			n.cgroupNews.Add(1)
			n.log.Debug("cgroup gone", "workload", e.Workload, "cgroup", e.ID)
		case *sockmap.Refused:
			n.refusedInKernel(e)
		case *sockmap.ReadsBySplice:
			n.log.Warn("a workload reads from connections with splice(2): none of its are spliced from now on; one that is already gives it nothing",
				"workload", e.Workload, "pid", e.PID)
		case *sockmap.DirectOpened:
			n.metrics.KernelOpened(n.directView(&e.DirectConnection))
		case *sockmap.DirectClosed:
			n.directClosed(&e.DirectConnection)
		}
	}
}

func (n *Node) refusedInKernel(e *sockmap.Refused) {
	why, inbound := kernelReason(e.Reason)
	r := telemetry.Record{Direction: telemetry.Outbound, Source: display(e.Workload), Dialled: e.Address}
	if inbound {
		r = telemetry.Record{Direction: telemetry.Inbound, Path: telemetry.PathPlaintext, Destination: display(e.Workload), Client: e.Address}
	} else if dst, ok := n.views.load().snapshot.Destination(e.Workload, e.Address); ok {
		r.Service = dst.Service.Name.String()
	}
	n.metrics.Refused(r, why, "in the kernel: "+e.Reason.String())
}

// kernelReason is the reason of a refusal in the kernel, and whether it was of
// an inbound connection.
func kernelReason(r sockmap.Reason) (why reason.Reason, inbound bool) {
	switch r {
	case sockmap.ReasonProxyDown:
		return reason.ProxyDown, false
	case sockmap.ReasonNoListeners:
		return reason.NamespaceUnready, false
	case sockmap.ReasonUnknownPort:
		return reason.UnknownPort, false
	case sockmap.ReasonUnregistered:
		return reason.EgressUnregistered, false
	case sockmap.ReasonFlowsFull:
		return reason.LimitFlows, false
	case sockmap.ReasonNoMemory:
		return reason.LimitMemory, false
	case sockmap.ReasonPolicy:
		return reason.PolicyDenied, false
	case sockmap.ReasonPlaintext:
		return reason.PlaintextRefused, true
	case sockmap.ReasonLocal:
		return reason.LocalDenied, true
	default:
		return reason.Internal, false
	}
}
