// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/meshproxy/meshproxy/nodeproxy/admin/api"
	"github.com/meshproxy/meshproxy/nodeproxy/admin/client"
	"github.com/meshproxy/meshproxy/nodeproxy/config"
	"github.com/meshproxy/meshproxy/nodeproxy/identity"
	"github.com/meshproxy/meshproxy/nodeproxy/identity/embedded"
)

func (c *commands) ca() *cobra.Command {
	return group("ca", "The embedded CA: make it, look at it, give it a new root",
		c.caInit(), c.caShow(), c.caRotate())
}

func (c *commands) caInit() *cobra.Command {
	return &cobra.Command{
		Use:   "init",
		Short: "Make the CA's directory with its first root",
		Long: `Make the CA's directory (identity.embedded.dir) with its first root. An existing
CA is never touched. The other nodes of the mesh need a copy of the directory;
whoever can read it can be any workload.`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			conf, err := c.load(nil)
			if err != nil {
				return err
			}
			e := &conf.Identity.Embedded
			root, err := embedded.Init(e.Dir, conf.Node.TrustDomain, embedded.InitOptions{
				RootTTL: e.CATTL, MaxLeafTTL: e.LeafTTL, Clock: c.Clock,
			})
			if err != nil {
				return fmt.Errorf("make CA in %s: %w", e.Dir, err)
			}
			return c.show(rootOf(&root), func(p *page) {
				p.printf("Made a CA for %s in %s. Its root expires %s.\n", root.TrustDomain, e.Dir, p.until(root.NotAfter).text)
			})
		},
	}
}

func (c *commands) caShow() *cobra.Command {
	var running bool
	cmd := &cobra.Command{
		Use:   "show",
		Short: "Show the trust bundle's roots; with --running, also the leaves that the node uses",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if running {
				return c.ask(func(cmd *cobra.Command, node *client.Client) error {
					v, err := node.CA(cmd.Context())
					if err != nil {
						return err
					}
					return c.show(v, func(p *page) { renderCA(p, &v) })
				})(cmd, nil)
			}
			conf, err := c.embeddedConfig()
			if err != nil {
				return err
			}
			s, err := embedded.Summary(conf.Identity.Embedded.Dir, c.Clock)
			if err != nil {
				return fmt.Errorf("read CA in %s: %w", conf.Identity.Embedded.Dir, err)
			}
			v := caOf(conf, &s)
			return c.show(v, func(p *page) { renderCA(p, &v) })
		},
	}
	cmd.Flags().BoolVar(&running, "running", false, "ask the running node")
	return cmd
}

func (c *commands) caRotate() *cobra.Command {
	var propagation time.Duration
	cmd := &cobra.Command{
		Use:   "rotate",
		Short: "Add a root that succeeds the present one",
		Long: `Add a root that succeeds the present one. It is trusted as soon as a node sees
it, and signs when --propagation is over; running nodes notice by themselves.
Where nodes have copies of the directory, copy it within that time.`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			conf, err := c.embeddedConfig()
			if err != nil {
				return err
			}
			e := &conf.Identity.Embedded
			root, err := embedded.Rotate(e.Dir, embedded.RotateOptions{
				RootTTL: e.CATTL, Propagation: propagation, Clock: c.Clock,
			})
			if err != nil {
				return fmt.Errorf("rotate CA in %s: %w", e.Dir, err)
			}
			return c.show(rootOf(&root), func(p *page) {
				p.printf("Added root %.16s. It signs from %s.\n", root.Fingerprint, root.SignsFrom.Format(time.RFC3339))
			})
		},
	}
	cmd.Flags().DurationVar(&propagation, "propagation", 0, "how long the new root is trusted before it signs (default: the CA's)")
	return cmd
}

// embeddedConfig is the configuration of a node whose provider is embedded.
func (c *commands) embeddedConfig() (*config.Config, error) {
	conf, err := c.load(nil)
	if err != nil {
		return nil, err
	}
	if conf.Identity.Provider != config.ProviderEmbedded {
		return nil, usagef("identity.provider is %s: there is no CA here (--running asks the node)", conf.Identity.Provider)
	}
	return conf, nil
}

func caOf(conf *config.Config, s *identity.Summary) api.CA {
	v := api.CA{Provider: s.Provider, TrustDomain: conf.Node.TrustDomain.Name(), Problems: s.Problems, Roots: []api.Root{}}
	for i := range s.Roots {
		v.Roots = append(v.Roots, rootOf(&s.Roots[i]))
	}
	return v
}

func rootOf(r *identity.RootSummary) api.Root { return api.Root(*r) }

func renderCA(p *page, v *api.CA) {
	rows := make([][]cell, 0, len(v.Roots))
	for _, r := range v.Roots {
		state := text(r.State)
		switch r.State {
		case "signing":
			state.style = good
		case "next":
			state.text += ", signs " + p.until(r.SignsFrom).text
		case "retiring":
			if !r.TrustedUntil.IsZero() {
				state.text += ", trusted for " + brief(r.TrustedUntil.Sub(p.now))
			}
		}
		rows = append(rows, []cell{{shortened(r.Fingerprint), strong}, text(r.TrustDomain), state, p.until(r.NotAfter), text(r.Subject)})
	}
	p.table([]string{"root", "trust domain", "state", "expires", "subject"}, rows)
	if len(v.Leaves) > 0 {
		p.printf("\n")
		rows = rows[:0]
		for _, l := range v.Leaves {
			rows = append(rows, []cell{{l.Identity, strong}, text(l.Workload), p.until(l.NotAfter), text(l.Serial), text(l.Issuer)})
		}
		p.table([]string{"leaf", "workload", "expires", "serial", "issuer"}, rows)
	}
	for _, problem := range v.Problems {
		p.printf("\n%s%s\n", p.paint(cell{"! ", bad}), clean(problem))
	}
}

func shortened(fingerprint string) string { return fingerprint[:min(16, len(fingerprint))] }
