// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"

	"github.com/meshproxy/meshproxy/nodeproxy/identity"
	"github.com/meshproxy/meshproxy/nodeproxy/tunnel"
)

// followTrust drains the tunnels when a root is taken out of the trust bundle:
// they were verified with trust that is withdrawn, and what is opened from now
// on must be verified anew. Streams that are open go on; a leaf's expiry ends
// those that stay.
func (n *Node) followTrust(ctx context.Context) error {
	changed, before := n.provider.Changed(), n.provider.Bundle()
	n.tasks.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-changed:
			}
			changed = n.provider.Changed()
			now := n.provider.Bundle()
			if withdrawn := withdrawnRoots(before, now); withdrawn > 0 {
				n.log.Info("trust was withdrawn; draining tunnels", "roots", withdrawn)
				n.retireTunnels()
			}
			before = now
		}
	})
	return nil
}

func (n *Node) retireTunnels() {
	for _, w := range n.loops {
		_ = w.loop.Post(func() { w.pool.Retire(func(*tunnel.Key, *tunnel.Peer) bool { return true }) })
	}
	n.tunnels.Retire(func(*tunnel.Peer) bool { return true })
}

// withdrawnRoots counts the roots of before that now does not have.
func withdrawnRoots(before, now *identity.Bundle) (count int) {
	for _, td := range before.TrustDomains() {
		have := make(map[string]bool)
		for _, root := range now.Roots(td) {
			have[identity.Fingerprint(root)] = true
		}
		for _, root := range before.Roots(td) {
			if !have[identity.Fingerprint(root)] {
				count++
			}
		}
	}
	return count
}
