// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"os"
	"sync"
	"time"

	"github.com/meshproxy/meshproxy/nodeproxy/handover"
)

// inherit receives what an earlier process of the node leaves.
func (n *Node) inherit(ctx context.Context) error {
	n.sockets = &sockets{}
	n.upgrades.generation = 1
	before := n.upgrades.before
	if before == nil {
		return n.inheritStored()
	}
	offer, err := before.Receive(ctx)
	if err != nil {
		return err
	}
	if offer.Files[lockFile] == nil {
		return errors.New("the process before does not hand over the kernel's state")
	}
	n.upgrades.offer, n.upgrades.generation = offer, offer.Generation+1
	n.sockets.inherited = offer.Sockets
	n.leaves.inheritLeaves([]*os.File{offer.Files[leavesNames[0]], offer.Files[leavesNames[1]]})
	for _, name := range offer.Bypassed {
		n.bypassed.set(parseName(name), true)
	}
	n.log.Info("taking over", "pid", offer.PID, "version", offer.Version)
	return nil
}

// takeOver makes this process the one that serves. All that can fail comes first,
// while the process before serves; then it gives way, and this one accepts.
func (n *Node) takeOver(ctx context.Context) error {
	before := n.upgrades.before
	if before == nil {
		return nil
	}
	n.awaitFirstWord(ctx)
	s := n.merger.Store().Load()
	if !anyReady(s) {
		return errors.New("no source has said anything yet, and there is no snapshot on disk")
	}
	n.decideBy(s)
	n.warmLeaves(ctx)
	n.namespaces.find(ctx, s.Workloads(), n.cgroups, n.cgroups.cgroupsOf(s.Workloads()), false)
	if err := n.capture.Prepare(n.kernelState(s)); err != nil {
		return err
	}
	serving := handover.Serving{Version: n.options.Version, Apart: n.capture.Apart()}
	if err := before.Ready(ctx, serving); err != nil {
		return err
	}
	began := time.Now()
	if err := n.accept(ctx); err != nil {
		return err
	}
	n.log.Info("accepting", "after", time.Since(began))
	err := before.Serve(ctx, serving, n.mark)
	if err != nil && !errors.Is(err, handover.ErrGone) {
		return err
	}
	if err := n.capture.Commit(); err != nil {
		return err
	}
	n.upgrades.mu.Lock()
	n.upgrades.at = time.Now()
	n.upgrades.mu.Unlock()
	n.tasks.Go(func() {
		<-before.Gone()
		n.log.Info("the process before has ended", "pid", before.PID())
	})
	n.becomeReady(s)
	return nil
}

// tookOver reports whether this process serves as far as others are concerned.
func (n *Node) tookOver() bool {
	if n.upgrades.before == nil {
		return true
	}
	n.upgrades.mu.Lock()
	defer n.upgrades.mu.Unlock()
	return !n.upgrades.at.IsZero()
}

// accept puts this process's programs in force and accepts connections. What can
// fail comes before the first connection: those that are accepted end with the
// process.
func (n *Node) accept(ctx context.Context) error {
	if err := n.capture.TakeOver(); err != nil {
		return err
	}
	if err := n.startAdmin(ctx); err != nil {
		return err
	}
	if err := n.acceptAll(); err != nil {
		return err
	}
	// Tried again when it fails, as ever.
	n.applyCapture(ctx)
	return nil
}

// leafPatience bounds how long the process before has to wait for leaves. A leaf
// that is missing then is fetched in the first handshake, as ever.
const leafPatience = 5 * time.Second

// warmLeaves gets a leaf for each workload: nobody should wait for it once this
// process serves.
func (n *Node) warmLeaves(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, leafPatience)
	defer cancel()
	var fetching sync.WaitGroup
	for _, id := range identities(n.views.load().snapshot) {
		fetching.Go(func() {
			if _, err := n.provider.Leaf(ctx, id); err != nil {
				n.log.Warn("get leaf", "identity", id.String(), "error", err)
			}
		})
	}
	fetching.Wait()
}

// saving writes snapshots to disk, which one process at a time may do.
type saving struct {
	mu     sync.Mutex
	cancel func()
	done   chan struct{}
}

func (s *saving) start(n *Node) {
	s.mu.Lock()
	defer s.mu.Unlock()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	s.cancel, s.done = cancel, done
	go func() {
		defer close(done)
		n.cache.Run(ctx, n.merger.Store())
	}()
}

// stop writes the last snapshot and waits for that.
func (s *saving) stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cancel == nil {
		return
	}
	s.cancel()
	<-s.done
	s.cancel = nil
}
