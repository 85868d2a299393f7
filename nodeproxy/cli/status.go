// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/meshproxy/meshproxy/nodeproxy/admin/api"
	"github.com/meshproxy/meshproxy/nodeproxy/admin/client"
)

func (c *commands) status() *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Show how the node is doing",
		Args:  cobra.NoArgs,
		RunE: c.ask(func(cmd *cobra.Command, node *client.Client) error {
			s, err := node.Status(cmd.Context())
			if err != nil {
				return err
			}
			return c.show(s, func(p *page) { renderStatus(p, &s) })
		}),
	}
}

var stateStyles = map[api.State]style{
	api.StateStarting: warn, api.StateReady: good, api.StateDegraded: bad, api.StateDraining: warn,
}

func renderStatus(p *page, s *api.Status) {
	name := s.Node
	if s.Address != "" {
		name += " (" + s.Address + ")"
	}
	rows := [][]cell{
		{text("node"), {name, strong}},
		{text("state"), {string(s.State), stateStyles[s.State]}},
		{text("running"), text(fmt.Sprintf("%s, pid %d, for %s", s.Version, s.PID, brief(p.now.Sub(s.Started))))},
		{text("config"), text(fmt.Sprintf("%s, read %s", orNone(s.Config.File), p.ago(s.Config.LoadedAt)))},
		{text("snapshot"), text(snapshotLine(p, &s.Snapshot))},
	}
	if s.Upgrades.Generation > 1 {
		rows = append(rows, []cell{text("upgraded"), text(upgradesLine(p, &s.Upgrades))})
	}
	for _, source := range s.Sources {
		rows = append(rows, []cell{text("source"), sourceCell(p, &source)})
	}
	rows = append(rows,
		[]cell{text("capture"), captureCell(&s.Capture)},
		[]cell{text("splicing"), spliceCell(&s.Capture.Splice)},
		[]cell{text("identity"), identityCell(p, s)},
		[]cell{text("workloads"), text(workloadsLine(s.Workloads))},
		[]cell{text("traffic"), text(fmt.Sprintf("%d open, %d opened, %s sent, %s received",
			s.Traffic.Active, s.Traffic.Opened, size(s.Traffic.Sent), size(s.Traffic.Received)))},
	)
	p.table(nil, rows)
	renderProblems(p, s)
	renderStatusTables(p, s)
}

func orNone(file string) string {
	if file == "" {
		return "no file"
	}
	return file
}

func snapshotLine(p *page, s *api.Snapshot) string {
	if s.Built.IsZero() {
		return "none yet"
	}
	return fmt.Sprintf("version %d, built %s: %s, %s, %s", s.Version, p.ago(s.Built),
		plural(s.Services, "service"), plural(s.Endpoints, "endpoint"), plural(s.Policies, "policy"))
}

func upgradesLine(p *page, u *api.Upgrades) string {
	line := fmt.Sprintf("%s, generation %d", p.ago(u.At), u.Generation)
	if before := u.Predecessor; before != nil {
		line += fmt.Sprintf("; pid %d, %s, drains %s", before.PID, before.Version, plural(before.Connections, "connection"))
	}
	return line
}

func sourceCell(p *page, s *api.Source) cell {
	switch {
	case s.Error != "":
		return cell{fmt.Sprintf("%s: %s", s.Name, s.Error), bad}
	case s.Stale:
		return cell{fmt.Sprintf("%s: stale for %s", s.Name, brief(p.now.Sub(s.Since))), warn}
	case !s.Ready:
		return cell{s.Name + ": not ready", warn}
	default:
		return text(s.Name + ": ready")
	}
}

func captureCell(s *api.Capture) cell {
	switch {
	case s.Error != "":
		return cell{s.Error, bad}
	case !s.Attached:
		return cell{"not attached", bad}
	default:
		return text(fmt.Sprintf("%s: %d captured, %d passthrough, %d refused, %s",
			s.CgroupRoot, s.Captured, s.Passthrough, s.Refused, plural(s.Flows, "flow")))
	}
}

func identityCell(p *page, s *api.Status) cell {
	id := &s.Identity
	line := fmt.Sprintf("%s, trust domain %s, %s", id.Provider, cmp.Or(s.TrustDomain, "not known yet"), plural(id.Leaves, "leaf"))
	switch {
	case id.Error != "":
		return cell{line + ": " + id.Error, bad}
	case len(id.Missing) > 0:
		return cell{line + ", none for " + strings.Join(id.Missing, ", "), bad}
	case !id.NextExpiry.IsZero():
		return cell{line + ", the first expires " + p.until(id.NextExpiry).text, p.until(id.NextExpiry).style}
	default:
		return text(line)
	}
}

func workloadsLine(w api.WorkloadCount) string {
	line := fmt.Sprintf("%d configured, %d running", w.Configured, w.Running)
	if w.Bypassed > 0 {
		line += fmt.Sprintf(", %d bypassed", w.Bypassed)
	}
	return line
}

func renderProblems(p *page, s *api.Status) {
	problems := append([]string(nil), s.Problems...)
	if s.Config.LastError != "" {
		problems = append(problems, "the latest reload changed nothing: "+s.Config.LastError)
	}
	if len(s.Config.RestartNeeded) > 0 {
		problems = append(problems, "changed, and in force after a restart: "+strings.Join(s.Config.RestartNeeded, ", "))
	}
	for _, source := range s.Sources {
		for _, w := range source.Warnings {
			problems = append(problems, source.Name+": "+w)
		}
	}
	if len(problems) > 0 {
		p.printf("\n")
	}
	for _, text := range problems {
		for i, line := range strings.Split(text, "\n") {
			mark := "! "
			if i > 0 {
				mark = "  "
			}
			p.printf("%s%s\n", p.paint(cell{mark, bad}), clean(line))
		}
	}
}

// slowTurn is longer than a healthy loop ever takes.
const slowTurn = 100 * time.Millisecond

func renderStatusTables(p *page, s *api.Status) {
	section := func(header []string, rows [][]cell) {
		if len(rows) > 0 {
			p.printf("\n")
			p.table(header, rows)
		}
	}
	var listeners, loops, peers, refusals [][]cell
	for _, l := range s.Listeners {
		listeners = append(listeners, []cell{text(l.Name), text(l.Address), text(l.NetNS)})
	}
	for _, peer := range s.Peers {
		peers = append(peers, []cell{
			text(peer.Address), text(peer.Transport), text(peer.Role),
			text(strconv.Itoa(peer.Connections)), text(strconv.Itoa(peer.Streams)),
		})
	}
	for _, r := range s.Refusals {
		refusals = append(refusals, []cell{
			text(r.Direction), text(r.Reason.String()), text(strconv.FormatUint(r.Count, 10)), {r.Reason.Text(), faint},
		})
	}
	for _, l := range s.Loops {
		lag := text(l.Lag.Round(time.Microsecond).String())
		if l.Lag > slowTurn {
			lag.style = warn
		}
		loops = append(loops, []cell{
			text(strconv.Itoa(l.Loop)), text(strconv.Itoa(l.Descriptors)), text(strconv.FormatUint(l.Turns, 10)), lag,
		})
	}
	section([]string{"listener", "address", "netns"}, listeners)
	section([]string{"loop", "descriptors", "turns", "longest turn"}, loops)
	section([]string{"peer", "transport", "role", "tunnels", "streams"}, peers)
	section([]string{"refused", "reason", "count", "meaning"}, refusals)
}
