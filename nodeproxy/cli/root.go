// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/meshproxy/meshproxy/nodeproxy/admin/client"
	"github.com/meshproxy/meshproxy/nodeproxy/config"
)

// DefaultFile is read when neither --config nor MESHPROXY_CONFIG names a file,
// if it is there.
const DefaultFile = "/etc/meshproxy/meshproxy.yaml"

// The values of --output.
const (
	outputTable = "table"
	outputJSON  = "json"
)

func (c *commands) root() *cobra.Command {
	root := &cobra.Command{
		Use:           "meshproxy",
		Short:         "One proxy per node joins every workload to the service mesh",
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return cmd.Help()
			}
			return unknownCommand(cmd, args[0])
		},
		PersistentPreRunE: func(*cobra.Command, []string) error {
			if c.output != outputTable && c.output != outputJSON {
				return usagef("--output %q: want table or json", c.output)
			}
			return nil
		},
	}
	// Cobra takes nil for the arguments of the process.
	root.SetArgs(append([]string{}, c.Args...))
	root.SetIn(c.Stdin)
	root.SetOut(c.Stdout)
	root.SetErr(c.Stderr)
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	flags := root.PersistentFlags()
	flags.StringVarP(&c.output, "output", "o", outputTable, "table for people, json for programs")
	flags.StringVar(&c.socket, "socket", "", "the node's admin socket (default: that of the configuration)")
	flags.StringVar(&c.file, "config", "", "configuration file (default: "+DefaultFile+")")
	_ = root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{outputTable, outputJSON}, cobra.ShellCompDirectiveNoFileComp))
	root.AddCommand(
		c.run(), c.check(), c.status(), c.services(), c.workloads(), c.connections(), c.policy(),
		c.config(), c.ca(), c.bypass(), c.splice(), c.reload(), c.upgrade(), c.drain(), c.logLevel(), c.leave(), c.netnsHelper(), c.unsealLeaves(), c.demo(), c.showVersion(),
	)
	wrapArgs(root)
	return root
}

// wrapArgs makes wrong arguments errors of usage, in all commands.
func wrapArgs(cmd *cobra.Command) {
	if check := cmd.Args; check != nil {
		cmd.Args = func(cmd *cobra.Command, args []string) error {
			if err := check(cmd, args); err != nil {
				return usageError{err}
			}
			return nil
		}
	}
	for _, sub := range cmd.Commands() {
		wrapArgs(sub)
	}
}

// group is a command that only has others below it.
func group(use, short string, subs ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{
		Use: use, Short: short, Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return cmd.Help()
			}
			return unknownCommand(cmd, args[0])
		},
	}
	cmd.AddCommand(subs...)
	return cmd
}

func unknownCommand(cmd *cobra.Command, name string) error {
	if cmd.SuggestionsMinimumDistance <= 0 {
		cmd.SuggestionsMinimumDistance = 2
	}
	if near := cmd.SuggestionsFor(name); len(near) > 0 {
		return usagef("unknown command %q for %s; did you mean %s?", name, cmd.CommandPath(), strings.Join(near, " or "))
	}
	return usagef("unknown command %q for %s", name, cmd.CommandPath())
}

// getenv returns a variable of the surroundings.
func (c *commands) getenv(name string) string {
	for _, v := range c.Env {
		if value, ok := strings.CutPrefix(v, name+"="); ok {
			return value
		}
	}
	return ""
}

// path is the configuration file, "" for none.
func (c *commands) path() string {
	if c.file != "" {
		return c.file
	}
	if path := c.getenv(config.EnvFile); path != "" {
		return path
	}
	if _, err := os.Stat(DefaultFile); err == nil {
		return DefaultFile
	}
	return ""
}

// load reads the configuration; flags may be nil.
func (c *commands) load(flags *pflag.FlagSet) (*config.Config, error) {
	return c.origins(flags).Load()
}

func (c *commands) origins(flags *pflag.FlagSet) config.Origins {
	return config.Origins{Path: c.path(), Env: c.Env, Flags: flags}
}

// client returns a client for the node that --socket or the configuration
// means.
func (c *commands) client() (*client.Client, error) {
	switch {
	case c.socket != "":
		return client.New(c.socket), nil
	case c.getenv(config.EnvSocket) != "":
		return client.New(c.getenv(config.EnvSocket)), nil
	}
	conf, err := c.load(nil)
	if err != nil && (c.file != "" || c.getenv(config.EnvFile) != "") {
		return nil, err
	}
	if err != nil {
		// Who may ask the node need not be able to read its configuration.
		if conf, err = config.Default(); err != nil {
			return nil, err
		}
	}
	return client.New(conf.Socket()), nil
}

// ask runs a command that asks the node.
func (c *commands) ask(do func(*cobra.Command, *client.Client) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, _ []string) error {
		node, err := c.client()
		if err != nil {
			return err
		}
		defer node.Close()
		return do(cmd, node)
	}
}

// inform says what was done, unless a program reads.
func (c *commands) inform(format string, args ...any) {
	if c.output == outputTable {
		fmt.Fprintf(c.Stdout, format+"\n", args...)
	}
}
