// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"

	adminapi "github.com/meshproxy/meshproxy/nodeproxy/admin/api"
	"github.com/meshproxy/meshproxy/tests/meshnode"
	"github.com/meshproxy/meshproxy/tests/peers/consul"
	"github.com/meshproxy/meshproxy/tests/testnet"
	"github.com/meshproxy/meshproxy/tests/workload"
)

// stage is everything that the demo has made.
type stage struct {
	program  string
	topology *testnet.Topology
	agents   map[string]*consul.Server
	nodes    map[string]*meshnode.Node
	sidecars []*consul.Sidecar
	calls    []*call
}

// newStage makes the hosts, Consul, and all applications. What it has made is
// returned with an error, too.
func newStage(ctx context.Context, program string) (*stage, error) {
	topology, err := testnet.New(hosts...)
	if err != nil {
		return nil, err
	}
	s := &stage{program: program, topology: topology, agents: make(map[string]*consul.Server), nodes: make(map[string]*meshnode.Node)}
	for _, name := range []string{envoyHost, "a", "b"} { // the server first
		dir := filepath.Join(topology.Dir(), "consul-"+name)
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return s, fmt.Errorf("make directory: %w", err)
		}
		s.agents[name], err = consul.Launch(ctx, consul.Options{Host: topology.Host(name), Node: name, Join: s.agents[envoyHost], Dir: dir})
		if err != nil {
			return s, err
		}
	}
	for _, svc := range services {
		p, err := s.start(svc, "serve", "-name", svc.name, "-tcp", "127.0.0.1:"+strconv.Itoa(svc.port))
		if err != nil {
			return s, err
		}
		if _, err := p.Stdout().WaitString(ctx, workload.EventReady); err != nil {
			return s, fmt.Errorf("start %s: %w: %s", svc.name, err, p.Stderr().Tail(300))
		}
	}
	return s, nil
}

func (s *stage) close() error {
	for _, n := range s.nodes {
		n.Admin.Close()
	}
	for _, p := range s.sidecars {
		_ = p.Stop()
	}
	for _, a := range s.agents {
		_ = a.Stop()
	}
	return s.topology.Close()
}

// logs shows the ends of the nodes' logs, and what the sidecars know.
func (s *stage) logs(ctx context.Context, out io.Writer) {
	for name, n := range s.nodes {
		fmt.Fprintf(out, "node %s:\n%s%s\n", name, n.Stderr().Tail(4000), n.Stdout().Tail(2000))
	}
	for name, a := range s.agents {
		checks, err := a.Client().Agent().ChecksWithFilterOpts("", (&api.QueryOptions{}).WithContext(ctx))
		if err != nil {
			fmt.Fprintf(out, "agent %s: %v\n", name, err)
		}
		log, _ := os.ReadFile(a.Log())
		fmt.Fprintf(out, "agent %s:\n%s\n", name, log)
		for id, c := range checks {
			fmt.Fprintf(out, "agent %s: check %s, %s: %s %s\n", name, id, c.Name, c.Status, c.Output)
		}
	}
	listed, _, err := s.agents[envoyHost].Client().Health().State(api.HealthAny, (&api.QueryOptions{}).WithContext(ctx))
	if err != nil {
		fmt.Fprintf(out, "catalog: %v\n", err)
	}
	for _, c := range listed {
		fmt.Fprintf(out, "catalog: node %s, check %s, %s: %s %s\n", c.Node, c.CheckID, c.Name, c.Status, c.Output)
	}
	for _, p := range s.sidecars {
		clusters, err := p.Clusters(ctx)
		if err != nil {
			clusters = err.Error()
		}
		log, _ := os.ReadFile(p.Log())
		fmt.Fprintf(out, "sidecar %s:\n%s\n%s\n", p.Log(), clusters, log)
	}
}

// start starts a process of a service.
func (s *stage) start(svc service, role string, args ...string) (*testnet.Process, error) {
	return s.topology.Host(svc.host).Start(testnet.Command{
		Name: role + "-" + svc.name, Path: s.program, Cgroup: svc.name + ".service",
		Args: append([]string{"demo", "role", role}, args...),
	})
}

// register registers a service as its owner does; where a sidecar is to be, with
// that.
func (s *stage) register(ctx context.Context, svc service) error {
	r := &api.AgentServiceRegistration{Name: svc.name, Port: svc.port}
	if svc.public != 0 {
		proxy := &api.AgentServiceConnectProxyConfig{}
		for _, u := range svc.upstreams {
			proxy.Upstreams = append(proxy.Upstreams, api.Upstream{DestinationName: u.service, LocalBindPort: u.port})
		}
		r.Connect = &api.AgentServiceConnect{SidecarService: &api.AgentServiceRegistration{Port: svc.public, Proxy: proxy}}
	}
	return s.agents[svc.host].Put(ctx, r)
}

func (s *stage) startSidecars(ctx context.Context) error {
	for _, svc := range sidecarServices {
		if err := s.register(ctx, svc); err != nil {
			return err
		}
		p, err := s.agents[svc.host].LaunchEnvoy(ctx, svc.name, "")
		if err != nil {
			return err
		}
		s.sidecars = append(s.sidecars, p)
	}
	return nil
}

func (s *stage) startNodes(ctx context.Context) error {
	for _, host := range []string{"a", "b"} {
		config := "sources:\n  consul:\n    enabled: true\n    services:\n"
		for _, svc := range servicesOf(host) {
			if err := s.register(ctx, svc); err != nil {
				return err
			}
			config += "      - name: " + svc.name + "\n        upstreams: ["
			for _, u := range svc.upstreams {
				config += fmt.Sprintf(`{listen: "127.0.0.1:%d", service: %s},`, u.port, u.service)
			}
			config += "]\n"
		}
		start, cancel := context.WithTimeout(ctx, 3*time.Minute)
		n, err := meshnode.Start(start, meshnode.Options{
			Host: s.topology.Host(host), Program: []string{s.program}, NoTrustDomain: true, NoMeshFile: true,
			Identity: "identity: {provider: consul}\n", Extra: config,
		})
		cancel()
		if err != nil {
			return err
		}
		s.nodes[host] = n
	}
	return s.awaitRows(ctx)
}

// awaitRows waits until Consul says that every service of the nodes is to be had.
func (s *stage) awaitRows(ctx context.Context) error {
	wait, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	health := s.agents[envoyHost].Client().Health()
	for _, svc := range services {
		if svc.public != 0 {
			continue
		}
		err := testnet.Until(wait, func() error {
			rows, _, err := health.Connect(svc.name, "", true, (&api.QueryOptions{}).WithContext(wait))
			if err == nil && len(rows) == 0 {
				err = errors.New("nothing passes its checks")
			}
			return err
		})
		if err != nil {
			return fmt.Errorf("register %s: %w", svc.name, err)
		}
	}
	return nil
}

func (s *stage) intend(ctx context.Context, from, to string, action api.IntentionAction) error {
	_, err := s.agents[envoyHost].Client().Connect().IntentionUpsert(
		&api.Intention{SourceName: from, DestinationName: to, Action: action}, (&api.WriteOptions{}).WithContext(ctx))
	if err != nil {
		return fmt.Errorf("write intention: %w", err)
	}
	return nil
}

// startCalls begins the calls, and waits until each has an answer: sidecars hear
// of services when they do.
func (s *stage) startCalls(ctx context.Context) error {
	for _, f := range flows {
		i := slices.IndexFunc(services, func(svc service) bool { return svc.name == f.from })
		u := slices.IndexFunc(services[i].upstreams, func(u upstream) bool { return u.service == f.to })
		at := "127.0.0.1:" + strconv.Itoa(services[i].upstreams[u].port)
		p, err := s.start(services[i], "call", "-tcp", at, "-fresh", "-interval", "100ms", "-timeout", "30s")
		if err != nil {
			return err
		}
		s.calls = append(s.calls, &call{flow: f, process: p})
	}
	wait, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	for _, c := range s.calls {
		err := testnet.Until(wait, func() error {
			if c.read(); !c.working() {
				return fmt.Errorf("it says %s", c.state())
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("call %s from %s: %w", c.to, c.from, err)
		}
		c.answers, c.errors = 0, 0
	}
	return nil
}

func (s *stage) callOf(from, to string) *call {
	return s.calls[slices.IndexFunc(s.calls, func(c *call) bool { return c.from == from && c.to == to })]
}

// watch lets the calls go on and judges them.
func (s *stage) watch(ctx context.Context, d time.Duration, v *verdict) error {
	select {
	case <-time.After(d):
	case <-ctx.Done():
		return ctx.Err()
	}
	for _, c := range s.calls {
		c.read()
		v.expect(c.answers > 0 && c.errors == 0 && c.server == c.to, fmt.Sprintf("%s calls %s, %s", c.from, c.to, c.what),
			"%d answers, the last from %q, %d errors %s", c.answers, c.server, c.errors, c.problem)
		found, err := s.taken(ctx, c.flow)
		if err != nil {
			return err
		}
		v.expect(found, fmt.Sprintf("%s to %s goes by %s with both services' own identities", c.from, c.to, c.path), "no node has such a connection")
	}
	return nil
}

// taken waits until a node shows a connection of the flow.
func (s *stage) taken(ctx context.Context, f flow) (bool, error) {
	wait, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	err := testnet.Until(wait, func() error {
		for _, n := range s.nodes {
			list, err := n.Admin.Connections(ctx, adminapi.ConnectionFilter{Path: f.path})
			if err != nil {
				return err
			}
			for _, c := range list.Connections {
				if strings.HasSuffix(c.SourceIdentity, "/svc/"+f.from) && strings.HasSuffix(c.DestinationIdentity, "/svc/"+f.to) {
					return nil
				}
			}
		}
		return errors.New("none")
	})
	return err == nil, ctx.Err()
}

// weigh compares what both ways take of memory.
func (s *stage) weigh(v *verdict, out io.Writer) error {
	one, err := residentOf(s.nodes["a"].Pid())
	if err != nil {
		return err
	}
	var all int
	for _, p := range s.sidecars {
		n, err := residentOf(p.Pid())
		if err != nil {
			return err
		}
		all += n
	}
	fmt.Fprintf(out, "\nMemory for %d services, resident\n  host a, one meshproxy: %4d MiB\n  host %s, %d Envoys:     %4d MiB\n",
		len(servicesOf("a")), one>>10, envoyHost, len(s.sidecars), all>>10)
	v.expect(one < all, fmt.Sprintf("one meshproxy takes less memory than %d Envoys", len(s.sidecars)), "%d and %d KiB", one, all)
	return nil
}

// residentOf is the memory of a process in KiB.
func residentOf(pid int) (int, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, fmt.Errorf("read memory: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			return strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(rest), " kB"))
		}
	}
	return 0, errors.New("read memory: no VmRSS")
}
