// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/spf13/cobra"

	"github.com/meshproxy/meshproxy/nodeproxy/admin/client"
	"github.com/meshproxy/meshproxy/nodeproxy/config"
	"github.com/meshproxy/meshproxy/nodeproxy/handover"
	"github.com/meshproxy/meshproxy/nodeproxy/identity"
	"github.com/meshproxy/meshproxy/sockmap"
	"github.com/meshproxy/meshproxy/sockmap/netns/helper"
	"github.com/meshproxy/meshproxy/sockmap/probe"
)

// The exit codes.
const (
	ExitOK      = 0
	ExitFailure = 1
	// ExitUsage is for a wrong command line and for a configuration that is
	// not valid: trying again can't help.
	ExitUsage = 2
)

// Surroundings are all that commands touch.
type Surroundings struct {
	Args []string // without the program's name
	Env  []string // "NAME=value" each
	// Stdout is for what was asked for, Stderr for everything else.
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	// Colour: Stdout is a terminal that shows colours.
	Colour bool
	// Clock is the system's, or a test's.
	Clock identity.Clock

	// Run runs a node until ctx is done.
	Run func(context.Context, RunOptions) error
	// Check looks at what the node needs of the machine.
	Check func(context.Context, probe.Options) (probe.Report, error)
	// Leave removes what a node left in the kernel.
	Leave func(sockmap.Options) error
	// HelpNetNS serves the netns helper on a listening socket until ctx is done
	// or nobody needs it.
	HelpNetNS func(context.Context, helper.Options, int) error
	// Demo shows a mesh of two nodes on this machine.
	Demo func(ctx context.Context, args []string, stdout, stderr io.Writer) error
}

// RunOptions are what a node is started with.
type RunOptions struct {
	Config *config.Config
	// Load reads the configuration again.
	Load func() (*config.Config, error)
	// Reload asks for that: a changed file.
	Reload <-chan struct{}
	// Hangup asks to give way to a new executable if there is one, and for a
	// reload otherwise (SIGHUP); Upgrade for the former in any case (SIGUSR2).
	Hangup, Upgrade <-chan struct{}
	// Program is what an upgrade starts.
	Program handover.Program
	// Predecessor is the process that hands over to this one; nil if none does.
	Predecessor *handover.Predecessor
	Version     string
	Log         *slog.Logger
	Level       *slog.LevelVar
	// Access takes the access log.
	Access io.Writer
}

// errUsage marks errors of the command line.
var errUsage = errors.New("wrong usage")

type usageError struct{ error }

func (usageError) Is(target error) bool { return target == errUsage }

func (e usageError) Unwrap() error { return e.error }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// errSilent is for a command that has already said what is wrong.
var errSilent = errors.New("failed")

// Main runs the command that the arguments name and returns its exit code.
func Main(ctx context.Context, s Surroundings) int {
	if s.Clock == nil {
		s.Clock = identity.SystemClock{}
	}
	c := &commands{Surroundings: s}
	root := c.root()
	err := root.ExecuteContext(ctx)
	if err != nil && !errors.Is(err, errSilent) {
		c.complain(err)
	}
	return exitCode(err)
}

// Command is the tree of commands, for who describes it.
func Command(s Surroundings) *cobra.Command { return (&commands{Surroundings: s}).root() }

func exitCode(err error) int {
	switch {
	case err == nil:
		return ExitOK
	case errors.Is(err, errUsage), errors.Is(err, config.ErrInvalid):
		return ExitUsage
	default:
		return ExitFailure
	}
}

// complain says what is wrong, and what may help.
func (c *commands) complain(err error) {
	fmt.Fprintln(c.Stderr, "meshproxy:", err)
	switch {
	case errors.Is(err, client.ErrNotRunning):
		fmt.Fprintln(c.Stderr, "Is it started (systemctl status meshproxy)? --socket names another node's socket.")
	case errors.Is(err, client.ErrNotPermitted):
		fmt.Fprintln(c.Stderr, "Try again as root.")
	case errors.Is(err, errUsage):
		fmt.Fprintln(c.Stderr, "Run 'meshproxy help' for the commands, and a command with --help for what it takes.")
	}
}

// commands are the commands in their surroundings, with the flags that all of
// them share.
type commands struct {
	Surroundings
	output string
	socket string
	file   string
}

func (c *commands) now() time.Time { return c.Clock.Now() }
