// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/meshproxy/meshproxy/tests/testnet"
)

// peer is one way from the client to the server.
type peer interface {
	name() string
	// version is for the description of the machine.
	version(ctx context.Context, s *site) string
	// start starts fresh proxies.
	start(ctx context.Context, s *site) (*instance, error)
}

// instance is a peer that runs.
type instance struct {
	// target is what the client dials on host a.
	target netip.AddrPort
	// client is the client's cgroup on host a.
	client string
	// proxies are the processes that are measured, that of host a first.
	proxies []proxyProcess
	// descriptorsPerConnection is how many a proxy needs.
	descriptorsPerConnection int
	// stop ends them.
	stop func(context.Context) error
}

type proxyProcess struct {
	process *testnet.Process
	cgroup  string
}

// cgroups are those whose processor time counts as the proxies'.
func (in *instance) cgroups() []string {
	var groups []string
	for _, p := range in.proxies {
		groups = append(groups, p.cgroup)
	}
	return groups
}

func (in *instance) pids() []int {
	var pids []int
	for _, p := range in.proxies {
		pids = append(pids, p.process.Pid())
	}
	return pids
}

// alive returns an error when a proxy has ended.
func (in *instance) alive() error {
	for _, p := range in.proxies {
		select {
		case <-p.process.Done():
			return fmt.Errorf("%s ended: %s", p.process.Name(), p.process.Stderr().Tail(500))
		default:
		}
	}
	return nil
}

// side is one proxy of a pair.
type side struct {
	host   *testnet.Host
	listen netip.AddrPort
	cmd    testnet.Command
}

// startPair starts the two proxies of a peer, and waits until they listen.
func startPair(ctx context.Context, s *site, name string, sides [2]side) (*instance, error) {
	in := &instance{target: sides[0].listen, client: "client", descriptorsPerConnection: 2}
	in.stop = func(context.Context) error {
		var errs []error
		for _, p := range in.proxies {
			errs = append(errs, p.process.Kill())
			<-p.process.Done()
		}
		return errors.Join(errs...)
	}
	for _, side := range sides {
		side.cmd.Name = name + "-" + side.host.Name()
		side.cmd.Cgroup = "proxy-" + name
		p, err := side.host.Start(side.cmd)
		if err != nil {
			return nil, errors.Join(err, in.stop(ctx))
		}
		in.proxies = append(in.proxies, proxyProcess{p, side.host.Cgroup(side.cmd.Cgroup)})
		if err := waitListen(ctx, side.host, p, side.listen); err != nil {
			return nil, errors.Join(err, in.stop(ctx))
		}
	}
	return in, nil
}

// waitListen waits for a listener of a process, or its end.
func waitListen(ctx context.Context, h *testnet.Host, p *testnet.Process, addr netip.AddrPort) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	go func() {
		select {
		case <-p.Done():
			cancel()
		case <-ctx.Done():
		}
	}()
	if err := h.WaitListen(ctx, addr); err != nil {
		return fmt.Errorf("start %s: %w: %s", p.Name(), err, p.Stderr().Tail(500))
	}
	return nil
}

// sides returns the addresses of a pair, for the other proxies.
func (s *site) sides() [2]side {
	return [2]side{
		{host: s.a, listen: netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), localPort)},
		{host: s.b, listen: netip.AddrPortFrom(s.b.Addr4(), tunnelPort)},
	}
}

// serverOnLoopback is what a proxy on host b dials.
func serverOnLoopback() string { return fmt.Sprintf("127.0.0.1:%d", serverPort) }

// write writes a configuration file.
func (s *site) write(name, text string) (string, error) {
	path := filepath.Join(s.topology.Dir(), name)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		return "", fmt.Errorf("write configuration: %w", err)
	}
	return path, nil
}

// direct is no proxy at all.
type direct struct{}

func (direct) name() string                          { return "direct" }
func (direct) version(context.Context, *site) string { return "" }

func (direct) start(_ context.Context, s *site) (*instance, error) {
	return &instance{target: s.serverAddr(), client: "client", stop: func(context.Context) error { return nil }}, nil
}
