// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/meshproxy/meshproxy/nodeproxy/admin/api"
	"github.com/meshproxy/meshproxy/nodeproxy/handover"
	"github.com/meshproxy/meshproxy/nodeproxy/l4"
	"github.com/meshproxy/meshproxy/nodeproxy/loop"
	"github.com/meshproxy/meshproxy/nodeproxy/telemetry"
)

// lockFile is the name of the lock on the kernel's state in an offer.
const lockFile = "lock"

// anotherServes is why a process that has state of its own splices nothing any more.
const anotherServes = "another process serves"

// switchTimeout is how long the new process may take from the moment in which
// this one gives way. Nothing is left then that depends on anybody else.
const switchTimeout = 10 * time.Second

// upgrades is what a process knows of the one before it and the one after.
type upgrades struct {
	program    handover.Program
	generation int
	before     *handover.Predecessor
	offer      handover.Offer
	relieved   chan struct{} // closed when another process serves
	after      *handover.Successor

	mu      sync.Mutex
	at      time.Time // when this process took over; zero until then
	lastErr error
	failed  int
}

// upgrade starts the program that lies where this one's did, and gives way to it.
// When it returns an error everything is as before.
func (n *Node) upgrade(ctx context.Context) (api.Upgrade, error) {
	u, err := n.tryUpgrade(ctx)
	n.upgrades.mu.Lock()
	defer n.upgrades.mu.Unlock()
	if n.upgrades.lastErr = err; err != nil {
		n.upgrades.failed++
		n.log.Error("upgrade; this process goes on", "error", err)
	}
	return u, err
}

func (n *Node) tryUpgrade(ctx context.Context) (_ api.Upgrade, err error) {
	if n.draining.Load() {
		return api.Upgrade{}, errDraining
	}
	if !n.ready.Load() {
		return api.Upgrade{}, errors.New("capture is not in force yet")
	}
	n.log.Info("upgrading", "program", n.upgrades.program.Path())
	// The new process reads what this one has written last.
	n.saving.stop()
	next, err := handover.Start(n.upgrades.program, n.adoptStray)
	if err != nil {
		n.saving.start(n)
		return api.Upgrade{}, err
	}
	serving, err := n.handOver(ctx, next)
	if err != nil {
		err = errors.Join(err, next.Kill())
		next.Close()
		n.saving.start(n)
		return api.Upgrade{}, err
	}
	n.upgrades.after = next
	n.giveWay(serving)
	return api.Upgrade{
		PID: next.PID(), Version: serving.Version, Before: n.options.Version, Generation: n.upgrades.generation + 1,
	}, nil
}

// handOver leads the new process to the point at which it serves.
func (n *Node) handOver(ctx context.Context, next *handover.Successor) (handover.Serving, error) {
	ctx, cancel := context.WithTimeout(ctx, n.settingsFile().UpgradeTimeout)
	defer cancel()
	if err := n.offerAll(next); err != nil {
		return handover.Serving{}, err
	}
	apart, err := next.AwaitReady(ctx)
	if err != nil {
		return handover.Serving{}, err
	}
	if apart {
		// The maps of hops end with this process, and with them what is redirected;
		// direct connections live on, where the next process can't pause them.
		err := errors.Join(n.capture.PauseHops(anotherServes), n.capture.PauseSplicing(anotherServes))
		if err != nil {
			return handover.Serving{}, errors.Join(err, n.applySplicing(n.conf.Load()))
		}
	}
	if err := n.capture.Yield(); err != nil {
		return handover.Serving{}, errors.Join(err, n.applySplicing(n.conf.Load()))
	}
	thaw := func() {}
	if apart {
		// What is captured from now on is on record where this process does
		// not look; and what it connects itself would be where the new
		// programs don't.
		n.namespaces.stopAccepting()
		thaw = n.freeze()
	}
	ctx, cancel = context.WithTimeout(context.WithoutCancel(ctx), switchTimeout)
	defer cancel()
	serving, err := next.Switch(ctx)
	if err != nil {
		err = errors.Join(err, next.Kill(), n.capture.TakeBack())
		thaw()
		return serving, errors.Join(err, n.resume(apart))
	}
	if apart {
		n.capture.MarkBy(next.Mark)
	}
	thaw()
	return serving, nil
}

func (n *Node) offerAll(next *handover.Successor) error {
	var bypassed []string
	for name := range n.bypassed.all() {
		bypassed = append(bypassed, name.String())
	}
	offer := handover.Offer{
		PID: os.Getpid(), Version: n.options.Version, Generation: n.upgrades.generation, Started: n.started, Bypassed: bypassed,
	}
	files := map[string]int{lockFile: n.capture.Lock()}
	n.leaves.offer(files)
	return n.sockets.all(func(list []handover.Socket) error { return next.Offer(offer, list, files) })
}

// freeze stops the loops until thaw is called, and waits until they stand still.
func (n *Node) freeze() (thaw func()) {
	release := make(chan struct{})
	var standing sync.WaitGroup
	for _, w := range n.loops {
		standing.Add(1)
		if w.loop.Post(func() { standing.Done(); <-release }) != nil {
			standing.Done()
		}
	}
	standing.Wait()
	return func() { close(release) }
}

// resume makes this process the one that serves again. The other one has ended,
// and capture is taken back.
func (n *Node) resume(stopped bool) error {
	n.tasks.Go(n.watchKernel)
	for _, ns := range n.namespaces.all() {
		err := n.namespaces.steer(ns)
		if err == nil && stopped {
			err = n.acceptOnLoops(ns)
		}
		if err != nil {
			return fmt.Errorf("take listeners back: %w", err)
		}
	}
	n.reloads.applySoon()
	return n.applySplicing(n.conf.Load())
}

// giveWay makes the new process the main one and begins to drain.
func (n *Node) giveWay(serving handover.Serving) {
	next := n.upgrades.after
	if err := n.manager.MainPID(next.PID()); err != nil {
		n.log.Warn("notify service manager", "error", err)
	}
	n.draining.Store(true)
	if err := next.Lead(); err != nil {
		n.log.Warn("tell the new process", "error", err)
	}
	n.log.Info("another process serves", "pid", next.PID(), "version", serving.Version)
	n.namespaces.stopAccepting()
	n.resolver.Drain()
	n.tunnels.Leave()
	n.lines.Leave()
	close(n.upgrades.relieved)
	// The sockets live on with the other process, and must not outlive it.
	for _, ns := range n.namespaces.all() {
		ns.listeners.closeAccepting()
	}
	n.sockets.close()
}

// status says how this process came to serve.
func (u *upgrades) status() api.Upgrades {
	st := api.Upgrades{Generation: u.generation}
	u.mu.Lock()
	defer u.mu.Unlock()
	st.At, st.Failed = u.at, u.failed
	if u.lastErr != nil {
		st.LastError = u.lastErr.Error()
	}
	if u.draining() {
		st.Predecessor = &api.Predecessor{PID: u.before.PID(), Version: u.offer.Version, Connections: u.before.Connections()}
	}
	return st
}

// draining reports whether the process before is still there.
func (u *upgrades) draining() bool {
	if u.before == nil {
		return false
	}
	select {
	case <-u.before.Gone():
		return false
	default:
		return true
	}
}

// reading is status for a scrape.
func (u *upgrades) reading() telemetry.UpgradeReading {
	st := u.status()
	r := telemetry.UpgradeReading{Generation: st.Generation, At: st.At, Failed: st.Failed}
	if st.Predecessor != nil {
		r.PredecessorConnections = st.Predecessor.Connections
	}
	return r
}

// relieved reports whether another process serves.
func (n *Node) relieved() bool {
	select {
	case <-n.upgrades.relieved:
		return true
	default:
		return false
	}
}

// adoptStray takes a connection that was captured before the new process took
// over, and which that has accepted.
func (n *Node) adoptStray(fd int, netns uint64, client netip.AddrPort) {
	w := n.loops[0]
	if w.loop.Post(func() { w.relays.Adopt(fd, l4.Client{NetNS: netns, Remote: client}, w.router) }) != nil {
		_ = unix.Close(fd)
	}
}

// giveBack gives a connection that was captured before this process took over
// to the process before, which has it on record.
func (n *Node) giveBack(c *l4.Client) bool {
	if !n.upgrades.draining() {
		return false
	}
	before := n.upgrades.before
	fd := c.Take()
	defer unix.Close(fd)
	if err := before.Stray(fd, c.NetNS, c.Remote); err != nil {
		n.log.Warn("give a connection back to the process before", "client", c.Remote, "error", err)
		loop.ResetOnClose(fd)
	}
	return true
}

// mark marks a socket of the process before.
func (n *Node) mark(fd int, client netip.AddrPort) error {
	return n.capture.OthersSocket(fd, client)
}
