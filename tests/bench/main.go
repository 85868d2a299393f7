// SPDX-License-Identifier: Apache-2.0

// Command bench compares meshproxy with the alternatives, in one run on one
// machine; see BENCHMARKS.md, which it writes, and results.json beside it. It
// needs root.
//
// The harness (this package) starts peers and judges figures; the load is made
// by package load, in processes of its own.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// options are the flags.
type options struct {
	quick     bool
	rounds    int
	idle      int
	workloads int
	peers     string
	part      string
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
	flag.StringVar(&o.peers, "peers", "", "only these, separated by commas")
	flag.StringVar(&o.part, "part", "", "nodes: only the way from node to node; local: only the one between workloads of a node. Writes no files unless -out is given")
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
	}{{&p.rounds, o.rounds}, {&p.idle, o.idle}, {&p.workloads, o.workloads}} {
		if change.value > 0 {
			*change.to = change.value
		}
	}
	return p
}

func run(ctx context.Context, o options) (err error) {
	if !o.quick && o.part == "" && o.out == "" {
		o.out = "."
	}
	p := o.plan()
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

	h := &harness{site: s, plan: p, samples: samples{}}
	if err := h.choose(ctx, o.peers); err != nil {
		return err
	}
	switch o.part {
	case "nodes":
		h.locals = nil
	case "local":
		h.peers = nil
	}
	m := describe(ctx, s, h.peers, p)
	if err := h.measure(ctx); err != nil {
		return err
	}
	if slices.ContainsFunc(h.peers, func(p peer) bool { return p.name() == meshproxyName }) {
		if n, err := copyAllocations(ctx); err != nil {
			h.failures = append(h.failures, err.Error())
		} else {
			h.samples.add(meshproxyName, values{"copy_path_allocations": n})
		}
	}
	m.Failed = append(h.missing, h.failures...)
	all := h.samples.outcomes(notes)
	switch nodes, local := parts(all); o.part {
	case "nodes":
		all = nodes
	case "local":
		all = local
	}
	fmt.Print(table(all))
	if err := write(o.out, m, all); err != nil {
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

func write(dir string, m machine, all []outcome) error {
	if dir == "" {
		return nil
	}
	if err := os.WriteFile(filepath.Join(dir, "BENCHMARKS.md"), []byte(markdown(m, all)), 0o644); err != nil {
		return fmt.Errorf("write BENCHMARKS.md: %w", err)
	}
	return writeResults(filepath.Join(dir, "tests", "bench", "results.json"), all)
}

// harness is one run of the benchmark.
type harness struct {
	site    *site
	plan    plan
	peers   []peer
	locals  []localPeer
	samples samples
	// missing are peers that aren't there, failures those that broke.
	missing, failures []string
}

func progress(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }

// choose finds out which peers there are. A machine without network has no
// Envoy, and is told so.
func (h *harness) choose(ctx context.Context, only string) error {
	wanted := func(name string) bool { return only == "" || slices.Contains(strings.Split(only, ","), name) }
	is := func(name string, err error) bool {
		if err != nil && wanted(name) {
			h.missing = append(h.missing, name+": "+err.Error())
			progress("no %s: %v", name, err)
		}
		return err == nil && wanted(name)
	}
	add := func(p peer, err error) {
		if is(p.name(), err) {
			h.peers = append(h.peers, p)
		}
	}
	addLocal := func(p localPeer, err error) {
		if is(p.name(), err) {
			h.locals = append(h.locals, p)
		}
	}
	add(direct{}, nil)
	add(tlsPair{}, nil)
	_, err := os.Stat(haproxyPath)
	add(haproxy{}, err)
	if wanted(envoy{}.name()) || wanted(envoy{connect: true}.name()) || wanted(localEnvoy{}.name()) {
		h.site.envoy, err = fetchEnvoy(ctx)
		add(envoy{}, err)
		add(envoy{connect: true}, err)
		addLocal(localEnvoy{}, err)
	}
	_, err = os.Stat(h.site.product)
	add(meshproxy{}, err)
	addLocal(localTCP{}, nil)
	addLocal(localUnix{}, nil)
	addLocal(localMesh{}, err)
	addLocal(localMesh{blocking: true}, err)
	if len(h.peers)+len(h.locals) == 0 {
		return fmt.Errorf("choose peers: none of %q", only)
	}
	return nil
}

// measure runs the rounds. A peer that fails once is left out of the rest.
func (h *harness) measure(ctx context.Context) error {
	broken := map[string]bool{}
	fail := func(name string, err error) {
		broken[name] = true
		h.failures = append(h.failures, err.Error())
		progress("%v", err)
	}
	for round := range h.plan.rounds {
		progress("round %d of %d", round+1, h.plan.rounds)
		order := slices.Clone(h.peers)
		rand.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
		for _, p := range order {
			if broken[p.name()] {
				continue
			}
			v, err := measurePeer(ctx, h.site, p, h.plan, progress)
			if ctx.Err() != nil {
				return ctx.Err()
			}
			h.samples.add(p.name(), v)
			if err != nil {
				fail(p.name(), err)
			}
			if p.name() == meshproxyName && err == nil {
				if err := h.measureWorkloads(ctx); err != nil {
					fail(p.name(), err)
				}
			}
		}
		if err := h.measureLocals(ctx, broken, fail); err != nil {
			return err
		}
	}
	return nil
}

// measureLocals is a round of the local path.
func (h *harness) measureLocals(ctx context.Context, broken map[string]bool, fail func(string, error)) error {
	order := slices.Clone(h.locals)
	rand.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
	for _, p := range order {
		if broken["local "+p.name()] {
			continue
		}
		v, err := measureLocal(ctx, h.site, p, h.plan)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		h.samples.add(p.name(), v)
		if err != nil {
			fail("local "+p.name(), err)
		}
	}
	return nil
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
	for _, f := range figures {
		if x, ok := v[f.name]; ok {
			parts = append(parts, fmt.Sprintf("%s %s %s", f.name, number(&x), f.unit))
		}
	}
	return strings.Join(parts, ", ")
}
