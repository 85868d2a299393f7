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
		Long: `Make the node read its configuration again, and say what changed.

When there is a new executable, as after a package upgrade, a process of it takes
over instead, as "meshproxy upgrade" says.`,
		Args: cobra.NoArgs,
		RunE: c.ask(func(cmd *cobra.Command, node *client.Client) error {
			r, err := node.Reload(cmd.Context())
			if err != nil {
				return err
			}
			return c.show(r, func(p *page) {
				switch {
				case r.Upgrade != nil:
					showUpgrade(p, r.Upgrade)
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

func (c *commands) upgrade() *cobra.Command {
	return &cobra.Command{
		Use:   "upgrade",
		Short: "Make the node give way to a new process of its executable, and lose no connection",
		Long: `Make the node give way to a new process of its executable, and lose no connection.

The new process reads the configuration and takes over the listeners and what is
in the kernel. The old one goes on until the new one serves, then finishes what
is open, for drainTimeout at most. A new process that cannot take over, or is not
ready within upgradeTimeout, changes nothing; this command says why it wasn't.`,
		Args: cobra.NoArgs,
		RunE: c.ask(func(cmd *cobra.Command, node *client.Client) error {
			u, err := node.Upgrade(cmd.Context())
			if err != nil {
				return err
			}
			return c.show(u, func(p *page) { showUpgrade(p, &u) })
		}),
	}
}

func showUpgrade(p *page, u *api.Upgrade) {
	p.printf("Process %d with version %s serves; the one with version %s drains.\n", u.PID, u.Version, u.Before)
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
