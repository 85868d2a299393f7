// SPDX-License-Identifier: Apache-2.0

// Consulbench measures a node among many services of a real Consul with an
// agent's default limits: how long it takes to know them, what it costs to
// follow them, and how soon a change of health is in force.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"

	"github.com/meshproxy/meshproxy/nodeproxy/admin/client"
	"github.com/meshproxy/meshproxy/tests/meshnode"
	"github.com/meshproxy/meshproxy/tests/peers/consul"
	"github.com/meshproxy/meshproxy/tests/testnet"
)

type options struct {
	program                        string
	services, endpoints, workloads int
	changes                        int
	idle                           time.Duration
	json                           bool
}

func main() {
	var o options
	flag.StringVar(&o.program, "meshproxy", "bin/meshproxy", "the binary to measure")
	flag.IntVar(&o.services, "services", 1000, "permitted upstreams")
	flag.IntVar(&o.endpoints, "endpoints", 5, "endpoints of each")
	flag.IntVar(&o.workloads, "workloads", 20, "local services")
	flag.IntVar(&o.changes, "changes", 100, "changes of health")
	flag.DurationVar(&o.idle, "idle", time.Minute, "window without changes")
	flag.BoolVar(&o.json, "json", false, "print JSON")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, o)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "consulbench:", err)
		os.Exit(1)
	}
}

// figures are what is measured.
type figures struct {
	Services    int           `json:"services"`
	Endpoints   int           `json:"endpoints"`
	Ready       time.Duration `json:"readyNanos"`
	RSS         int64         `json:"rssBytes"`
	PeakRSS     int64         `json:"peakRSSBytes"`
	Connections int           `json:"agentConnections"`
	// IdleCPU and AgentCPU are shares of a core.
	IdleCPU  float64       `json:"idleCPU"`
	AgentCPU float64       `json:"agentIdleCPU"`
	P50      time.Duration `json:"changeP50Nanos"`
	P99      time.Duration `json:"changeP99Nanos"`
}

func run(ctx context.Context, o options) error {
	net, err := testnet.New("a")
	if err != nil {
		return err
	}
	defer func() {
		if err := net.Close(); err != nil {
			fmt.Fprintln(os.Stderr, "consulbench:", err)
		}
	}()
	host := net.Host("a")
	agent, err := consul.Launch(ctx, consul.Options{Host: host, Node: "a", Dir: host.Dir()})
	if err != nil {
		return err
	}
	defer func() { _ = agent.Stop() }()
	cat := catalog{options: o, client: agent.Client()}
	if err := cat.fill(); err != nil {
		return err
	}
	f, err := measure(ctx, o, host, agent, &cat)
	if err != nil {
		return err
	}
	return f.print(o.json)
}

func measure(ctx context.Context, o options, host *testnet.Host, agent *consul.Server, cat *catalog) (f figures, err error) {
	f.Services, f.Endpoints = o.services, o.services*o.endpoints
	began := time.Now()
	node, err := meshnode.Start(ctx, meshnode.Options{
		Host: host, Program: []string{o.program}, Identity: "identity: {provider: consul}", NoTrustDomain: true, NoMeshFile: true,
		Extra: fmt.Sprintf("consul: {address: %q}\nsources: {consul: {enabled: true}}\n", agent.HTTPAddr),
	})
	if err != nil {
		return f, err
	}
	defer func() { _ = node.Stop(context.Background()) }()
	if err := knows(ctx, node.Admin, o.services+o.workloads); err != nil {
		return f, err
	}
	f.Ready = time.Since(began)
	if err := settled(ctx, node.Admin); err != nil {
		return f, err
	}
	us, theirs := process{node.Pid()}, process{agent.Pid()}
	if f.IdleCPU, f.AgentCPU, err = idle(ctx, o.idle, us, theirs); err != nil {
		return f, err
	}
	took := make([]time.Duration, 0, o.changes)
	for i := range o.changes {
		d, err := cat.change(ctx, node.Admin, i)
		if err != nil {
			return f, err
		}
		took = append(took, d)
	}
	slices.Sort(took)
	f.P50, f.P99 = took[len(took)/2], took[len(took)*99/100]
	if f.Connections, err = us.connections(int(agent.HTTPAddr.Port())); err != nil {
		return f, err
	}
	f.RSS, f.PeakRSS, err = us.memory()
	return f, err
}

// knows waits until so many services are in force.
func knows(ctx context.Context, c *client.Client, services int) error {
	return testnet.Until(ctx, func() error {
		s, err := c.Status(ctx)
		if err == nil && s.Snapshot.Services < services {
			err = fmt.Errorf("%d services in force", s.Snapshot.Services)
		}
		return err
	})
}

// settled waits until nothing new came for a while: rows are registered, and
// virtual IPs given out, after the first view.
func settled(ctx context.Context, c *client.Client) error {
	const quiet = 5 * time.Second
	last, since := uint64(0), time.Now()
	return testnet.Until(ctx, func() error {
		s, err := c.Status(ctx)
		if err != nil {
			return err
		}
		if s.Snapshot.Version != last {
			last, since = s.Snapshot.Version, time.Now()
		}
		if time.Since(since) < quiet {
			return fmt.Errorf("snapshot %d is new", last)
		}
		return nil
	})
}

// idle is the CPU that two processes use while nothing happens.
func idle(ctx context.Context, window time.Duration, us, theirs process) (float64, float64, error) {
	before, err := us.cpu()
	if err != nil {
		return 0, 0, err
	}
	beforeTheirs, err := theirs.cpu()
	if err != nil {
		return 0, 0, err
	}
	began := time.Now()
	select {
	case <-ctx.Done():
		return 0, 0, ctx.Err()
	case <-time.After(window):
	}
	after, err := us.cpu()
	if err != nil {
		return 0, 0, err
	}
	afterTheirs, err := theirs.cpu()
	took := time.Since(began)
	return float64(after-before) / float64(took), float64(afterTheirs-beforeTheirs) / float64(took), err
}

func (f figures) print(asJSON bool) error {
	if asJSON {
		return json.NewEncoder(os.Stdout).Encode(f)
	}
	const mib = 1 << 20
	fmt.Printf("services                 %d, %d endpoints\n", f.Services, f.Endpoints)
	fmt.Printf("start to all in force    %v\n", f.Ready.Round(time.Millisecond))
	fmt.Printf("change to routing        p50 %v, p99 %v\n", f.P50.Round(time.Millisecond), f.P99.Round(time.Millisecond))
	fmt.Printf("resident memory          %.1f MiB, at most %.1f MiB\n", float64(f.RSS)/mib, float64(f.PeakRSS)/mib)
	fmt.Printf("CPU without changes      %.2f %% of a core; the agent %.2f %%\n", 100*f.IdleCPU, 100*f.AgentCPU)
	fmt.Printf("connections to the agent %d\n", f.Connections)
	return nil
}
