// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"net"
	"time"

	"github.com/spf13/cobra"

	"github.com/meshproxy/meshproxy/nodeproxy/config"
	"github.com/meshproxy/meshproxy/sockmap/probe"
)

func (c *commands) check() *cobra.Command {
	brief := false
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Look at what the node needs of this machine, and say what is missing",
		Long: `Look at the kernel, capabilities, file systems and ports that the node needs,
and where it is to use Consul, at the agent, the token, and what seals leaves.
Nothing is changed. The exit code is 1 when a node can't run here. With --brief, a
line for each thing that is not as it should be, with its priority in front as
sd-daemon(3) has it: the unit runs it so before each start.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			conf, err := c.load(nil)
			if err != nil {
				return err
			}
			report, err := c.Check(cmd.Context(), probeOptions(cmd.Context(), conf))
			if err != nil {
				return err
			}
			report.Findings = append(report.Findings, checkConsul(cmd.Context(), conf)...)
			report.Findings = append(report.Findings, checkLeafCache(cmd.Context(), conf)...)
			render := renderReport
			if brief {
				render = renderBriefly
			}
			if err := c.show(report, func(p *page) { render(p, &report) }); err != nil {
				return err
			}
			if !report.Usable() {
				return errSilent
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&brief, "brief", false, "only what is not as it should be, for a log")
	return cmd
}

func probeOptions(ctx context.Context, conf *config.Config) probe.Options {
	o := probe.Options{BPFFS: conf.BPF.FS, NetNSHelper: conf.NetNSHelper, Running: running(ctx, conf)}
	if conf.Cgroup.Root != config.CgroupAuto {
		o.CgroupRoot = conf.Cgroup.Root
	}
	l := &conf.Listeners
	for _, p := range []probe.Port{
		{Network: "tcp", Port: l.Outbound, For: "outbound"},
		{Network: "tcp", Port: l.InboundPlain, For: "inbound plaintext"},
		{Network: "tcp", Port: l.InboundHBONE.Port(), For: "inbound hbone"},
		{Network: "tcp", Port: l.InboundMTLS.Port(), For: "inbound mtls"},
		{Network: "tcp", Port: l.DNS, For: "DNS"},
		{Network: "udp", Port: l.DNS, For: "DNS"},
		{Network: "tcp", Port: l.Metrics.Port(), For: "metrics"},
		{Network: "tcp", Port: l.Readiness.Port(), For: "readiness"},
	} {
		if p.Port != 0 { // 0 is off
			o.Ports = append(o.Ports, p)
		}
	}
	return o
}

// running reports whether the node's admin socket is listened to: then its ports
// are taken by itself. No answer is waited for. After a crash the service manager
// keeps the listeners for the next process, which does not start before this
// command has ended.
func running(ctx context.Context, conf *config.Config) bool {
	dialer := net.Dialer{Timeout: time.Second}
	conn, err := dialer.DialContext(ctx, "unix", conf.Socket())
	if err != nil {
		return false
	}
	_ = conn.Close()
	return true
}

// The priorities of sd-daemon(3).
const (
	priorityError   = "<3>"
	priorityWarning = "<4>"
	priorityInfo    = "<6>"
)

// renderBriefly writes what the journal shows, and so systemctl status.
func renderBriefly(p *page, r *probe.Report) {
	fine := 0
	for _, f := range r.Findings {
		priority := priorityWarning
		switch {
		case f.Status == probe.StatusOK:
			fine++
			continue
		case f.Required && f.Status != probe.StatusWarn:
			priority = priorityError
		}
		p.printf("%scheck: %s: %s. %s\n", priority, clean(f.Name), clean(f.Detail), clean(f.Consequence))
	}
	verdict := "a node can run here"
	priority := priorityInfo
	if !r.Usable() {
		verdict, priority = "a node can't run here", priorityError
	}
	p.printf("%scheck: %d of %d as they should be: %s\n", priority, fine, len(r.Findings), verdict)
}

var findingStyles = map[probe.Status]style{
	probe.StatusOK: good, probe.StatusWarn: warn, probe.StatusFail: bad, probe.StatusUnknown: warn,
}

func renderReport(p *page, r *probe.Report) {
	rows := make([][]cell, 0, len(r.Findings))
	fine := true
	for _, f := range r.Findings {
		detail := f.Detail
		if f.Status != probe.StatusOK {
			fine = false
			if f.MinKernel != "" {
				detail += " (Linux " + f.MinKernel + " has it)"
			}
		}
		rows = append(rows, []cell{{string(f.Status), findingStyles[f.Status]}, text(f.Name), text(detail)})
	}
	p.table([]string{"status", "what", "detail"}, rows)
	p.printf("\n")
	for _, f := range r.Findings {
		if f.Status != probe.StatusOK && f.Consequence != "" {
			p.printf("%s: %s\n", p.paint(cell{clean(f.Name), findingStyles[f.Status]}), clean(f.Consequence))
		}
	}
	switch {
	case !r.Usable():
		p.printf("%s\n", p.paint(cell{"A node can't run here.", bad}))
	case !fine:
		p.printf("%s\n", p.paint(cell{"A node can run here, with what is said above.", warn}))
	default:
		p.printf("%s\n", p.paint(cell{"A node can run here.", good}))
	}
}
