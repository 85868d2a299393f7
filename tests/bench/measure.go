// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/meshproxy/meshproxy/tests/bench/load"
)

// plan says how long and how much.
type plan struct {
	rounds    int
	window    load.Window
	idle      int // idle connections
	workloads int
	// Those of the suite with Consul: services of a node whose memory is
	// measured, permitted upstreams, and a window without changes.
	services, upstreams int
	quiet               time.Duration
	// only are the probes that are wanted, "rest" what is beside them; nil is all.
	only []string
}

var (
	fullPlan = plan{
		rounds: 3, idle: 10_000, workloads: 1000, services: 20, upstreams: 1000, quiet: time.Minute,
		window: load.Window{Warm: time.Second, Length: 3 * time.Second},
	}
	quickPlan = plan{
		rounds: 1, idle: 500, workloads: 20, services: 3, upstreams: 40, quiet: time.Second,
		window: load.Window{Warm: 100 * time.Millisecond, Length: 300 * time.Millisecond},
	}
)

// wanted are the probes of a group that are to run.
func (p plan) wanted(group []probe) []probe {
	return slices.DeleteFunc(slices.Clone(group), func(pr probe) bool { return p.only != nil && !slices.Contains(p.only, pr.name) })
}

// rest says whether what is measured beside the probes is to be.
func (p plan) rest() bool { return p.only == nil || slices.Contains(p.only, "rest") }

// values are figures by name.
type values map[string]float64

// probe measures some figures of a running peer.
type probe struct {
	name string
	run  func(ctx context.Context, s *site, in *instance, p plan) (values, error)
}

// probes share the proxies of one start; idle gets fresh ones, because memory
// that was used before would hide what connections need.
var (
	probes = []probe{
		{"up", probeUp},
		{"down", probeDown},
		{"ping 1", probePing1},
		{"ping 32", probePing32},
		{"beside bulk", probeBeside},
		{"connections", probeConnections},
	}
	idleProbe = probe{"idle", probeIdle}
)

// measurePeer runs all probes of a peer once, those of a start in random order.
func measurePeer(ctx context.Context, s *site, p peer, starts [][]probe, plan plan, log func(string, ...any)) (values, error) {
	all := values{}
	for _, group := range starts {
		shuffled := plan.wanted(group)
		if len(shuffled) == 0 {
			continue
		}
		rand.Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
		got, err := measureStart(ctx, s, p, shuffled, plan, log)
		maps.Copy(all, got)
		if err != nil {
			return all, err
		}
	}
	return all, nil
}

// measureStart starts a peer, runs probes and stops it.
func measureStart(ctx context.Context, s *site, p peer, group []probe, plan plan, log func(string, ...any)) (all values, err error) {
	in, err := p.start(ctx, s)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", p.name(), err)
	}
	defer func() {
		if stopErr := in.stop(context.WithoutCancel(ctx)); stopErr != nil && err == nil {
			err = fmt.Errorf("stop %s: %w", p.name(), stopErr)
		}
	}()
	plan.window.Cgroups = in.cgroups()
	all = values{}
	for _, pr := range group {
		got, err := pr.run(ctx, s, in, plan)
		if err == nil {
			err = in.alive()
		}
		if err != nil {
			return all, fmt.Errorf("measure %s, %s: %w", p.name(), pr.name, err)
		}
		maps.Copy(all, got)
		log("%s, %s: %s", p.name(), pr.name, got)
	}
	return all, nil
}

func cpu(r load.Result) float64 {
	total := 0.0
	for _, seconds := range r.CPU {
		total += seconds
	}
	return total
}

func probeUp(ctx context.Context, s *site, in *instance, p plan) (values, error) {
	return probeBulk(ctx, s, in, p, "up")
}

func probeDown(ctx context.Context, s *site, in *instance, p plan) (values, error) {
	return probeBulk(ctx, s, in, p, "down")
}

func probeBulk(ctx context.Context, s *site, in *instance, p plan, way string) (values, error) {
	r, err := s.runClient(ctx, in, clientArgs{Kind: way, Count: 1, Window: p.window})
	if err != nil {
		return nil, err
	}
	gigabytes := float64(r.Bytes) / 1e9
	v := values{"throughput_" + way: gigabytes / r.Seconds}
	if len(in.proxies) > 0 {
		v["cpu_per_gb_"+way] = cpu(r) / gigabytes
	}
	return v, nil
}

func probePing1(ctx context.Context, s *site, in *instance, p plan) (values, error) {
	return probePing(ctx, s, in, p, 1)
}

func probePing32(ctx context.Context, s *site, in *instance, p plan) (values, error) {
	return probePing(ctx, s, in, p, 32)
}

func probePing(ctx context.Context, s *site, in *instance, p plan, conns int) (values, error) {
	r, err := s.runClient(ctx, in, clientArgs{Kind: "ping", Count: conns, Window: p.window})
	if err != nil {
		return nil, err
	}
	name := fmt.Sprintf("rtt_%d_", conns)
	v := values{
		name + "p50":  float64(r.P50) / 1e3,
		name + "p99":  float64(r.P99) / 1e3,
		name + "rate": float64(r.Count) / r.Seconds,
	}
	if len(in.proxies) > 0 {
		v[name+"cpu"] = cpu(r) * 1e6 / float64(r.Count)
	}
	return v, nil
}

// probeBeside pings beside four streams that upload.
func probeBeside(ctx context.Context, s *site, in *instance, p plan) (values, error) {
	bulkWindow := p.window
	bulkWindow.Length += 2*p.window.Warm + time.Second // until the pings are over
	bulk, err := s.startClient(in, clientArgs{Kind: "up", Count: 4, Window: bulkWindow})
	if err != nil {
		return nil, err
	}
	r, err := s.runClient(ctx, in, clientArgs{Kind: "ping", Count: 1, Window: p.window})
	if err != nil {
		_ = bulk.Kill()
		<-bulk.Done()
		return nil, err
	}
	if _, err := result(ctx, bulk); err != nil {
		return nil, fmt.Errorf("bulk streams: %w", err)
	}
	return values{"rtt_beside_bulk_p50": float64(r.P50) / 1e6, "rtt_beside_bulk_p99": float64(r.P99) / 1e6}, nil
}

func probeConnections(ctx context.Context, s *site, in *instance, p plan) (values, error) {
	r, err := s.runClient(ctx, in, clientArgs{Kind: "connect", Count: 16, Window: p.window})
	if err != nil {
		return nil, err
	}
	v := values{"connections_rate": float64(r.Count) / r.Seconds, "connections_p50": float64(r.P50) / 1e3}
	if len(in.proxies) > 0 {
		v["connections_cpu"] = cpu(r) * 1e6 / float64(r.Count)
	}
	return v, nil
}

// probeIdle compares the proxies' memory with one connection and with many;
// the figure is that of the hungrier of the two.
func probeIdle(ctx context.Context, s *site, in *instance, p plan) (values, error) {
	before, err := idleRSS(ctx, s, in, 1)
	if err != nil {
		return nil, err
	}
	count := s.idleCount(p, in)
	after, err := idleRSS(ctx, s, in, count)
	if err != nil {
		return nil, err
	}
	worst := 0.0
	for i := range before {
		worst = max(worst, (after[i]-before[i])/float64(count)/1024)
	}
	return values{"rss_per_idle_connection": worst}, nil
}

// idleRSS returns the proxies' memory while connections are open.
func idleRSS(ctx context.Context, s *site, in *instance, count int) ([]float64, error) {
	client, err := s.startClient(in, clientArgs{Kind: "idle", Count: count})
	if err != nil {
		return nil, err
	}
	defer func() {
		_ = client.Kill()
		<-client.Done()
	}()
	wait, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	if _, err := client.Stdout().WaitString(wait, "ready"); err != nil {
		return nil, fmt.Errorf("open %d connections: %w: %s", count, err, client.Stderr().Tail(300))
	}
	return settledRSS(ctx, in.pids())
}
