// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"os"
	"time"

	"github.com/meshproxy/meshproxy/nodeproxy/identity"
	"github.com/meshproxy/meshproxy/nodeproxy/leafcache"
	"github.com/meshproxy/meshproxy/nodeproxy/memfile"
)

// leavesName is what the descriptor store calls the memory files with leaves.
const leavesName = "leaves"

// leavesNames are what an offer calls them.
var leavesNames = [2]string{leavesName + "-0", leavesName + "-1"}

// leavesSettle is how long a change of leaves waits for others, as at the start,
// when all of them come.
const leavesSettle = 250 * time.Millisecond

// leavesRetry is when to write again what could not be written, as on a full disk.
const leavesRetry = time.Minute

// keptLeaves outlive the process, for a provider whose leaves are nowhere else:
// in memory files, of which the service manager or the process that takes over
// has descriptors. One process at a time writes them, the one that serves.
type keptLeaves struct {
	pair *memfile.Pair // nil: the provider needs none
	// inherited: whoever passes it on has it already.
	inherited bool
	cache     *leafcache.Cache // on disk, over a reboot; nil: not kept there
	trouble   lastError        // of the cache
	serves    chan struct{}    // closed when this process does
}

// inheritLeaves takes up the memory files, unless there are not exactly two.
func (k *keptLeaves) inheritLeaves(files []*os.File) {
	if len(files) != 2 || files[0] == nil || files[1] == nil {
		for _, f := range files {
			if f != nil {
				_ = f.Close()
			}
		}
		return
	}
	k.pair, k.inherited = memfile.Open(files[0], files[1]), true
}

// followLeaves gives the provider what an earlier process had, and keeps what it
// gets from now on for the next one. Without that the node works all the same,
// while the provider can be asked.
func (n *Node) followLeaves(ctx context.Context) {
	n.leaves.serves = make(chan struct{})
	source, ok := n.provider.(identity.Heritable)
	if !ok {
		n.leaves.close()
		return
	}
	if n.leaves.inherited {
		if err := restoreLeaves(n.leaves.pair, source); err != nil {
			n.log.Warn("take over leaves", "error", err)
		}
	} else if pair, err := memfile.New("meshproxy-" + leavesName); err != nil {
		n.log.Warn("keep leaves for the next process", "error", err)
	} else {
		n.leaves.pair = pair
	}
	n.openLeafCache(ctx, source)
	if n.leaves.pair != nil || n.leaves.cache != nil {
		n.tasks.Go(func() { n.saveLeaves(ctx, source) })
	}
}

func restoreLeaves(from *memfile.Pair, to identity.Heritable) error {
	text, err := from.Read()
	if errors.Is(err, memfile.ErrEmpty) {
		return nil
	}
	if err != nil {
		return err
	}
	defer clear(text)
	return to.Import(text)
}

// saveLeaves writes leaves and roots at each change, for as long as this process
// serves.
func (n *Node) saveLeaves(ctx context.Context, source identity.Heritable) {
	select {
	case <-n.leaves.serves:
	case <-ctx.Done():
		return
	}
	for {
		changed := n.provider.Changed()
		again := changed
		if err := n.leaves.save(source); err != nil {
			n.log.Warn("keep leaves for the next process", "error", err)
			again = after(leavesRetry)
		}
		for _, next := range []struct{ one, other <-chan struct{} }{{changed, again}, {after(leavesSettle), nil}} {
			select {
			case <-next.one:
			case <-next.other:
			case <-n.upgrades.relieved:
				return
			case <-ctx.Done():
				return
			}
		}
	}
}

// save writes what the provider has, in memory and on disk.
func (k *keptLeaves) save(from identity.Heritable) (failed error) {
	text, err := from.Export()
	if err != nil {
		return err
	}
	defer clear(text)
	if k.pair != nil {
		failed = k.pair.Write(text)
	}
	if k.cache != nil && len(from.Bundle().TrustDomains()) > 0 { // else there is nothing to keep yet
		err := k.cache.Write(text)
		k.trouble.set(err)
		failed = errors.Join(failed, err)
	}
	return failed
}

// after is time.After for those who select on it with others of its kind.
func after(d time.Duration) <-chan struct{} {
	done := make(chan struct{})
	time.AfterFunc(d, func() { close(done) })
	return done
}

// storeLeaves: this process serves, so it is the one that may write, and the one
// that the service manager listens to.
func (n *Node) storeLeaves() {
	close(n.leaves.serves)
	if n.leaves.pair == nil || n.leaves.inherited {
		return
	}
	files := n.leaves.pair.Files()
	if err := n.manager.Store(leavesName, int(files[0].Fd()), int(files[1].Fd())); err != nil {
		n.log.Warn("store leaves", "error", err)
	}
}

// offer adds the memory files to what the next process is offered.
func (k *keptLeaves) offer(files map[string]int) {
	if k.pair == nil {
		return
	}
	for i, f := range k.pair.Files() {
		files[leavesNames[i]] = int(f.Fd())
	}
}

// close lets go of the memory files.
func (k *keptLeaves) close() {
	if k.pair != nil {
		k.pair.Close()
		k.pair = nil
	}
}
