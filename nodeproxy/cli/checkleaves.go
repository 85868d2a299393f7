// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"fmt"

	"github.com/meshproxy/meshproxy/nodeproxy/config"
	"github.com/meshproxy/meshproxy/nodeproxy/leafcache"
	"github.com/meshproxy/meshproxy/sockmap/probe"
)

// checkLeafCache looks, where leaves are to be kept on disk, for what seals them.
// A node runs without it, until it starts while Consul is away.
func checkLeafCache(ctx context.Context, conf *config.Config) []probe.Finding {
	with := conf.Identity.LeafCache
	if with == leafcache.Off {
		return nil
	}
	f := probe.Finding{Name: "leaf cache", Status: probe.StatusOK}
	sealer, err := leafcache.Sealer(ctx)
	if err != nil {
		f.Status, f.Detail = probe.StatusWarn, err.Error()
		f.Consequence = "No leaves are kept on disk: after a boot while Consul is away, the node has none. Install it, or say identity.leafCache: off."
		return []probe.Finding{f}
	}
	f.Detail = fmt.Sprintf("%s, identity.leafCache %s", sealer, with)
	return []probe.Finding{f}
}
