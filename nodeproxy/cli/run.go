// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/meshproxy/meshproxy/discovery/diskcache"
	"github.com/meshproxy/meshproxy/discovery/yamlconf"
	"github.com/meshproxy/meshproxy/nodeproxy/config"
	"github.com/meshproxy/meshproxy/nodeproxy/telemetry"
)

func (c *commands) run() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Run the node until SIGTERM or SIGINT",
		Long: `Run the node until SIGTERM or SIGINT, which drain it.

SIGHUP and a changed file make it read the configuration again; one that is not
valid changes nothing. The programs in the kernel stay when the node stops, so
that a restart is no hole in the mesh: see "meshproxy leave".

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

func (c *commands) runNode(ctx context.Context, flags *pflag.FlagSet) error {
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
	reload := make(chan struct{}, 1)
	var watching sync.WaitGroup
	watching.Go(func() { forwardHangups(ctx, reload) })
	watching.Go(func() {
		err := config.Watch(ctx, origins, conf, nil, func(config.Reload) { demand(reload) })
		if err != nil {
			log.Warn("watch the configuration file; only SIGHUP reloads it", "error", err)
		}
	})
	defer watching.Wait()
	defer stop()
	return c.Run(ctx, RunOptions{
		Config: conf, Load: func() (*config.Config, error) { return loadAll(origins) }, Reload: reload,
		Version: version(), Log: log, Level: level, Access: c.Stdout,
	})
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

// forwardHangups turns SIGHUP into demands until ctx is done.
func forwardHangups(ctx context.Context, reload chan<- struct{}) {
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	defer signal.Stop(hangups)
	for {
		select {
		case <-ctx.Done():
			return
		case <-hangups:
			demand(reload)
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
