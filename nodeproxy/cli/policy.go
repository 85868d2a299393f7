// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/meshproxy/meshproxy/nodeproxy/admin/api"
	"github.com/meshproxy/meshproxy/nodeproxy/admin/client"
)

func (c *commands) policy() *cobra.Command {
	return group("policy", "Ask what policy says", c.policyTest())
}

func (c *commands) policyTest() *cobra.Command {
	var q api.PolicyQuery
	cmd := &cobra.Command{
		Use:   "test --from SOURCE --to DESTINATION [--port PORT]",
		Short: "Explain whether a connection would be allowed",
		Long: `Explain whether a connection would be allowed, by the policies that the node
has now. The exit code is 1 when it would be denied.

SOURCE is a workload's name, a SPIFFE ID, or an address for a plaintext
connection. DESTINATION is the name of a service or of a workload
("workload:NAME" where both have it). PORT is the service's; without it, its
first one.`,
		Args: cobra.NoArgs,
		RunE: c.ask(func(cmd *cobra.Command, node *client.Client) error {
			e, err := node.ExplainPolicy(cmd.Context(), q)
			if err != nil {
				return err
			}
			if err := c.show(e, func(p *page) { renderExplanation(p, &e) }); err != nil {
				return err
			}
			if !e.Allowed {
				return errSilent
			}
			return nil
		}),
	}
	flags := cmd.Flags()
	flags.StringVar(&q.From, "from", "", "where the connection comes from (required)")
	flags.StringVar(&q.To, "to", "", "where it goes (required)")
	flags.Uint16Var(&q.Port, "port", 0, "the port that is dialled")
	require(cmd, "from", "to")
	_ = cmd.RegisterFlagCompletionFunc("from", func(cmd *cobra.Command, _ []string, begun string) ([]string, cobra.ShellCompDirective) {
		return c.completeWorkload(cmd, nil, begun)
	})
	return cmd
}

// require makes flags required, with an error of usage.
func require(cmd *cobra.Command, names ...string) {
	check := cmd.Args
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		for _, name := range names {
			if f := cmd.Flags().Lookup(name); f.Value.String() == "" {
				return fmt.Errorf("--%s is required", name)
			}
		}
		return check(cmd, args)
	}
}

func renderExplanation(p *page, e *api.PolicyExplanation) {
	verdict := cell{clean(e.Conclusion), bad}
	if e.Allowed {
		verdict.style = good
	}
	p.printf("%s\n\n", p.paint(verdict))
	from := e.Query.From
	if e.Identity != "" && e.Identity != from {
		from += ", " + e.Identity
	}
	rows := [][]cell{{text("from"), text(from)}}
	if e.Workload != "" {
		rows = append(rows, []cell{text("workload"), text(e.Workload)})
	}
	if len(e.Services) > 0 {
		rows = append(rows, []cell{text("serves"), text(strings.Join(e.Services, ", "))})
	}
	rows = append(rows, []cell{text("port"), text(fmt.Sprint(e.Port))})
	p.table(nil, rows)
	if len(e.Steps) > 0 {
		p.printf("\n")
		steps := make([][]cell, 0, len(e.Steps))
		for _, s := range e.Steps {
			action := s.Action
			if s.Precedence != 0 {
				action += fmt.Sprintf(" (precedence %d)", s.Precedence)
			}
			if s.Audit {
				action += " (audit)"
			}
			outcome := cell{text: strings.ReplaceAll(s.Outcome, "_", " ")}
			if s.Outcome == "match" {
				outcome.style = strong
			}
			steps = append(steps, []cell{text(s.Policy), text(action), outcome, text(s.Why)})
		}
		p.table([]string{"policy", "action", "outcome", "why"}, steps)
	}
	if e.Note != "" {
		p.printf("\n%s\n", clean(e.Note))
	}
}
