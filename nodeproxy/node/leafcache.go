// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/meshproxy/meshproxy/nodeproxy/identity"
	"github.com/meshproxy/meshproxy/nodeproxy/leafcache"
)

// openLeafCache opens the cache of leaves on disk where the configuration wants
// one, and gives the provider what it holds, unless the process before has handed
// over something newer. Without the cache the node works all the same.
func (n *Node) openLeafCache(ctx context.Context, to identity.Heritable) {
	c := n.settingsFile()
	if c.Identity.LeafCache == leafcache.Off {
		// Who opts out wants nothing left.
		if err := leafcache.Clear(c.StateDir, c.RunDir); err != nil {
			n.log.Warn("clear leaf cache", "error", err)
		}
		return
	}
	key, err := n.leafKey(ctx)
	if err == nil {
		n.leaves.cache, err = leafcache.Open(c.StateDir, key)
	}
	if err != nil {
		n.leaves.trouble.set(fmt.Errorf("leaves are not kept on disk: %w", err))
		n.log.Warn("leaves are not kept on disk", "error", err)
		return
	}
	if len(n.provider.Bundle().TrustDomains()) > 0 {
		return
	}
	if err := restoreCachedLeaves(n.leaves.cache, to); err != nil {
		n.log.Warn("leaves on disk are of no use", "file", n.leaves.cache.Path(), "error", err)
		return
	}
	if sum := n.provider.Summary(); len(sum.Leaves) > 0 {
		n.log.Info("leaves from disk", "leaves", len(sum.Leaves), "roots", len(sum.Roots))
	}
}

// leafKey is unsealed by root: by this process, or by one before it.
func (n *Node) leafKey(ctx context.Context) (leafcache.Key, error) {
	c := n.settingsFile()
	if os.Geteuid() == 0 {
		return leafcache.Unseal(ctx, c.StateDir, c.Identity.LeafCache)
	}
	return leafcache.Handed(c.RunDir)
}

func restoreCachedLeaves(from *leafcache.Cache, to identity.Heritable) error {
	text, err := from.Read()
	if errors.Is(err, leafcache.ErrNone) {
		return nil
	}
	if err != nil {
		return err
	}
	defer clear(text)
	return to.Import(text)
}
