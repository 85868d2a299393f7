// SPDX-License-Identifier: Apache-2.0

package demo

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/meshproxy/meshproxy/tests/testnet"
	"github.com/meshproxy/meshproxy/tests/workload"
)

var (
	// ErrFailed means that an expectation didn't hold; the verdict says
	// which.
	ErrFailed = errors.New("the mesh did not do what was expected")
	errRoot   = errors.New("the demo makes network namespaces and cgroups: run it as root")
	errRole   = errors.New("the workload failed")
)

// options are the flags.
type options struct {
	duration time.Duration
	keep     bool
	down     bool
}

// Run runs the demo with the arguments that follow `meshproxy demo`. It
// returns nil only when every expectation held, and leaves nothing behind,
// whatever happens, unless it is told to keep a demo up. The program that calls it must also run its nodes: it is
// started again with the arguments "run --config FILE", and with "demo role"
// for the workloads.
func Run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	if len(args) > 0 && args[0] == roleName {
		if status := workload.Main(args[1:], stdout, stderr); status != workload.ExitOK {
			return errRole
		}
		return nil
	}
	keeper := len(args) > 0 && args[0] == keeperName
	if keeper {
		args = args[1:]
	}
	var o options
	fs := flag.NewFlagSet("meshproxy demo", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.DurationVar(&o.duration, "duration", 15*time.Second, "how long the workloads call each other before the verdict")
	fs.BoolVar(&o.keep, "keep", false, "leave it up after the verdict, and print commands to try")
	fs.BoolVar(&o.down, "down", false, "take down what --keep left up, and do nothing else")
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil
		}
		return fmt.Errorf("read flags: %w", err)
	}
	if os.Geteuid() != 0 {
		return errRoot
	}
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	if keeper {
		return runKeeper(ctx, o, stdout)
	}
	found, err := takeDown(ctx)
	switch {
	case err != nil:
		return err
	case o.down && !found:
		fmt.Fprintln(stdout, "No demo is up.")
		return nil
	case found:
		fmt.Fprintln(stdout, "Took down the demo that was up.")
	}
	if o.down {
		return nil
	}
	if o.keep {
		return keep(ctx, o, stdout, stderr)
	}
	return run(ctx, o, stdout, func(*stage, verdict) error { return nil })
}

// run plays the demo and cleans up when after, which is called with the
// verdict, returns.
func run(ctx context.Context, o options, stdout io.Writer, after func(*stage, verdict) error) (err error) {
	say := func(format string, args ...any) { fmt.Fprintf(stdout, format+"\n", args...) }
	say("Making two hosts and a container, with %d services.", len(services))
	begin, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	s, err := newStage(begin)
	if err != nil {
		return err
	}
	defer func() {
		say("Cleaning up.")
		err = errors.Join(err, s.close())
	}()
	say("Calling once without the mesh, for comparison.")
	if err := s.callBefore(begin); err != nil {
		return err
	}
	say("Starting a node on each host.")
	if err := s.startMesh(begin); err != nil {
		return err
	}
	if err := s.startCalls(); err != nil {
		return err
	}
	v, err := s.show(ctx, o.duration, newView(stdout))
	if err != nil {
		return err
	}
	v.write(stdout)
	if err := after(s, v); err != nil {
		return err
	}
	if v.failures() > 0 {
		return ErrFailed
	}
	return nil
}

// callBefore makes each call once, by address: everything is reachable, and
// payloads can be read on the wire.
func (s *stage) callBefore(ctx context.Context) error {
	running := make([]*testnet.Process, len(calls))
	for i := range calls {
		c := &calls[i]
		var err error
		if running[i], err = s.startCall(c, c.byAddress(s).String(), s.before, 1); err != nil {
			return err
		}
	}
	for i, p := range running {
		if err := p.Wait(ctx); err != nil {
			return err
		}
		c, t := &calls[i], newTraffic(p)
		t.read()
		if t.requests != 1 || t.errors != 0 {
			return fmt.Errorf("call %s from %s without the mesh: %d answers, error %s", c.target(), c.from(), t.requests, t.err)
		}
	}
	return nil
}

// show watches the traffic for a while and judges it.
func (s *stage) show(ctx context.Context, d time.Duration, v view) (verdict, error) {
	all := make([]*traffic, len(s.clients))
	for i, p := range s.clients {
		all[i] = newTraffic(p)
	}
	o := newObserver()
	watch, stop := context.WithCancel(ctx)
	var watchers sync.WaitGroup
	defer watchers.Wait()
	defer stop()
	for name, n := range s.nodes {
		watchers.Go(func() { o.watch(watch, name, n.Admin) })
	}
	refresh := func(left time.Duration) error {
		for _, t := range all {
			t.read()
		}
		for name, n := range s.nodes {
			if err := o.poll(ctx, name, n.Admin); err != nil {
				return err
			}
		}
		v.refresh(fmt.Sprintf("Two nodes, %d services; verdict in %s.", len(services), left.Round(time.Second)), all, o)
		return nil
	}
	end := time.Now().Add(d)
	tick := time.NewTicker(v.every)
	defer tick.Stop()
	half, over := time.After(d/2), time.After(d)
	for ended := false; !ended; {
		select {
		case <-half:
			if err := s.servers[leaves].Signal(syscall.SIGTERM); err != nil {
				return nil, err
			}
		case <-tick.C:
			if err := refresh(time.Until(end)); err != nil {
				return nil, err
			}
		case <-over:
			ended = true
		case <-ctx.Done():
			return nil, errors.New("interrupted")
		}
	}
	if err := s.settle(ctx); err != nil {
		return nil, err
	}
	if err := refresh(0); err != nil {
		return nil, err
	}
	if err := o.problem(); err != nil {
		return nil, err
	}
	return s.judge(all, o), nil
}

// settle waits until each client has reported after the first second, and the
// capture has seen everything.
func (s *stage) settle(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for _, p := range s.clients {
		if _, err := p.Stdout().WaitString(ctx, workload.EventStats); err != nil {
			return fmt.Errorf("%s reports nothing: %w: %s", p.Name(), err, p.Stderr().Tail(300))
		}
	}
	return s.wire.Sync(ctx)
}

// hints prints what to try while it is up.
func (s *stage) hints(w io.Writer) {
	self, err := os.Executable()
	if err != nil {
		self = "meshproxy"
	}
	a, b := s.nodes[hostA], s.nodes[hostB]
	fmt.Fprintf(w, `
It stays up. As root:

  # what a node says
  %[1]s status --config %[2]s
  %[1]s connections --watch --config %[2]s
  %[1]s workloads --config %[3]s
  %[1]s policy test --from web --to db --config %[3]s

  # a call as the workload web: its cgroup, its host's network and resolver
  sh -c 'echo $$ > %[4]s/cgroup.procs && exec nsenter --target %[5]d --net --mount \
    %[1]s demo role dial-once -address api.%[6]s:80'

  # change the mesh; both nodes notice
  editor %[7]s

  # what the processes wrote
  ls %[8]s/*/log

  # take it down
  %[1]s demo --down
`, self, a.ConfigPath(), b.ConfigPath(), s.topology.Host(hostA).Cgroup(cgroup("web")), s.pidOf("web"), domain,
		s.topology.Dir()+"/mesh.yaml", s.topology.Dir())
}

// pidOf returns a process of a workload on host a.
func (s *stage) pidOf(workload string) int {
	for i := range calls {
		if calls[i].workload == workload && calls[i].place == hostA {
			return s.clients[i].Pid()
		}
	}
	return os.Getpid()
}
