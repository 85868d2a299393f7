// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"strings"

	"github.com/spf13/cobra"

	"github.com/meshproxy/meshproxy/nodeproxy/admin/api"
	"github.com/meshproxy/meshproxy/nodeproxy/admin/client"
)

func (c *commands) bypass() *cobra.Command {
	var off bool
	cmd := &cobra.Command{
		Use:   "bypass WORKLOAD",
		Short: "Take a workload out of the mesh at once, or back into it",
		Long: `Take a workload out of the mesh at once: nothing of it is captured, neither
outbound nor inbound. What is open stays as it is. --off takes it back. It lasts
until the node restarts; "bypass: true" in the configuration lasts longer.`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: c.completeWorkload,
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.ask(func(cmd *cobra.Command, node *client.Client) error {
				b := api.Bypass{Workload: args[0], Bypass: !off}
				if err := node.SetBypass(cmd.Context(), b); err != nil {
					return err
				}
				return c.show(b, func(p *page) {
					if b.Bypass {
						p.printf("%s bypasses the mesh.\n", b.Workload)
					} else {
						p.printf("%s is in the mesh.\n", b.Workload)
					}
				})
			})(cmd, nil)
		},
	}
	cmd.Flags().BoolVar(&off, "off", false, "take the workload back into the mesh")
	return cmd
}

// completeWorkload asks the node for names; without one there are none.
func (c *commands) completeWorkload(cmd *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	node, err := c.client()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	defer node.Close()
	workloads, err := node.Workloads(cmd.Context())
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []string
	for _, w := range workloads {
		if strings.HasPrefix(w.Name, begun) {
			names = append(names, w.Name)
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
