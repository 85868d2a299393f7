// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"time"

	"github.com/meshproxy/meshproxy/tests/bench/load"
	"github.com/meshproxy/meshproxy/tests/meshnode"
	"github.com/meshproxy/meshproxy/tests/testnet"
)

// The local path: two processes of host a, with nothing in between but the
// kernel, or an Envoy.

// The ports of the local path.
const (
	pairPort  = 9001  // the server's
	envoyPort = 10003 // Envoy's, for the client
)

// localPeer is one way from the client to the server.
type localPeer interface {
	name() string
	start(ctx context.Context, s *site) (*localInstance, error)
}

type localInstance struct {
	address string
	// client is the client's cgroup.
	client string
	// proxy is the cgroup of a process in between.
	proxy    string
	blocking bool
	// placed says that where the client and the server run is all there is.
	placed bool
	stop   func(context.Context) error
}

// measures says whether a load makes sense.
func (in *localInstance) measures(l load.Pairs) bool {
	if in.blocking && (l.Kind != "ping" || l.Count != 1) {
		return false
	}
	return l.CPUs == 0 || in.placed && l.CPUs <= runtime.NumCPU()
}

func (s *site) pairAddr() netip.AddrPort { return netip.AddrPortFrom(s.a.Addr4(), pairPort) }

func (s *site) pairSocket() string { return filepath.Join(s.a.Dir(), "pairs.sock") }

const (
	pairServer = "pair-server"
	pairClient = "pair-client"
)

// servePairs starts the server of the local path.
func (s *site) servePairs(ctx context.Context) error {
	server, err := s.a.Start(testnet.Command{
		Name: pairServer, Path: testnet.Self, Cgroup: pairServer, Env: []string{load.Env},
		Args: []string{"role", "pair-server", s.pairAddr().String(), s.pairSocket()},
	})
	if err != nil {
		return err
	}
	_, err = server.Stdout().WaitString(ctx, "ready")
	return err
}

// A Unix socket and TCP have no process in between, and nothing to start.
type (
	localTCP  struct{}
	localUnix struct{}
)

func nothing(context.Context) error { return nil }

func (localTCP) name() string { return "tcp" }

func (localTCP) start(_ context.Context, s *site) (*localInstance, error) {
	return &localInstance{address: s.pairAddr().String(), client: pairClient, placed: true, stop: nothing}, nil
}

func (localUnix) name() string { return "unix" }

func (localUnix) start(_ context.Context, s *site) (*localInstance, error) {
	return &localInstance{address: s.pairSocket(), client: pairClient, placed: true, stop: nothing}, nil
}

// localEnvoy is one Envoy without encryption.
type localEnvoy struct{}

func (localEnvoy) name() string { return "envoy" }

func (localEnvoy) start(ctx context.Context, s *site) (*localInstance, error) {
	text := fmt.Sprintf(envoyBase, "127.0.0.1", envoyPort, fmt.Sprintf(envoyTCP, ""), "", s.a.Addr4(), pairPort, "")
	path, err := s.write("envoy-local.yaml", text)
	if err != nil {
		return nil, err
	}
	const group = "proxy-envoy-local"
	p, err := s.a.Start(testnet.Command{
		Name: "envoy-local", Path: s.envoy, Cgroup: group,
		Args: []string{"-c", path, "--concurrency", "2", "--log-level", "error", "--disable-hot-restart", "--base-id", "3"},
	})
	if err != nil {
		return nil, err
	}
	in := &localInstance{address: fmt.Sprintf("127.0.0.1:%d", envoyPort), client: pairClient, proxy: group}
	in.stop = func(context.Context) error {
		err := p.Kill()
		<-p.Done()
		return err
	}
	if err := waitListen(ctx, s.a, p, netip.MustParseAddrPort(in.address)); err != nil {
		return nil, errors.Join(err, in.stop(ctx))
	}
	return in, nil
}

// localMesh is a node between two of its workloads: allowed by policy, counted,
// and spliced. With a client that waits inside of read(2) they aren't.
type localMesh struct{ blocking bool }

func (m localMesh) name() string {
	if m.blocking {
		return "meshproxy-blocking"
	}
	return meshproxyName
}

const localMeshFile = `nodes: [{name: a, address: %[1]s}]
workloads:
- {name: client, node: a, match: [{cgroup: %[2]s}]}
- {name: server, node: a, match: [{cgroup: %[3]s}]}
services:
- name: server
  ports: [{port: %[4]d}]
  endpoints: [{node: a, port: %[4]d, workload: server}]
authorization: {default: deny}
policies:
- {name: client-to-server, action: allow, from: [{identity: %[5]s}], to: [{service: server}]}
`

var errNotSpliced = errors.New("connections are not spliced")

func (m localMesh) start(ctx context.Context, s *site) (*localInstance, error) {
	const workload = "pair-workload"
	text := fmt.Sprintf(localMeshFile, s.a.Addr4(),
		meshnode.CgroupPath(s.topology, s.a.Namespace, workload),
		meshnode.CgroupPath(s.topology, s.a.Namespace, pairServer),
		pairPort, meshnode.Identity("client"))
	path, err := s.write("local.yaml", text)
	if err != nil {
		return nil, err
	}
	node, err := startNode(ctx, s, s.a, path, "splicing: auto\n")
	if err != nil {
		return nil, err
	}
	in := &localInstance{address: s.pairAddr().String(), client: workload, proxy: meshnode.Cgroup, blocking: m.blocking, placed: !m.blocking, stop: node.Leave}
	// The first connection shows the server's socket, and the second is as
	// all that follow.
	window := load.Window{Length: 20 * time.Millisecond}
	for range 2 {
		if _, err = s.runPairs(ctx, in, load.Pairs{Kind: "ping", Size: 64, Count: 1}, window); err != nil {
			return nil, errors.Join(err, node.Leave(ctx))
		}
	}
	status, err := node.Admin.Status(ctx)
	if err == nil {
		if sp := status.Capture.Splice; (sp.Spliced == 0) != m.blocking || sp.Opened != 2 {
			err = fmt.Errorf("%w: %+v", errNotSpliced, sp)
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("ask node: %w", err), node.Leave(ctx))
	}
	return in, nil
}

// runPairs measures one thing.
func (s *site) runPairs(ctx context.Context, in *localInstance, p load.Pairs, w load.Window) (load.Result, error) {
	p.Address = in.address
	p.Blocking = in.blocking && p.Kind == "ping" && p.Count == 1
	w.Cgroups = []string{s.a.Cgroup(in.client), s.a.Cgroup(pairServer)}
	if in.proxy != "" {
		w.Cgroups = append(w.Cgroups, s.a.Cgroup(in.proxy))
	}
	client, err := s.start(s.a, "pair-client", "pair-"+p.Kind, in.client, pairArgs{p, w})
	if err != nil {
		return load.Result{}, err
	}
	return result(ctx, client)
}

type pairArgs struct {
	load.Pairs
	Window load.Window
}

// measureLocal measures all of the local path with one peer.
func measureLocal(ctx context.Context, s *site, p localPeer, plan plan) (all values, err error) {
	in, err := p.start(ctx, s)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", p.name(), err)
	}
	defer func() {
		if stopErr := in.stop(context.WithoutCancel(ctx)); stopErr != nil && err == nil {
			err = fmt.Errorf("stop %s: %w", p.name(), stopErr)
		}
	}()
	all = values{}
	shuffled := append([]load.Pairs(nil), localLoads...)
	rand.Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
	for _, l := range shuffled {
		if !in.measures(l) || plan.only != nil && !slices.Contains(plan.only, localName(l)) {
			continue
		}
		r, err := s.runPairs(ctx, in, l, plan.localWindow())
		if err != nil {
			return all, fmt.Errorf("measure %s, %s: %w", p.name(), localName(l), err)
		}
		got := localValues(l, r)
		maps.Copy(all, got)
		progress("%s, %s: %s", p.name(), localName(l), got)
	}
	return all, nil
}

// localWindow: what is measured is short, and there is much of it.
func (p plan) localWindow() load.Window {
	return load.Window{Warm: p.window.Warm / 4, Length: p.window.Length / 2}
}

func localValues(l load.Pairs, r load.Result) values {
	name := localName(l)
	if l.Kind == "stream" {
		gigabytes := float64(r.Bytes) / 1e9
		return values{name: gigabytes / r.Seconds, name + "_cpu": cpu(r) / gigabytes}
	}
	v := values{name + "_p50": float64(r.P50) / 1e3, name + "_cpu": cpu(r) * 1e6 / float64(r.Count)}
	if l.Count > 1 {
		v[name+"_rate"] = float64(r.Count) / r.Seconds
	}
	return v
}

// measureLocals is a round of the local path.
func measureLocals(ctx context.Context, h *harness) error {
	sleep, err := h.site.keepAwake(ctx)
	if err != nil {
		return errors.Join(err, sleep())
	}
	err = h.each(ctx, func(c contender) (values, error) {
		return measureLocal(ctx, h.site, c.(localPeer), h.plan)
	})
	return errors.Join(err, sleep())
}

// keepAwake keeps the processors from halting until sleep is called.
func (s *site) keepAwake(ctx context.Context) (sleep func() error, err error) {
	var awake []*testnet.Process
	sleep = func() (err error) {
		for _, p := range awake {
			err = errors.Join(err, p.Kill())
			<-p.Done()
		}
		return err
	}
	cpus, err := load.CPUs()
	if err != nil {
		return sleep, err
	}
	for _, cpu := range cpus {
		name := fmt.Sprintf("awake-%d", cpu)
		p, err := s.a.Start(testnet.Command{
			Name: name, Path: testnet.Self, Cgroup: "awake", Env: []string{load.Env}, Args: []string{"role", "awake", strconv.Itoa(cpu)},
		})
		if err != nil {
			return sleep, err
		}
		awake = append(awake, p)
		if _, err := p.Stdout().WaitString(ctx, "ready"); err != nil {
			return sleep, fmt.Errorf("keep processor %d awake: %w: %s", cpu, err, p.Stderr().Tail(300))
		}
	}
	return sleep, nil
}

// localName is that of the figures: local_ping_64, local_stream_4096_by_64.
func localName(l load.Pairs) string {
	name := fmt.Sprintf("local_%s_%d", l.Kind, l.Size)
	if l.Kind == "connect" {
		name = "local_connect"
	}
	if l.Count > 1 {
		name += fmt.Sprintf("_by_%d", l.Count)
	}
	return name + []string{"", "_one_cpu", "_two_cpus"}[l.CPUs]
}

// localLoads is what is measured, and localFigures what becomes of it.
var localLoads = func() (all []load.Pairs) {
	for _, count := range []int{1, 64} {
		for cpus := 0; cpus == 0 || count == 1 && cpus <= 2; cpus++ {
			for _, size := range []int{64, 1 << 10, 16 << 10} {
				all = append(all, load.Pairs{Kind: "ping", Size: size, Count: count, CPUs: cpus})
			}
		}
		for _, size := range []int{4 << 10, 16 << 10, 64 << 10} {
			all = append(all, load.Pairs{Kind: "stream", Size: size, Count: count})
		}
		all = append(all, load.Pairs{Kind: "connect", Size: 64, Count: count})
	}
	return all
}()

var localSuite = &suite{
	name: "local", title: "Between two workloads of one node",
	text: `Two processes of one network namespace: by TCP over loopback, by a Unix socket, with one Envoy in between (no
encryption), and with a node of meshproxy, policy and telemetry on and ` + "`splicing: auto`" + `. Client and
server don't block and wait in epoll, as most servers do; "meshproxy-blocking" is a client that waits inside of
read(2), whose connections stay TCP. "by_64" is 64 connections at a time. CPU is that of all processes.

All is measured with processors that are kept awake, as those of a busy node are, by a process each that runs when
nobody else wants to (SCHED_IDLE). In a virtual machine it takes longer to wake one that has halted (20 to 25 µs on
the one below, twice for a round trip) than all that is compared here.

Where the scheduler puts client and server makes more of a difference to a single round trip than what is compared,
and it changes from run to run: "one_cpu" has both stay on the same processor, "two_cpus" on one each. That of a
process in between isn't ours to choose.
`,
	figures: localFigures(), choose: chooseLocal, round: measureLocals,
	finish: func(context.Context, *harness) error { return nil },
}

func chooseLocal(ctx context.Context, h *harness) {
	_, noProduct := os.Stat(h.site.product)
	h.add(localTCP{}, nil)
	h.add(localUnix{}, nil)
	h.add(localMesh{}, noProduct)
	h.add(localMesh{blocking: true}, noProduct)
	var noEnvoy error
	if h.wants(localEnvoy{}.name()) {
		h.site.envoy, noEnvoy = fetchEnvoy(ctx)
	}
	h.add(localEnvoy{}, noEnvoy)
}

func localFigures() (all []figure) {
	tcp := localTCP{}.name()
	for _, l := range localLoads {
		name := localName(l)
		switch {
		case l.Kind == "stream":
			target := map[int]float64{4 << 10: 0.95, 16 << 10: 0.95, 64 << 10: 1.5}[l.Size]
			if l.Count > 1 {
				target = 0
			}
			all = append(all, figure{name, "GB/s", true, tcp, target}, figure{name + "_cpu", "s/GB", false, tcp, 0})
			continue
		case l.Count > 1:
			all = append(all, figure{name + "_rate", "1/s", true, tcp, 0})
			all = append(all, figure{name + "_p50", "µs", false, tcp, 0})
		case l.Kind == "connect":
			all = append(all, figure{name + "_p50", "µs", false, tcp, 1.15})
		default:
			all = append(all, figure{name + "_p50", "µs", false, tcp, 0.6})
		}
		all = append(all, figure{name + "_cpu", "µs", false, tcp, 0})
	}
	return all
}
