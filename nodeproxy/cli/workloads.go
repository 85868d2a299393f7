// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/meshproxy/meshproxy/nodeproxy/admin/api"
	"github.com/meshproxy/meshproxy/nodeproxy/admin/client"
)

func (c *commands) workloads() *cobra.Command {
	return &cobra.Command{
		Use:               "workloads [NAME...]",
		Short:             "Show the node's workloads; with names, all about them",
		ValidArgsFunction: c.completeWorkload,
		RunE: func(cmd *cobra.Command, names []string) error {
			return c.ask(func(cmd *cobra.Command, node *client.Client) error {
				all, err := node.Workloads(cmd.Context())
				if err != nil {
					return err
				}
				chosen, err := choose(all, names, "workload", func(w *api.Workload) string { return w.Name })
				if err != nil {
					return err
				}
				return c.show(chosen, func(p *page) {
					if len(names) == 0 {
						renderWorkloads(p, chosen)
						return
					}
					for i := range chosen {
						if i > 0 {
							p.printf("\n")
						}
						renderWorkload(p, &chosen[i])
					}
				})
			})(cmd, nil)
		},
	}
}

func renderWorkloads(p *page, workloads []api.Workload) {
	rows := make([][]cell, 0, len(workloads))
	for i := range workloads {
		w := &workloads[i]
		refused := cell{text: fmt.Sprint(w.Refused)}
		if w.Refused > 0 {
			refused.style = warn
		}
		rows = append(rows, []cell{
			{w.Name, strong},
			runningCell(w), text(w.Inbound), text(w.Egress),
			text(fmt.Sprintf("%d/%d", w.Active, w.MaxConnections)), refused, leafCell(p, w), text(w.Identity),
		})
	}
	p.table([]string{"workload", "state", "inbound", "egress", "open", "refused", "leaf expires", "identity"}, rows)
}

func runningCell(w *api.Workload) cell {
	switch {
	case w.Bypass:
		return cell{"bypassed", warn}
	case len(w.Cgroups) == 0:
		return cell{"not running", faint}
	default:
		return cell{"running", good}
	}
}

func leafCell(p *page, w *api.Workload) cell {
	if w.LeafError != "" {
		return cell{w.LeafError, bad}
	}
	return p.until(w.LeafExpires)
}

func renderWorkload(p *page, w *api.Workload) {
	state := runningCell(w)
	if w.Bypass && w.BypassCause != "" {
		state.text += " by " + w.BypassCause
	}
	rows := [][]cell{
		{text("workload"), {w.Name, strong}},
		{text("state"), state},
		{text("identity"), text(w.Identity)},
		{text("leaf expires"), leafCell(p, w)},
		{text("source"), text(w.Source)},
		{text("match"), text(strings.Join(w.Match, ", "))},
		{text("cgroups"), text(strings.Join(w.Cgroups, ", "))},
		{text("netns"), text(w.NetNS)},
		{text("ports"), text(strings.Trim(fmt.Sprint(w.Ports), "[]"))},
		{text("inbound"), text(fmt.Sprintf("%s, local processes: %s", w.Inbound, w.InboundLocal))},
		{text("egress"), text(w.Egress)},
		{text("proxy down"), text(w.OnProxyDown)},
		{text("open"), text(fmt.Sprintf("%d of %d at most", w.Active, w.MaxConnections))},
		{text("refused"), text(fmt.Sprint(w.Refused))},
	}
	for _, u := range w.Upstreams {
		to := u.Service
		if u.Port != 0 {
			to += fmt.Sprintf(" port %d", u.Port)
		}
		rows = append(rows, []cell{text("upstream"), text(u.Listen + " is " + to)})
	}
	p.table(nil, rows)
}
