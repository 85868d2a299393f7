// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"slices"

	"github.com/spf13/cobra"
)

func (c *commands) check() *cobra.Command {
	return &cobra.Command{
		Use:   "check",
		Short: "Look at what the node needs of this machine, and say what is missing",
		Long: `Look at the kernel, capabilities, file systems and ports that the node needs.
The exit code is 1 when it can't run here.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			conf, err := c.load(nil)
			if err != nil {
				return err
			}
			findings, err := c.Check(cmd.Context(), conf)
			if err != nil {
				return err
			}
			if err := c.show(findings, func(p *page) { renderFindings(p, findings) }); err != nil {
				return err
			}
			if slices.ContainsFunc(findings, func(f Finding) bool { return f.Status == FindingMissing }) {
				return errSilent
			}
			return nil
		},
	}
}

func renderFindings(p *page, findings []Finding) {
	styles := map[string]style{FindingOK: good, FindingDegraded: warn, FindingMissing: bad}
	rows := make([][]cell, 0, len(findings))
	counts := make(map[string]int)
	for _, f := range findings {
		counts[f.Status]++
		detail := f.Detail
		if f.Status != FindingOK && f.MinKernel != "" {
			detail += " (Linux " + f.MinKernel + ")"
		}
		rows = append(rows, []cell{{f.Status, styles[f.Status]}, text(f.Name), text(detail)})
	}
	p.table([]string{"status", "what", "detail"}, rows)
	for _, f := range findings {
		if f.Status != FindingOK && f.Consequence != "" {
			p.printf("\n%s: %s\n", clean(f.Name), clean(f.Consequence))
		}
	}
	switch {
	case counts[FindingMissing] > 0:
		p.printf("\n%s\n", p.paint(cell{"A node can't run here.", bad}))
	case counts[FindingDegraded] > 0:
		p.printf("\n%s\n", p.paint(cell{"A node runs here, with what is said above.", warn}))
	default:
		p.printf("\n%s\n", p.paint(cell{"A node runs here.", good}))
	}
}
