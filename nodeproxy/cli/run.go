// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"sync"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/meshproxy/meshproxy/discovery/diskcache"
	"github.com/meshproxy/meshproxy/discovery/yamlconf"
	"github.com/meshproxy/meshproxy/nodeproxy/config"
	"github.com/meshproxy/meshproxy/nodeproxy/handover"
	"github.com/meshproxy/meshproxy/nodeproxy/telemetry"
)

func (c *commands) run() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Run the node until SIGTERM or SIGINT",
		Long: `Run the node until SIGTERM or SIGINT, which drain it.

SIGHUP and a changed file make it read the configuration again; one that is not
valid changes nothing. When there is a new executable, SIGHUP makes the node give
way to a process of it, which takes over every listener and reads the
configuration; this one finishes what is open. SIGUSR2 does so in any case. The
programs in the kernel stay when the node stops, so that a restart is no hole in
the mesh: see "meshproxy leave".

Every key of the configuration is a flag, too; flags win over MESHPROXY_*
variables, and these over the file.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.runNode(cmd.Context(), cmd.Flags())
		},
	}
	config.AddFlags(cmd.Flags())
	return cmd
}

// runNode tells the process before, if this one is to take over from it, why it
// does not.
func (c *commands) runNode(ctx context.Context, flags *pflag.FlagSet) error {
	if err := dieBySignal(); err != nil {
		return err
	}
	program, err := handover.ThisProgram()
	if err != nil {
		return err
	}
	before, err := handover.FromEnvironment()
	if err != nil {
		return err
	}
	err = c.runAfter(ctx, flags, RunOptions{Program: program, Predecessor: before})
	if before != nil {
		if err != nil {
			before.Fail(err)
		}
		before.Close()
	}
	return err
}

// dieBySignal makes a panic, and the SIGABRT of systemd's watchdog, end the
// process by that signal. Otherwise Go's runtime ends with status 2, which is
// that of a configuration that is not valid, after which the unit is not
// started again. There is no core: keys would be in it.
func dieBySignal() error {
	debug.SetTraceback("crash")
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("forbid core dumps: %w", err)
	}
	return nil
}

func (c *commands) runAfter(ctx context.Context, flags *pflag.FlagSet, o RunOptions) error {
	origins := c.origins(flags)
	conf, err := origins.Load()
	if err != nil {
		return err
	}
	_, meshErr := conf.CheckMesh()
	if meshErr != nil && !survivable(conf, meshErr) {
		return meshErr
	}
	level := new(slog.LevelVar)
	if err := level.UnmarshalText([]byte(conf.Log.Level)); err != nil {
		return fmt.Errorf("set log level: %w", err)
	}
	handler, err := telemetry.NewLogHandler(c.Stderr, conf.Log.Format, level)
	if err != nil {
		return err
	}
	log := slog.New(handler)
	if meshErr != nil {
		log.Error("the mesh's files are not valid; the last snapshot stays in force", "error", meshErr)
	}
	ctx, stop := context.WithCancel(ctx)
	reload, hangup, upgrade := make(chan struct{}, 1), make(chan struct{}, 1), make(chan struct{}, 1)
	var watching sync.WaitGroup
	watching.Go(func() { forward(ctx, syscall.SIGHUP, hangup) })
	watching.Go(func() { forward(ctx, syscall.SIGUSR2, upgrade) })
	watching.Go(func() {
		err := config.Watch(ctx, origins, conf, nil, func(config.Reload) { demand(reload) })
		if err != nil {
			log.Warn("watch the configuration file; only SIGHUP reloads it", "error", err)
		}
	})
	defer watching.Wait()
	defer stop()
	o.Config, o.Load = conf, func() (*config.Config, error) { return loadAll(origins) }
	o.Reload, o.Hangup, o.Upgrade = reload, hangup, upgrade
	o.Version, o.Log, o.Level, o.Access = version(), log, level, c.Stdout
	return c.Run(ctx, o)
}

// loadAll reads the configuration and checks what it has of the mesh: a reload
// is valid as a whole or changes nothing.
func loadAll(o config.Origins) (*config.Config, error) {
	conf, err := o.Load()
	if err != nil {
		return nil, err
	}
	if _, err := conf.CheckMesh(); err != nil {
		return nil, err
	}
	return conf, nil
}

// survivable: a source that is away, as the files of the mesh may be, leaves the
// last snapshot in force, also over a restart. What is wrong with the
// configuration itself is another matter.
func survivable(conf *config.Config, err error) bool {
	var problems yamlconf.Problems
	if !errors.As(err, &problems) {
		return false
	}
	for _, p := range problems {
		if p.File == conf.File {
			return false
		}
	}
	return diskcache.New(diskcache.Options{Dir: conf.StateDir}).Load() != nil
}

// forward turns a signal into demands until ctx is done.
func forward(ctx context.Context, sig os.Signal, to chan<- struct{}) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, sig)
	defer signal.Stop(signals)
	for {
		select {
		case <-ctx.Done():
			return
		case <-signals:
			demand(to)
		}
	}
}

// demand asks for a reload; one that is already asked for will do.
func demand(reload chan<- struct{}) {
	select {
	case reload <- struct{}{}:
	default:
	}
}
