// SPDX-License-Identifier: Apache-2.0

// Command bench compares meshproxy with the alternatives, in one run on one
// machine; see BENCHMARKS.md, which it writes, and results.json beside it. It
// needs root. What it measures in one run is a suite: nodes with a mesh of their
// own, or nodes in the mesh of a real Consul.
//
// The harness (this package) starts peers and judges figures; the load is made
// by package load, in processes of its own.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// options are the flags.
type options struct {
	quick     bool
	rounds    int
	idle      int
	workloads int
	upstreams int
	quiet     time.Duration
	length    time.Duration
	part      string
	peers     string
	probes    string
	product   string
	out       string
}

func main() {
	if len(os.Args) > 2 && os.Args[1] == "role" {
		if err := role(os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			os.Exit(1)
		}
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, parseFlags())
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func parseFlags() options {
	var o options
	flag.BoolVar(&o.quick, "quick", false, "short windows, one round: does it work? Writes no files unless -out is given")
	flag.IntVar(&o.rounds, "rounds", 0, "rounds, instead of the plan's")
	flag.IntVar(&o.idle, "idle", 0, "idle connections, instead of the plan's")
	flag.IntVar(&o.workloads, "workloads", 0, "workloads, instead of the plan's")
	flag.IntVar(&o.upstreams, "upstreams", 0, "upstreams in Consul, instead of the plan's")
	flag.DurationVar(&o.quiet, "quiet", 0, "window without changes among them, instead of the plan's")
	flag.StringVar(&o.part, "part", "nodes,local", "what to measure, separated by commas: nodes, local, consul")
	flag.StringVar(&o.peers, "peers", "", "only these, separated by commas")
	flag.StringVar(&o.probes, "probes", "", "only these probes of a peer, separated by commas: up, down, ping 1, ping 32, connections, local_ping_64 and other figures of the local path; rest is what is measured beside them. Writes no files unless -out is given")
	flag.DurationVar(&o.length, "window", 0, "how long each probe measures, instead of the plan's")
	flag.StringVar(&o.product, "meshproxy", "bin/meshproxy", "the binary to measure")
	flag.StringVar(&o.out, "out", "", "directory of the repository, where the results are written (default . without -quick)")
	flag.Parse()
	return o
}

// plan is the one that the flags ask for.
func (o options) plan() plan {
	p := fullPlan
	if o.quick {
		p = quickPlan
	}
	for _, change := range []struct {
		to    *int
		value int
	}{{&p.rounds, o.rounds}, {&p.idle, o.idle}, {&p.workloads, o.workloads}, {&p.upstreams, o.upstreams}} {
		if change.value > 0 {
			*change.to = change.value
		}
	}
	if o.quiet > 0 {
		p.quiet = o.quiet
	}
	if o.length > 0 {
		p.window.Length = o.length
	}
	if o.probes != "" {
		p.only = strings.Split(o.probes, ",")
	}
	return p
}

func run(ctx context.Context, o options) (err error) {
	if !o.quick && o.probes == "" && o.out == "" {
		o.out = "."
	}
	p := o.plan()
	parts, err := o.suites()
	if err != nil {
		return err
	}
	notes, err := readNotes()
	if err != nil {
		return err
	}
	descriptors, err := raiseDescriptors(p)
	if err != nil {
		return err
	}
	product, err := filepath.Abs(o.product)
	if err != nil {
		return fmt.Errorf("find meshproxy: %w", err)
	}
	s, err := newSite(ctx, product)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	s.descriptors = descriptors

	for _, part := range parts {
		h := &harness{suite: part, site: s, plan: p, only: o.peers, samples: samples{}, broken: make(map[string]bool)}
		if err := h.run(ctx, o.out, notes); err != nil {
			return err
		}
	}
	return nil
}

// suites are the parts that the flags ask for.
func (o options) suites() (parts []*suite, err error) {
	for _, name := range strings.Split(o.part, ",") {
		i := slices.IndexFunc(suites, func(s *suite) bool { return s.name == name })
		if i < 0 {
			return nil, fmt.Errorf("no part %q", name)
		}
		parts = append(parts, suites[i])
	}
	return parts, nil
}

// run measures a suite and writes what came of it.
func (h *harness) run(ctx context.Context, out string, notes map[string]string) error {
	if h.suite.choose(ctx, h); len(h.peers) == 0 {
		return fmt.Errorf("choose peers: none of %q", h.only)
	}
	m := describe(ctx, h.site, h.peers, h.plan)
	if err := h.measure(ctx); err != nil {
		return err
	}
	m.Failed = append(h.missing, h.failures...)
	all := h.samples.outcomes(h.suite, notes)
	fmt.Print(table(all))
	if err := write(out, h.suite, m, all); err != nil {
		return err
	}
	if len(h.failures) > 0 {
		return fmt.Errorf("not everything was measured: %s", strings.Join(h.failures, "; "))
	}
	return nil
}

// raiseDescriptors makes room for the idle connections, of which a proxy has
// two descriptors each, and returns the limit. What is set here is inherited
// by all processes; Go would otherwise give them the limit that it found.
func raiseDescriptors(p plan) (int, error) {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return 0, fmt.Errorf("read descriptor limit: %w", err)
	}
	found := limit.Max
	limit.Max = max(limit.Max, uint64(2*p.idle+spareDescriptors))
	limit.Cur = limit.Max
	err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit)
	if errors.Is(err, syscall.EPERM) { // root without CAP_SYS_RESOURCE
		limit.Cur, limit.Max = found, found
		err = syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit)
	}
	if err != nil {
		return 0, fmt.Errorf("raise descriptor limit: %w", err)
	}
	return int(limit.Max), nil
}

// spareDescriptors are what a proxy needs for itself.
const spareDescriptors = 500

// harness is one run of a suite.
type harness struct {
	suite   *suite
	site    *site
	plan    plan
	only    string // peers, all if empty
	peers   []contender
	samples samples
	broken  map[string]bool
	// missing are peers that aren't there, failures those that broke.
	missing, failures []string
}

// contender is one who is measured: a peer, or a localPeer.
type contender interface{ name() string }

func progress(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }

func (h *harness) wants(name string) bool {
	return h.only == "" || slices.Contains(strings.Split(h.only, ","), name)
}

// add takes one in who is wanted, or says why it isn't there: a machine without
// network has no Envoy.
func (h *harness) add(p contender, missing error) {
	switch {
	case !h.wants(p.name()):
	case missing != nil:
		h.missing = append(h.missing, p.name()+": "+missing.Error())
		progress("no %s: %v", p.name(), missing)
	default:
		h.peers = append(h.peers, p)
	}
}

func (h *harness) has(name string) bool {
	return slices.ContainsFunc(h.peers, func(p contender) bool { return p.name() == name })
}

// measure runs the rounds. A peer that fails once is left out of the rest.
func (h *harness) measure(ctx context.Context) error {
	for round := range h.plan.rounds {
		progress("%s, round %d of %d", h.suite.name, round+1, h.plan.rounds)
		rand.Shuffle(len(h.peers), func(i, j int) { h.peers[i], h.peers[j] = h.peers[j], h.peers[i] })
		if err := h.suite.round(ctx, h); err != nil {
			return err
		}
	}
	if h.plan.rest() {
		if err := h.suite.finish(ctx, h); err != nil {
			h.failures = append(h.failures, err.Error())
		}
	}
	return ctx.Err()
}

func (h *harness) fail(name string, err error) {
	h.broken[name] = true
	h.failures = append(h.failures, err.Error())
	progress("%v", err)
}

// each measures every peer that isn't broken.
func (h *harness) each(ctx context.Context, measure func(contender) (values, error)) error {
	for _, p := range h.peers {
		if h.broken[p.name()] {
			continue
		}
		v, err := measure(p)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		h.samples.add(p.name(), v)
		if err != nil {
			h.fail(p.name(), err)
		}
	}
	return nil
}

// measurePeers is a round from node to node.
func measurePeers(ctx context.Context, h *harness) error {
	return h.each(ctx, func(c contender) (values, error) {
		p := c.(peer)
		v, err := measurePeer(ctx, h.site, p, h.suite.starts(p), h.plan, progress)
		if err == nil && h.plan.rest() {
			err = h.suite.beside(ctx, h, p)
		}
		return v, err
	})
}

func (h *harness) measureWorkloads(ctx context.Context) error {
	bytes, err := manyWorkloads(ctx, h.site, h.plan.workloads)
	if err != nil {
		return fmt.Errorf("measure %d workloads: %w", h.plan.workloads, err)
	}
	v := values{"rss_1000_workloads": bytes / (1 << 20)}
	h.samples.add(meshproxyName, v)
	progress("%s, %d workloads: %s", meshproxyName, h.plan.workloads, v)
	return nil
}

// String writes values for the progress.
func (v values) String() string {
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(v)) {
		x := v[name]
		parts = append(parts, name+" "+number(&x))
	}
	return strings.Join(parts, ", ")
}
