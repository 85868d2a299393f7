// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/meshproxy/meshproxy/discovery/yamlconf"
	"github.com/meshproxy/meshproxy/nodeproxy/config"
)

func (c *commands) config() *cobra.Command {
	return group("config", "Check and show the configuration", c.configValidate(), c.configShow())
}

// validation is what `config validate -o json` prints.
type validation struct {
	File     string            `json:"file"`
	Valid    bool              `json:"valid"`
	Problems yamlconf.Problems `json:"problems,omitempty"`
	Warnings []string          `json:"warnings,omitempty"`
}

func (c *commands) configValidate() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "validate [FILE]",
		Short: "Check the configuration and the mesh's files",
		Long: `Check the configuration as "run" would read it, with MESHPROXY_* variables and
flags, and the mesh's files that it names. The exit code is 2 when it is not
valid.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				c.file = args[0]
			}
			return c.validate(c.origins(cmd.Flags()))
		},
	}
	config.AddFlags(cmd.Flags())
	return cmd
}

func (c *commands) validate(o config.Origins) error {
	v := validation{File: o.Path}
	conf, err := o.Load()
	if err == nil {
		v.Warnings, err = conf.CheckMesh()
	}
	v.Valid = err == nil
	if err != nil && !errors.As(err, &v.Problems) {
		return err
	}
	showErr := c.show(v, func(p *page) {
		for _, w := range v.Warnings {
			p.printf("%s %s\n", p.paint(cell{"warning:", warn}), w)
		}
		if v.Valid {
			p.printf("%s is valid.\n", orNone(v.File))
		}
	})
	if err != nil && c.output == outputJSON {
		return errors.Join(silentInvalid{}, showErr)
	}
	if err != nil {
		return err
	}
	return showErr
}

// silentInvalid: the configuration is not valid, and that has been said.
type silentInvalid struct{}

func (silentInvalid) Error() string { return "invalid configuration" }

func (silentInvalid) Is(target error) bool { return target == errSilent || target == config.ErrInvalid }

func (c *commands) configShow() *cobra.Command {
	var defaults, running bool
	cmd := &cobra.Command{
		Use:   "show",
		Short: "Show the configuration and where each key was set",
		Long: `Show the configuration as "run" would read it, and where each key was set.
With --running, what the running node has in force. With --defaults, every key
with its default, its meaning, and the variable that sets it, too; keys marked
with * take effect after a restart.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case defaults && running:
				return usagef("--defaults and --running exclude each other")
			case defaults:
				return c.showDefaults()
			case running:
				return c.showRunning(cmd)
			}
			conf, err := c.load(cmd.Flags())
			if err != nil {
				return err
			}
			settings := conf.Settings()
			return c.show(settings, func(p *page) {
				rows := make([][]cell, len(settings))
				for i, s := range settings {
					rows[i] = settingRow(s.Key, s.Value, s.Origin)
				}
				p.table([]string{"key", "value", "set by"}, rows)
			})
		},
	}
	cmd.Flags().BoolVar(&defaults, "defaults", false, "show every key with its default and its meaning")
	cmd.Flags().BoolVar(&running, "running", false, "ask the running node")
	config.AddFlags(cmd.Flags())
	return cmd
}

func (c *commands) showRunning(cmd *cobra.Command) error {
	node, err := c.client()
	if err != nil {
		return err
	}
	defer node.Close()
	v, err := node.Config(cmd.Context())
	if err != nil {
		return err
	}
	return c.show(v, func(p *page) {
		p.printf("%s, read %s\n\n", orNone(v.File), p.ago(v.LoadedAt))
		rows := make([][]cell, len(v.Settings))
		for i, s := range v.Settings {
			rows[i] = settingRow(s.Key, s.Value, s.Origin)
		}
		p.table([]string{"key", "value", "set by"}, rows)
	})
}

func settingRow(key string, v any, origin string) []cell {
	by := cell{text: origin}
	if origin == "default" {
		by.style = faint
	}
	return []cell{text(key), text(valueText(v)), by}
}

// valueText is a value on one line.
func valueText(v any) string {
	list, ok := v.([]any)
	if !ok {
		return fmt.Sprint(v)
	}
	items := make([]string, len(list))
	for i, item := range list {
		items[i] = fmt.Sprint(item)
		if record, ok := item.(map[string]any); ok {
			items[i] = fmt.Sprint(record["identity"])
		}
	}
	return strings.Join(items, ", ")
}

func (c *commands) showDefaults() error {
	docs, err := config.Reference()
	if err != nil {
		return err
	}
	return c.show(docs, func(p *page) {
		for i, d := range docs {
			if i > 0 {
				p.printf("\n")
			}
			mark := ""
			if d.Restart {
				mark = " *"
			}
			p.printf("%s%s\n    %s\n", p.paint(cell{d.Key, strong}), mark, d.Doc)
			p.printf("    default  %s\n    accepts  %s\n", clean(valueText(d.Default)), d.Accepts)
			if d.Variable != "" {
				p.printf("    variable %s\n", d.Variable)
			}
		}
	})
}
