// SPDX-License-Identifier: Apache-2.0

// Package upstreams measures a node among many services of a real Consul with an
// agent's default limits: how long it takes to know them, what it costs to
// follow them, and how soon a change of health is in force.
package upstreams

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/meshproxy/meshproxy/nodeproxy/admin/client"
	"github.com/meshproxy/meshproxy/tests/meshnode"
	"github.com/meshproxy/meshproxy/tests/peers/consul"
	"github.com/meshproxy/meshproxy/tests/testnet"
)

// Options say how much.
type Options struct {
	// Program is the meshproxy binary.
	Program string
	// Serve are the arguments that make testnet.Self listen: the cgroup whose
	// children the local services are in, and their number, are added. Service i
	// is in child i and listens on port FirstPort+i; then it says "ready".
	Serve []string
	// Services are permitted upstreams with so many Endpoints each, Workloads
	// local services.
	Services, Endpoints, Workloads int
	// Changes of health are measured, after a window without any.
	Changes int
	Idle    time.Duration
}

// FirstPort is that of the first local service.
const FirstPort = 2000

// Figures are what is measured.
type Figures struct {
	// Ready is from the start to all services in force, and a leaf for each
	// local one.
	Ready time.Duration
	// RSS and PeakRSS are in bytes.
	RSS, PeakRSS int64
	// Connections are those to the agent, Questions the blocking queries among
	// them: asked, and not answered as nothing happens.
	Connections, Questions int
	// IdleCPU and AgentCPU are shares of a core.
	IdleCPU, AgentCPU float64
	// P50 and P99 are from a change of health to the changed routing.
	P50, P99 time.Duration
}

// Bench is a filled Consul and its local services.
type Bench struct {
	options  Options
	topology *testnet.Topology
	host     *testnet.Host
	agent    *consul.Server
	catalog  catalog
}

// New starts Consul and fills it. What it has made is ended by Close.
func New(ctx context.Context, o Options) (*Bench, error) {
	topology, err := testnet.New("a")
	if err != nil {
		return nil, err
	}
	b := &Bench{options: o, topology: topology, host: topology.Host("a")}
	if err := b.furnish(ctx); err != nil {
		return nil, errors.Join(err, b.Close())
	}
	return b, nil
}

const workloads = "workloads"

func (b *Bench) furnish(ctx context.Context) error {
	servers, err := b.host.Start(testnet.Command{
		Name: workloads, Path: testnet.Self, Cgroup: workloads,
		Args: append(slices.Clone(b.options.Serve), b.host.Cgroup(workloads), strconv.Itoa(b.options.Workloads)),
	})
	if err != nil {
		return err
	}
	if _, err := servers.Stdout().WaitString(ctx, "ready"); err != nil {
		return fmt.Errorf("start local services: %w: %s", err, servers.Stderr().Tail(300))
	}
	if b.agent, err = consul.Launch(ctx, consul.Options{Host: b.host, Node: "a", Dir: b.host.Dir(), HCL: debug}); err != nil {
		return err
	}
	b.catalog = catalog{Options: b.options, client: b.agent.Client()}
	return b.catalog.fill()
}

// Close ends everything.
func (b *Bench) Close() error {
	if b.agent != nil {
		_ = b.agent.Stop()
	}
	return b.topology.Close()
}

// Measure starts a node that knows nothing, measures and ends it.
func (b *Bench) Measure(ctx context.Context) (f Figures, err error) {
	began := time.Now()
	node, err := meshnode.Start(ctx, meshnode.Options{
		Host: b.host, Program: []string{b.options.Program}, Identity: "identity: {provider: consul}", NoTrustDomain: true, NoMeshFile: true,
		Extra: b.extra(),
	})
	if err != nil {
		return f, err
	}
	defer func() { err = errors.Join(err, node.Leave(context.WithoutCancel(ctx))) }()
	if err := knows(ctx, node.Admin, b.options.Services+b.options.Workloads); err != nil {
		return f, err
	}
	if err := hasLeaves(ctx, node.Admin, b.options.Workloads); err != nil {
		return f, err
	}
	f.Ready = time.Since(began)
	if err := settled(ctx, node.Admin); err != nil {
		return f, err
	}
	us, theirs := process{node.Pid()}, process{b.agent.Pid()}
	if f.IdleCPU, f.AgentCPU, err = idle(ctx, b.options.Idle, us, theirs); err != nil {
		return f, err
	}
	if f.Questions, err = questions(ctx, b.host.DialContext, b.agent.HTTPAddr); err != nil {
		return f, err
	}
	took := make([]time.Duration, 0, b.options.Changes)
	for i := range b.options.Changes {
		d, err := b.catalog.change(ctx, node.Admin, i)
		if err != nil {
			return f, err
		}
		took = append(took, d)
	}
	slices.Sort(took)
	f.P50, f.P99 = took[len(took)/2], took[len(took)*99/100]
	if f.Connections, err = us.connections(int(b.agent.HTTPAddr.Port())); err != nil {
		return f, err
	}
	f.RSS, f.PeakRSS, err = us.memory()
	return f, err
}

// extra says which processes the local services are.
func (b *Bench) extra() string {
	text := fmt.Sprintf("consul: {address: %q}\nsources:\n  consul:\n    enabled: true\n    services:\n", b.agent.HTTPAddr)
	for i := range b.options.Workloads {
		path := meshnode.CgroupPath(b.topology, b.host.Namespace, filepath.Join(workloads, strconv.Itoa(i)))
		text += fmt.Sprintf("      - {name: %s, match: [{cgroup: %q}]}\n", localService(i), path)
	}
	return text
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

// hasLeaves waits until so many workloads can prove who they are.
func hasLeaves(ctx context.Context, c *client.Client, workloads int) error {
	return testnet.Until(ctx, func() error {
		ca, err := c.CA(ctx)
		if err == nil && len(ca.Leaves) < workloads {
			err = fmt.Errorf("%d leaves", len(ca.Leaves))
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
func idle(ctx context.Context, window time.Duration, us, theirs process) (ours, agents float64, err error) {
	before, err := both(us, theirs)
	if err != nil {
		return 0, 0, err
	}
	began := time.Now()
	select {
	case <-ctx.Done():
		return 0, 0, ctx.Err()
	case <-time.After(window):
	}
	after, err := both(us, theirs)
	took := float64(time.Since(began))
	return float64(after[0]-before[0]) / took, float64(after[1]-before[1]) / took, err
}

func both(us, theirs process) (cpu [2]time.Duration, err error) {
	if cpu[0], err = us.cpu(); err != nil {
		return cpu, err
	}
	cpu[1], err = theirs.cpu()
	return cpu, err
}
