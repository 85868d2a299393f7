// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"os"

	"github.com/spf13/cobra"

	"github.com/meshproxy/meshproxy/nodeproxy/leafcache"
)

func (c *commands) unsealLeaves() *cobra.Command {
	return &cobra.Command{
		Use:   "unseal-leaves",
		Short: "Unseal the key of the leaf cache for a node that may not (root)",
		Long: `Unseal the key of the leaf cache, for a node that is not root, and hand it over
in runDir. The unit runs it so before each start. The first time, a key is made
and sealed as identity.leafCache says. Where that is off, keys and cache are
removed.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			conf, err := c.load(nil)
			if err != nil {
				return err
			}
			if conf.Identity.LeafCache == leafcache.Off {
				return leafcache.Clear(conf.StateDir, conf.RunDir)
			}
			if os.Geteuid() != 0 {
				return usagef("only root can unseal what systemd-creds has sealed")
			}
			key, err := leafcache.Unseal(cmd.Context(), conf.StateDir, conf.Identity.LeafCache)
			if err != nil {
				return err
			}
			return leafcache.HandOver(key, conf.RunDir)
		},
	}
}
