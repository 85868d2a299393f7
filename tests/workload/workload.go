// SPDX-License-Identifier: Apache-2.0

// Package workload is an application as the mesh carries them: it serves HTTP
// and plain TCP, calls others in a loop, and says as JSON lines on standard
// output what it saw. End-to-end tests and the demo run it in cgroups and
// namespaces and read those lines.
//
// It uses the system's resolver and plain sockets only, and must know nothing
// of meshproxy: what it reports is what any application would see.
package workload

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os/signal"
	"sync"
	"syscall"
)

// Exit statuses of Main.
const (
	ExitOK      = 0
	ExitFailure = 1 // what was asked for didn't work; the report says why
	ExitUsage   = 2
)

// role is one thing that the program can be told to do.
type role struct {
	usage string
	run   func(ctx context.Context, args []string, out *reporter) error
}

var roles = map[string]role{
	"serve":     {"serve HTTP and TCP until SIGTERM", serve},
	"call":      {"call a server in a loop until SIGTERM", call},
	"dial-once": {"make one connection and report how it went", dialOnce},
	"hold":      {"open connections and report what becomes of them until SIGTERM", hold},
	"converse":  {"make one connection and go through steps on it", converse},
	"wait":      {"do nothing until SIGTERM", wait},
}

// Main runs the program with its arguments, the first of which is the role,
// and returns the exit status.
func Main(args []string, stdout, stderr io.Writer) int {
	if len(args) == 0 {
		usage(stderr)
		return ExitUsage
	}
	r, ok := roles[args[0]]
	if !ok {
		usage(stderr)
		return ExitUsage
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	err := r.run(ctx, args[1:], &reporter{out: stdout})
	switch {
	case err == nil:
		return ExitOK
	case errors.Is(err, errUsage), errors.Is(err, flag.ErrHelp):
		fmt.Fprintln(stderr, err)
		return ExitUsage
	case errors.Is(err, errReported):
		return ExitFailure
	}
	fmt.Fprintln(stderr, "workload:", err)
	return ExitFailure
}

var (
	errUsage = errors.New("usage")
	// errReported is a failure that is on standard output already.
	errReported = errors.New("reported")
)

func usage(w io.Writer) {
	fmt.Fprintln(w, "usage: workload ROLE [flags]")
	for _, name := range []string{"serve", "call", "dial-once", "hold", "converse", "wait"} {
		fmt.Fprintf(w, "  %-10s %s\n", name, roles[name].usage)
	}
}

// parse reads the flags of a role, which takes no other arguments.
func parse(fs *flag.FlagSet, args []string) error {
	fs.SetOutput(io.Discard)
	if err := fs.Parse(args); err != nil {
		return fmt.Errorf("%w: %s: %w", errUsage, fs.Name(), err)
	}
	if fs.NArg() > 0 {
		return fmt.Errorf("%w: %s: unexpected argument %q", errUsage, fs.Name(), fs.Arg(0))
	}
	return nil
}

// reporter writes reports as JSON lines, from any goroutine.
type reporter struct {
	mu  sync.Mutex
	out io.Writer
}

func (r *reporter) report(v any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	line, err := json.Marshal(v)
	if err != nil {
		panic(err) // reports always have a JSON form
	}
	// A json.Encoder writes nothing more after an error, such as a full disk's;
	// and nobody is left to tell when standard output is gone.
	_, _ = r.out.Write(append(line, '\n'))
}

// wait is a process that only is there.
func wait(ctx context.Context, args []string, out *reporter) error {
	if err := parse(flag.NewFlagSet("wait", flag.ContinueOnError), args); err != nil {
		return err
	}
	out.report(Ready{Event: EventReady})
	<-ctx.Done()
	return nil
}
