// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/meshproxy/meshproxy/nodeproxy/admin/api"
	"github.com/meshproxy/meshproxy/nodeproxy/admin/client"
)

func (c *commands) splice() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "splice",
		Short: "Turn splicing of this node's connections off and on",
		Long: `With "splicing: auto" connections between workloads of this node go without the
proxy, and are spliced in the kernel where a test at start finds that safe.`,
	}
	cmd.AddCommand(
		c.setSplice("pause", "Turn what is spliced to TCP, and splice nothing new", `Turn what is spliced to TCP, and splice nothing new. No connection is closed and
no byte lost. It lasts until resume, or until the node restarts; "splicing: off"
in the configuration lasts longer.`, true),
		c.setSplice("resume", "Splice again", "Splice again, what is open and what is new.", false),
	)
	return cmd
}

func (c *commands) setSplice(use, short, long string, pause bool) *cobra.Command {
	return &cobra.Command{
		Use: use, Short: short, Long: long, Args: cobra.NoArgs,
		RunE: c.ask(func(cmd *cobra.Command, node *client.Client) error {
			s, err := node.SetSplice(cmd.Context(), api.SpliceControl{Pause: pause})
			if err != nil {
				return err
			}
			return c.show(s, func(p *page) { p.printf("Splicing is %s.\n", spliceState(&s)) })
		}),
	}
}

func spliceState(s *api.Splice) string {
	if s.On {
		return "on"
	}
	return "off: " + s.Reason
}

// spliceCell is the line about splicing in status.
func spliceCell(s *api.Splice) cell {
	parts := []string{spliceState(s), fmt.Sprintf("%d of %s spliced", s.Spliced, plural(int(s.Opened), "direct connection"))}
	if total := s.Sent + s.Received; total > 0 {
		parts = append(parts, fmt.Sprintf("%.0f%% of the bytes", 100*float64(s.Redirected)/float64(total)))
	}
	if n := len(s.Unfit); n > 0 {
		parts = append(parts, plural(n, "unfit reader"))
	}
	line := cell{text: strings.Join(parts, ", ")}
	if !s.On && s.Test > 0 {
		line.style = warn
	}
	return line
}
