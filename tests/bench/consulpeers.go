// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"strconv"
	"strings"

	"github.com/hashicorp/consul/api"

	"github.com/meshproxy/meshproxy/tests/meshnode"
	"github.com/meshproxy/meshproxy/tests/peers/consul"
	"github.com/meshproxy/meshproxy/tests/testnet"
)

// envoySidecars are a pair of Envoys as Consul configures them.
type envoySidecars struct{}

func (envoySidecars) name() string { return sidecars }

func (envoySidecars) version(ctx context.Context, s *site) string {
	return envoy{}.version(ctx, s) + ", configured by Consul " + consul.Version
}

func (envoySidecars) start(ctx context.Context, s *site) (*instance, error) {
	sides := s.sides()
	services := []*api.AgentServiceRegistration{
		behindSidecar("client", 7000, tunnelPort, api.Upstream{DestinationName: "server", LocalBindPort: localPort}),
		behindSidecar("server", serverPort, tunnelPort),
	}
	var removes []func(context.Context) error
	for i := range sides {
		remove, err := s.put(ctx, sides[i].host, services[i])
		removes = append(removes, remove)
		if err == nil {
			sides[i].cmd, err = s.sidecar(ctx, sides[i].host, services[i].Name, i)
		}
		if err != nil {
			return nil, errors.Join(err, all(ctx, removes))
		}
	}
	in, err := startPair(ctx, s, sidecars, sides)
	if err != nil {
		return nil, errors.Join(err, all(ctx, removes))
	}
	kill := in.stop
	in.stop = func(ctx context.Context) error { return errors.Join(kill(ctx), all(ctx, removes)) }
	if err := s.awaitAnswer(ctx, in); err != nil {
		return nil, errors.Join(err, in.stop(ctx))
	}
	return in, nil
}

// all calls all.
func all(ctx context.Context, list []func(context.Context) error) error {
	var errs []error
	for _, f := range list {
		errs = append(errs, f(ctx))
	}
	return errors.Join(errs...)
}

// behindSidecar is a service with a sidecar, as its users register it.
func behindSidecar(name string, port, public int, upstreams ...api.Upstream) *api.AgentServiceRegistration {
	return &api.AgentServiceRegistration{
		Name: name, Port: port,
		Connect: &api.AgentServiceConnect{SidecarService: &api.AgentServiceRegistration{
			Port: public, Proxy: &api.AgentServiceConnectProxyConfig{Upstreams: upstreams},
		}},
	}
}

// adminPort is the first of the sidecars' administration interfaces.
const adminPort = 19000

// sidecar is the command of a service's Envoy, the ith of its host.
func (s *site) sidecar(ctx context.Context, h *testnet.Host, service string, i int) (c testnet.Command, err error) {
	admin := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(adminPort+i))
	bootstrap, err := s.agents[h].Bootstrap(ctx, s.envoy, service, admin)
	if err != nil {
		return c, err
	}
	path, err := s.write("sidecar-"+service+".json", string(bootstrap))
	if err != nil {
		return c, err
	}
	return testnet.Command{
		Path: s.envoy,
		Args: []string{"-c", path, "--concurrency", "2", "--log-level", "error", "--disable-hot-restart", "--base-id", strconv.Itoa(i + 1)},
	}, nil
}

// consulMesh is meshproxy on both hosts, with all that it knows from Consul.
type consulMesh struct {
	// path is how the nodes speak with each other: hbone, or mtls as with
	// sidecars.
	path string
}

func (c consulMesh) name() string {
	if c.path == "hbone" {
		return meshproxyName
	}
	return meshproxyName + "-" + c.path
}

func (c consulMesh) version(ctx context.Context, s *site) string {
	out, _ := exec.CommandContext(ctx, s.product, "version").Output()
	line, _, _ := strings.Cut(string(out), "\n")
	return line
}

func (c consulMesh) start(ctx context.Context, s *site) (*instance, error) {
	const workload = "workload"
	client, server := &api.AgentServiceRegistration{Name: "client", Port: 7000}, &api.AgentServiceRegistration{Name: "server", Port: serverPort}
	onA, onB := []*api.AgentServiceRegistration{client}, []*api.AgentServiceRegistration{server}
	source := "{enabled: true, register: %t, services: [{name: %s, match: [{cgroup: %q}], upstreams: [%s]}]}"
	hbone := c.path == "hbone"
	if !hbone { // a row that says nothing of hbone
		onB = append(onB, &api.AgentServiceRegistration{
			Kind: api.ServiceKindConnectProxy, Name: "server-sidecar-proxy", Port: 20000,
			Proxy: &api.AgentServiceConnectProxyConfig{DestinationServiceName: "server", DestinationServiceID: "server", LocalServicePort: serverPort},
		})
	}
	var removes []func(context.Context) error
	for h, list := range map[*testnet.Host][]*api.AgentServiceRegistration{s.a: onA, s.b: onB} {
		remove, err := s.put(ctx, h, list...)
		removes = append(removes, remove)
		if err != nil {
			return nil, errors.Join(err, all(ctx, removes))
		}
	}
	nodes, err := s.startConsulNodes(ctx, map[*testnet.Host]string{
		s.a: fmt.Sprintf(source, hbone, "client", meshnode.CgroupPath(s.topology, s.a.Namespace, workload),
			fmt.Sprintf("{listen: \"127.0.0.1:%d\", service: server}", localPort)),
		s.b: fmt.Sprintf(source, hbone, "server", meshnode.CgroupPath(s.topology, s.b.Namespace, "server"), ""),
	})
	if err != nil {
		return nil, errors.Join(err, all(ctx, removes))
	}
	in := &instance{
		target: s.sides()[0].listen, client: workload, descriptorsPerConnection: 1,
		stop: func(ctx context.Context) error { return errors.Join(nodes.leave(ctx), all(ctx, removes)) },
	}
	for i, h := range s.topology.Hosts() {
		in.proxies = append(in.proxies, proxyProcess{nodes[i].Process, h.Cgroup(meshnode.Cgroup)})
	}
	if err = s.awaitAnswer(ctx, in); err == nil {
		err = nodes.checkCaptured(ctx, s, in, c.path)
	}
	if err != nil {
		return nil, errors.Join(err, in.stop(ctx))
	}
	return in, nil
}

// startConsulNodes starts a node on each host, in order, with its own source.
func (s *site) startConsulNodes(ctx context.Context, sources map[*testnet.Host]string) (nodes meshNodes, err error) {
	for _, h := range s.topology.Hosts() {
		source, ok := sources[h]
		if !ok {
			continue
		}
		n, err := startFresh(ctx, meshnode.Options{
			Host: h, Program: []string{s.product}, NoTrustDomain: true, NoMeshFile: true, Identity: "identity: {provider: consul}\n",
			Extra: benchExtra + fmt.Sprintf("consul: {address: %q}\nsources: {consul: %s}\n", s.agents[h].HTTPAddr, source),
		})
		if err != nil {
			return nil, errors.Join(err, nodes.leave(ctx))
		}
		nodes = append(nodes, n)
	}
	return nodes, nil
}
