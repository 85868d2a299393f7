// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/meshproxy/meshproxy/tests/bench/load"
	"github.com/meshproxy/meshproxy/tests/peers/consul"
	"github.com/meshproxy/meshproxy/tests/testnet"
)

// The ports in use; each peer's proxies listen on the same ones, at different
// times.
const (
	serverPort = 9000  // the server, on host b
	localPort  = 10001 // the other proxies' on host a, for the client
	tunnelPort = 10002 // the other proxies' on host b, for the one on a
)

// site is where everything is measured: client and the first proxy on host a,
// the second proxy and the server on host b.
type site struct {
	a, b     *testnet.Host
	topology *testnet.Topology
	pki      *pki
	// descriptors is how many a process may have.
	descriptors int
	// product is the meshproxy binary.
	product string
	// envoy is the Envoy binary.
	envoy string
	// agents are Consul's, where it runs.
	agents map[*testnet.Host]*consul.Server
}

func newSite(ctx context.Context, product string) (*site, error) {
	topology, err := testnet.New("a", "b")
	if err != nil {
		return nil, err
	}
	s := &site{topology: topology, a: topology.Host("a"), b: topology.Host("b"), product: product, agents: make(map[*testnet.Host]*consul.Server)}
	if err := s.furnish(ctx); err != nil {
		return nil, errors.Join(err, topology.Close())
	}
	return s, nil
}

func (s *site) close() error {
	for _, a := range s.agents {
		_ = a.Stop()
	}
	return s.topology.Close()
}

func (s *site) furnish(ctx context.Context) error {
	var err error
	if s.pki, err = newPKI(s.topology.Dir()); err != nil {
		return err
	}
	for _, h := range s.topology.Hosts() {
		// A benchmark of new connections uses up the ports otherwise.
		for _, ctl := range [][2]string{
			{"net/ipv4/ip_local_port_range", "11000 65535"},
			// The proxies' own ports are not for clients.
			{"net/ipv4/ip_local_reserved_ports", "15000-15100,19000-19100,20000-20100,21000-21100"},
			{"net/ipv4/tcp_tw_reuse", "1"},
			{"net/ipv4/tcp_max_syn_backlog", "8192"},
			{"net/core/somaxconn", "8192"},
		} {
			if err := h.Sysctl(ctl[0], ctl[1]); err != nil {
				return err
			}
		}
	}
	server, err := s.b.Start(testnet.Command{
		Name: "server", Path: testnet.Self, Cgroup: "server", Env: []string{load.Env},
		Args: []string{"role", "server", netip.AddrPortFrom(netip.IPv4Unspecified(), serverPort).String()},
	})
	if err != nil {
		return err
	}
	if _, err = server.Stdout().WaitString(ctx, "ready"); err != nil {
		return err
	}
	return s.servePairs(ctx)
}

// serverAddr is the server, from anywhere.
func (s *site) serverAddr() netip.AddrPort { return netip.AddrPortFrom(s.b.Addr4(), serverPort) }

// clientArgs are what the role "client" is asked for.
type clientArgs struct {
	Kind   string // "ping", "up", "down", "connect", "idle", "once"
	Addr   netip.AddrPort
	Count  int // connections or streams
	Window load.Window
}

// startClient starts a client on host a.
func (s *site) startClient(in *instance, args clientArgs) (*testnet.Process, error) {
	args.Addr = in.target
	return s.start(s.a, "client", "client-"+args.Kind, in.client, args)
}

// start starts one of our roles, with arguments in JSON.
func (s *site) start(h *testnet.Host, role, name, cgroup string, args any) (*testnet.Process, error) {
	text, err := json.Marshal(args)
	if err != nil {
		return nil, fmt.Errorf("encode arguments: %w", err)
	}
	return h.Start(testnet.Command{
		Name: name, Path: testnet.Self, Cgroup: cgroup, Env: []string{load.Env}, Args: []string{"role", role, string(text)},
	})
}

// runClient runs a client to its end.
func (s *site) runClient(ctx context.Context, in *instance, args clientArgs) (load.Result, error) {
	p, err := s.startClient(in, args)
	if err != nil {
		return load.Result{}, err
	}
	return result(ctx, p)
}

func result(ctx context.Context, p *testnet.Process) (r load.Result, err error) {
	// A proxy that hangs must not hang the benchmark.
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	if err := p.Wait(ctx); err != nil {
		_ = p.Kill()
		return r, fmt.Errorf("%s: %w: %s", p.Name(), err, p.Stderr().Tail(300))
	}
	if err := json.Unmarshal(p.Stdout().Bytes(), &r); err != nil {
		return r, fmt.Errorf("parse result of %s: %w", p.Name(), err)
	}
	return r, nil
}

// rss returns a process's resident memory in bytes.
func rss(pid int) (float64, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, fmt.Errorf("read memory: %w", err)
	}
	for line := range strings.Lines(string(data)) {
		if v, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kib, err := strconv.ParseFloat(strings.Fields(v)[0], 64)
			return kib * 1024, err
		}
	}
	return 0, fmt.Errorf("read memory: no VmRSS of pid %d", pid)
}

// settledRSS waits until the memory of the processes changes no more: less
// than one percent in a second, 20 seconds at most.
func settledRSS(ctx context.Context, pids []int) ([]float64, error) {
	read := func() ([]float64, error) {
		now := make([]float64, len(pids))
		for i, pid := range pids {
			var err error
			if now[i], err = rss(pid); err != nil {
				return nil, err
			}
		}
		return now, nil
	}
	last, err := read()
	if err != nil {
		return nil, err
	}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for range 20 {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		now, err := read()
		if err != nil {
			return nil, err
		}
		settled := true
		for i := range now {
			if d := now[i] - last[i]; d > now[i]/100 || -d > now[i]/100 {
				settled = false
			}
		}
		last = now
		if settled {
			break
		}
	}
	return last, nil
}

// idleCount returns how many idle connections a peer is measured with. A proxy
// with a TLS connection for each has two descriptors per connection, which may
// be more than the machine allows.
func (s *site) idleCount(p plan, in *instance) int {
	if in.descriptorsPerConnection < 2 {
		return p.idle
	}
	return min(p.idle, s.mostConnections())
}

func (s *site) mostConnections() int { return (s.descriptors - spareDescriptors) / 2 }
