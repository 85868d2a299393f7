// SPDX-License-Identifier: Apache-2.0

package cli

import "github.com/spf13/cobra"

func (c *commands) demo() *cobra.Command {
	return &cobra.Command{
		Use:   "demo [flags]",
		Short: "Show a mesh of two nodes on this machine, with real traffic (root)",
		// The demo reads its own flags.
		DisableFlagParsing: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.Demo(cmd.Context(), args, c.Stdout, c.Stderr)
		},
	}
}
