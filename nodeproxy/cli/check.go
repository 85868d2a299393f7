// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/meshproxy/meshproxy/nodeproxy/admin/client"
	"github.com/meshproxy/meshproxy/nodeproxy/config"
	"github.com/meshproxy/meshproxy/sockmap/probe"
)

func (c *commands) check() *cobra.Command {
	return &cobra.Command{
		Use:   "check",
		Short: "Look at what the node needs of this machine, and say what is missing",
		Long: `Look at the kernel, capabilities, file systems and ports that the node needs.
Nothing is changed. The exit code is 1 when a node can't run here.`,
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
			if err := c.show(report, func(p *page) { renderReport(p, &report) }); err != nil {
				return err
			}
			if !report.Usable() {
				return errSilent
			}
			return nil
		},
	}
}

func probeOptions(ctx context.Context, conf *config.Config) probe.Options {
	o := probe.Options{BPFFS: conf.BPF.FS, Running: running(ctx, conf)}
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

// running reports whether the node answers: then its ports are taken by
// itself.
func running(ctx context.Context, conf *config.Config) bool {
	node := client.New(conf.Socket())
	defer node.Close()
	_, err := node.Status(ctx)
	return err == nil
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
