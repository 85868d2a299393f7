// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/meshproxy/meshproxy/tests/meshnode"
	"github.com/meshproxy/meshproxy/tests/testnet"
)

// manyServices measures what the proxies of host a take of memory for a number of
// services there, each with an upstream, at rest.
func manyServices(ctx context.Context, h *harness, p peer) error {
	run := map[string]func(context.Context, *site, int) ([]int, func(context.Context) error, error){
		sidecars: manySidecars, meshproxyName: oneNode,
	}[p.name()]
	if run == nil || len(h.samples[p.name()]["pss_20_services"]) > 0 {
		return nil
	}
	pids, stop, err := run(ctx, h.site, h.plan.services)
	if err == nil {
		var v values
		if v, err = memoryOf(ctx, pids); err == nil {
			h.samples.add(p.name(), v)
			progress("%s, %d services: %s", p.name(), h.plan.services, v)
		}
	}
	if err = errors.Join(err, stop(context.WithoutCancel(ctx))); err != nil {
		return fmt.Errorf("measure %d services of %s: %w", h.plan.services, p.name(), err)
	}
	return nil
}

// memoryOf is the memory of processes together, for 20 services.
func memoryOf(ctx context.Context, pids []int) (values, error) {
	settled, err := settledRSS(ctx, pids)
	if err != nil {
		return nil, err
	}
	v := values{}
	for i, pid := range pids {
		shared, err := pss(pid)
		if err != nil {
			return nil, err
		}
		v["rss_20_services"] += settled[i] / (1 << 20)
		v["pss_20_services"] += shared / (1 << 20)
	}
	return v, nil
}

// pss is a process's memory in bytes, of which what it shares with others is
// divided among them.
func pss(pid int) (float64, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return 0, fmt.Errorf("read memory: %w", err)
	}
	for line := range strings.Lines(string(data)) {
		if v, ok := strings.CutPrefix(line, "Pss:"); ok {
			kib, err := strconv.ParseFloat(strings.Fields(v)[0], 64)
			return kib * 1024, err
		}
	}
	return 0, fmt.Errorf("read memory: no Pss of pid %d", pid)
}

func localService(i int) string { return fmt.Sprintf("local-%02d", i) }

// ownUpstream is where service i dials the server.
func ownUpstream(i int) api.Upstream {
	return api.Upstream{DestinationName: "server", LocalBindPort: localPort + 10 + i}
}

// manySidecars starts an Envoy for each service.
func manySidecars(ctx context.Context, s *site, count int) (pids []int, stop func(context.Context) error, err error) {
	var running []*testnet.Process
	var removes []func(context.Context) error
	stop = func(ctx context.Context) error {
		var errs []error
		for _, p := range running {
			errs = append(errs, p.Kill())
			<-p.Done()
		}
		return errors.Join(append(errs, all(ctx, removes))...)
	}
	for i := range count {
		remove, err := s.put(ctx, s.a, behindSidecar(localService(i), manyFirstPort+i, 21000+i, ownUpstream(i)))
		removes = append(removes, remove)
		if err != nil {
			return nil, stop, err
		}
		cmd, err := s.sidecar(ctx, s.a, localService(i), i)
		if err != nil {
			return nil, stop, err
		}
		cmd.Name, cmd.Cgroup = "sidecar-"+localService(i), "sidecars"
		p, err := s.a.Start(cmd)
		if err != nil {
			return nil, stop, err
		}
		running, pids = append(running, p), append(pids, p.Pid())
		at := s.sides()[0].listen.Addr()
		if err := waitListen(ctx, s.a, p, netip.AddrPortFrom(at, uint16(ownUpstream(i).LocalBindPort))); err != nil {
			return nil, stop, err
		}
	}
	return pids, stop, nil
}

// oneNode starts a node that carries all services.
func oneNode(ctx context.Context, s *site, count int) (pids []int, stop func(context.Context) error, err error) {
	var list []*api.AgentServiceRegistration
	source := "{enabled: true, services: ["
	for i := range count {
		list = append(list, &api.AgentServiceRegistration{Name: localService(i), Port: manyFirstPort + i})
		path := meshnode.CgroupPath(s.topology, s.a.Namespace, filepath.Join("many", strconv.Itoa(i)))
		source += fmt.Sprintf("{name: %s, match: [{cgroup: %q}], upstreams: [{listen: \"127.0.0.1:%d\", service: server}]}, ",
			localService(i), path, ownUpstream(i).LocalBindPort)
	}
	remove, err := s.put(ctx, s.a, list...)
	if err != nil {
		return nil, remove, err
	}
	nodes, err := s.startConsulNodes(ctx, map[*testnet.Host]string{s.a: source + "]}"})
	if err != nil {
		return nil, remove, err
	}
	stop = func(ctx context.Context) error { return errors.Join(nodes.leave(ctx), remove(ctx)) }
	wait, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	err = testnet.Until(wait, func() error {
		status, err := nodes[0].Admin.Status(wait)
		if err == nil && status.Identity.Leaves < count {
			err = fmt.Errorf("%d leaves for %d services", status.Identity.Leaves, count)
		}
		return err
	})
	return []int{nodes[0].Pid()}, stop, err
}
