// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"strings"

	"github.com/spf13/cobra"

	"github.com/meshproxy/meshproxy/nodeproxy/admin/api"
	"github.com/meshproxy/meshproxy/nodeproxy/admin/client"
)

func (c *commands) reload() *cobra.Command {
	return &cobra.Command{
		Use:   "reload",
		Short: "Make the node read its configuration again, and say what changed",
		Args:  cobra.NoArgs,
		RunE: c.ask(func(cmd *cobra.Command, node *client.Client) error {
			r, err := node.Reload(cmd.Context())
			if err != nil {
				return err
			}
			return c.show(r, func(p *page) {
				switch {
				case len(r.Changed)+len(r.RestartNeeded) == 0:
					p.printf("Nothing changed.\n")
				case len(r.Changed) > 0:
					p.printf("In force: %s.\n", strings.Join(r.Changed, ", "))
				}
				if len(r.RestartNeeded) > 0 {
					p.printf("After a restart: %s.\n", strings.Join(r.RestartNeeded, ", "))
				}
			})
		}),
	}
}

func (c *commands) drain() *cobra.Command {
	return &cobra.Command{
		Use:   "drain",
		Short: "Make the node finish what is open and accept nothing new",
		Args:  cobra.NoArgs,
		RunE: c.ask(func(cmd *cobra.Command, node *client.Client) error {
			d, err := node.Drain(cmd.Context())
			if err != nil {
				return err
			}
			return c.show(d, func(p *page) {
				p.printf("Draining: %s open, nothing new is accepted.\n", plural(d.Active, "connection"))
			})
		}),
	}
}

func (c *commands) logLevel() *cobra.Command {
	return &cobra.Command{
		Use:       "log-level [debug|info|warn|error]",
		Short:     "Show the level of the node's log, or change it until the node restarts",
		Args:      cobra.MaximumNArgs(1),
		ValidArgs: []string{"debug", "info", "warn", "error"},
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.ask(func(cmd *cobra.Command, node *client.Client) error {
				if len(args) > 0 {
					if err := node.SetLogLevel(cmd.Context(), api.LogLevel{Level: args[0]}); err != nil {
						return err
					}
				}
				l, err := node.LogLevel(cmd.Context())
				if err != nil {
					return err
				}
				return c.show(l, func(p *page) { p.printf("%s\n", l.Level) })
			})(cmd, nil)
		},
	}
}
