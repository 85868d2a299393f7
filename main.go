// SPDX-License-Identifier: Apache-2.0

// Command meshproxy joins every workload of a node to the service mesh.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/meshproxy/meshproxy/nodeproxy/cli"
	"github.com/meshproxy/meshproxy/nodeproxy/node"
	"github.com/meshproxy/meshproxy/sockmap"
	"github.com/meshproxy/meshproxy/sockmap/netns/helper"
	"github.com/meshproxy/meshproxy/sockmap/probe"
	"github.com/meshproxy/meshproxy/tests/demo"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // the second signal ends the process
	os.Exit(cli.Main(ctx, cli.Surroundings{
		Args: os.Args[1:], Env: os.Environ(),
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Colour: showsColour(),
		Run:   func(ctx context.Context, o cli.RunOptions) error { return node.Run(ctx, node.Options(o)) },
		Check: probe.Run, Leave: sockmap.Leave, Demo: demo.Run,
		HelpNetNS: func(ctx context.Context, o helper.Options, fd int) error { return helper.NewServer(o).Serve(ctx, fd) },
	}))
}

// showsColour: see no-color.org, and terminfo(5) for "dumb".
func showsColour() bool {
	_, err := unix.IoctlGetTermios(int(os.Stdout.Fd()), unix.TCGETS)
	return err == nil && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
}
