// SPDX-License-Identifier: Apache-2.0

// Command democonsul shows meshproxy in the service mesh of a real Consul: two
// hosts with a node each, a third one whose services have an Envoy sidecar each,
// as Consul's users have them today, calls between all of them, an intention
// that changes while they go on, and what either way costs in memory. It ends
// with a verdict and its exit status.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/meshproxy/meshproxy/tests/testnet"
)

var errFailed = errors.New("the mesh did not do what was expected")

func main() {
	program := flag.String("meshproxy", "bin/meshproxy", "the binary to run the nodes with")
	duration := flag.Duration("duration", 5*time.Second, "how long the calls go on before the intention changes")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	path, err := filepath.Abs(*program)
	if err == nil {
		err = run(ctx, path, *duration, os.Stdout)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "democonsul:", err)
		os.Exit(1)
	}
}

// run plays the demo and cleans up.
func run(ctx context.Context, program string, d time.Duration, out io.Writer) (err error) {
	say := func(format string, args ...any) { fmt.Fprintf(out, format+"\n", args...) }
	if os.Geteuid() != 0 {
		return errors.New("the demo makes network namespaces and cgroups: run it as root")
	}
	ctx, cancel := context.WithTimeout(ctx, 15*time.Minute) // building Consul, the first time
	defer cancel()
	say("Starting a real Consul on three hosts (the first time it is built, which takes minutes).")
	s, err := newStage(ctx, program)
	if s != nil {
		defer func() {
			if err != nil && !errors.Is(err, errFailed) {
				s.logs(ctx, out)
			}
			say("Cleaning up.")
			err = errors.Join(err, s.close())
		}()
	}
	if err != nil {
		return err
	}
	say("Starting one meshproxy each for %d services on host a and for %d on host b.", len(servicesOf("a")), len(servicesOf("b")))
	if err := s.startNodes(ctx); err != nil {
		return err
	}
	say("Starting %d services with an Envoy sidecar each on host %s.", len(sidecarServices), envoyHost)
	if err := s.startSidecars(ctx); err != nil {
		return err
	}
	say("Calling for %s.", d)
	if err := s.startCalls(ctx); err != nil {
		return err
	}
	var v verdict
	if err := s.watch(ctx, d, &v); err != nil {
		return err
	}
	for _, step := range []struct {
		action api.IntentionAction
		works  bool
	}{{api.IntentionActionDeny, false}, {api.IntentionActionAllow, true}} {
		say("Intention from %s to %s: %s.", flipped.from, flipped.to, step.action)
		if err := s.flip(ctx, step.action, step.works, &v); err != nil {
			return err
		}
	}
	if err := s.weigh(&v, out); err != nil {
		return err
	}
	v.write(out)
	if v.failed > 0 {
		return errFailed
	}
	return nil
}

// verdict is a list of expectations.
type verdict struct {
	lines  []string
	failed int
}

func (v *verdict) expect(held bool, what, otherwise string, args ...any) {
	if held {
		v.lines = append(v.lines, "  ok    "+what)
		return
	}
	v.failed++
	v.lines = append(v.lines, "  FAIL  "+what+": "+fmt.Sprintf(otherwise, args...))
}

func (v *verdict) write(out io.Writer) {
	fmt.Fprintln(out, "\nVerdict")
	for _, line := range v.lines {
		fmt.Fprintln(out, line)
	}
	if v.failed == 0 {
		fmt.Fprintf(out, "All %d expectations hold.\n", len(v.lines))
	} else {
		fmt.Fprintf(out, "%d of %d expectations do not hold.\n", v.failed, len(v.lines))
	}
}

// flip changes the intention and waits for what follows.
func (s *stage) flip(ctx context.Context, action api.IntentionAction, works bool, v *verdict) error {
	c := s.callOf(flipped.from, flipped.to)
	c.read()
	if err := s.intend(ctx, flipped.from, flipped.to, action); err != nil {
		return err
	}
	begin := time.Now()
	wait, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	err := testnet.Until(wait, func() error {
		c.read()
		if c.working() != works {
			return fmt.Errorf("it still says %s", c.state())
		}
		return nil
	})
	took := time.Since(begin).Round(10 * time.Millisecond)
	what := fmt.Sprintf("%s to %s is refused once the intention says deny", flipped.from, flipped.to)
	if works {
		what = fmt.Sprintf("%s reaches %s again once it says allow", flipped.from, flipped.to)
	}
	v.expect(err == nil, fmt.Sprintf("%s (after %s)", what, took), "%v", err)
	return ctx.Err()
}
