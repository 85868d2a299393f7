// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/meshproxy/meshproxy/tests/bench/upstreams"
	"github.com/meshproxy/meshproxy/tests/peers/consul"
	"github.com/meshproxy/meshproxy/tests/testnet"
)

// sidecars is the name of the peer that all others of this suite are compared
// with.
const sidecars = "envoy-sidecars"

var consulSuite = &suite{
	name: "consul", title: "In the mesh of a real Consul", prefix: "consul_",
	text: `"envoy-sidecars" are a pair of Envoys with two threads each, configured by Consul; "meshproxy" is hbone between two
nodes, "meshproxy-mtls" what a node speaks with sidecars, a TLS connection per stream. Memory for 20 services is
that of one node's proxies: 20 Envoys, or one meshproxy; as PSS, which counts what processes share once, and as
RSS, which does not; of one round. Envoys resume TLS sessions for new connections, TLS 1.2 as Consul configures
them; nodes do with "mtls", TLS 1.3. The upstreams_ figures are of a node with 20 local services among 1,000
permitted upstreams of 5 endpoints each, with an agent's default limits; idle CPU is over 60 s.
`,
	figures: []figure{
		{"consul_throughput_up", "GB/s", true, sidecars, 1},
		{"consul_throughput_down", "GB/s", true, sidecars, 1},
		{"consul_cpu_per_gb_up", "s/GB", false, sidecars, 1},
		{"consul_cpu_per_gb_down", "s/GB", false, sidecars, 1},
		{"consul_rtt_1_p50", "µs", false, sidecars, 1},
		{"consul_rtt_1_p99", "µs", false, sidecars, 0},
		{"consul_rtt_1_cpu", "µs", false, sidecars, 0},
		{"consul_rtt_32_rate", "1/s", true, sidecars, 1},
		{"consul_rtt_32_p99", "µs", false, sidecars, 0},
		{"consul_rtt_32_cpu", "µs", false, sidecars, 0},
		{"consul_connections_rate", "1/s", true, sidecars, 1},
		{"consul_connections_p50", "µs", false, sidecars, 0},
		{"consul_connections_cpu", "µs", false, sidecars, 1},
		{"consul_pss_20_services", "MiB", false, sidecars, 1},
		{"consul_rss_20_services", "MiB", false, sidecars, 1},
		{"consul_upstreams_ready", "s", false, absolute, 5},
		{"consul_upstreams_rss", "MiB", false, absolute, 64},
		{"consul_upstreams_peak_rss", "MiB", false, absolute, 0},
		{"consul_upstreams_change_p50", "ms", false, absolute, 0},
		{"consul_upstreams_change_p99", "ms", false, absolute, 250},
		{"consul_upstreams_idle_cpu", "% of a core", false, absolute, 1},
		{"consul_upstreams_agent_idle_cpu", "% of a core", false, absolute, 0},
		{"consul_upstreams_agent_connections", "", false, absolute, 100},
		{"consul_upstreams_agent_queries", "", false, absolute, 0},
	},
	choose: chooseInConsul, round: measurePeers, finish: measureUpstreams,
	starts: func(peer) [][]probe { return [][]probe{consulProbes} }, beside: manyServices,
}

var consulProbes = []probe{
	{"up", probeUp},
	{"down", probeDown},
	{"ping 1", probePing1},
	{"ping 32", probePing32},
	{"connections", probeConnections},
}

// chooseInConsul starts Consul: its server on host b, and an agent on a.
func chooseInConsul(ctx context.Context, h *harness) {
	_, noProduct := os.Stat(h.site.product)
	noConsul := h.site.startConsul(ctx)
	var noEnvoy error
	if h.wants(sidecars) {
		h.site.envoy, noEnvoy = fetchEnvoy(ctx)
	}
	h.add(envoySidecars{}, errors.Join(noEnvoy, noConsul))
	h.add(consulMesh{path: "hbone"}, errors.Join(noProduct, noConsul))
	h.add(consulMesh{path: "mtls"}, errors.Join(noProduct, noConsul))
}

func (s *site) startConsul(ctx context.Context) error {
	for i, h := range []*testnet.Host{s.b, s.a} {
		dir := filepath.Join(h.Dir(), "consul")
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("make directory: %w", err)
		}
		var server *consul.Server
		if i > 0 {
			server = s.agents[s.b]
		}
		agent, err := consul.Launch(ctx, consul.Options{Host: h, Node: h.Name(), Join: server, Dir: dir})
		if err != nil {
			return err
		}
		s.agents[h] = agent
	}
	_, err := s.agents[s.b].Client().Connect().IntentionUpsert(
		&api.Intention{SourceName: "client", DestinationName: "server", Action: api.IntentionActionAllow}, (&api.WriteOptions{}).WithContext(ctx))
	return err
}

// put registers services with the agent of a host, and returns what takes them
// out again.
func (s *site) put(ctx context.Context, h *testnet.Host, list ...*api.AgentServiceRegistration) (remove func(context.Context) error, err error) {
	remove = func(ctx context.Context) error {
		var errs []error
		for _, r := range list {
			errs = append(errs, s.agents[h].Client().Agent().ServiceDeregisterOpts(r.Name, (&api.QueryOptions{}).WithContext(ctx)))
		}
		return errors.Join(errs...)
	}
	for _, r := range list {
		if err := s.agents[h].Put(ctx, r); err != nil {
			return remove, err
		}
	}
	return remove, nil
}

// awaitAnswer waits until a connection to the server is answered: proxies hear of
// services when they do.
func (s *site) awaitAnswer(ctx context.Context, in *instance) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	return testnet.Until(ctx, func() error {
		_, err := s.runClient(ctx, in, clientArgs{Kind: "once"})
		return err
	})
}

// measureUpstreams measures a node among many services, once a round.
func measureUpstreams(ctx context.Context, h *harness) error {
	if !h.has(meshproxyName) {
		return nil
	}
	b, err := upstreams.New(ctx, upstreams.Options{
		Program: h.site.product, Serve: []string{"role", "many-servers"},
		Services: h.plan.upstreams, Endpoints: 5, Workloads: 20, Changes: 100, Idle: h.plan.quiet,
	})
	if err != nil {
		return fmt.Errorf("measure upstreams: %w", err)
	}
	for round := range h.plan.rounds {
		f, err := b.Measure(ctx)
		if err != nil {
			return errors.Join(fmt.Errorf("measure upstreams: %w", err), b.Close())
		}
		v := values{
			"upstreams_ready": f.Ready.Seconds(), "upstreams_rss": float64(f.RSS) / (1 << 20), "upstreams_peak_rss": float64(f.PeakRSS) / (1 << 20),
			"upstreams_change_p50": f.P50.Seconds() * 1e3, "upstreams_change_p99": f.P99.Seconds() * 1e3,
			"upstreams_idle_cpu": 100 * f.IdleCPU, "upstreams_agent_idle_cpu": 100 * f.AgentCPU,
			"upstreams_agent_connections": float64(f.Connections), "upstreams_agent_queries": float64(f.Questions),
		}
		h.samples.add(meshproxyName, v)
		progress("round %d of %d, upstreams: %s", round+1, h.plan.rounds, v)
	}
	return b.Close()
}
