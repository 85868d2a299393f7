// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/meshproxy/meshproxy/nodeproxy/admin/api"
	"github.com/meshproxy/meshproxy/tests/meshnode"
	"github.com/meshproxy/meshproxy/tests/testnet"
)

// meshproxy is the product on both hosts. The client is a workload whose
// connection to the server's own address is captured; the server is one that
// listened before the node started.
type meshproxy struct {
	spliced bool // the hops between applications and proxies
}

const (
	meshproxyName = "meshproxy"
	splicedName   = "meshproxy-spliced"
)

func (m meshproxy) name() string {
	if m.spliced {
		return splicedName
	}
	return meshproxyName
}

func (meshproxy) version(ctx context.Context, s *site) string {
	out, _ := exec.CommandContext(ctx, s.product, "version").Output()
	line, _, _ := strings.Cut(string(out), "\n")
	return line
}

const benchMesh = `nodes:
- {name: a, address: %[1]s}
- {name: b, address: %[2]s}
workloads:
- {name: client, node: a, match: [{cgroup: %[3]s}]}
- {name: server, node: b, match: [{cgroup: %[4]s}]}
services:
- name: server
  ports: [{port: %[5]d}]
  endpoints: [{node: b, port: %[5]d}]
authorization: {default: deny}
policies:
- name: client-to-server
  action: allow
  from: [{identity: %[6]s}]
  to: [{service: server}]
`

// benchExtra is for nodes that carry more than a usual one.
const benchExtra = `defaults: {maxConnectionsPerWorkload: 100000}
log: {level: warn, access: off}
drainTimeout: 1s
`

func (m meshproxy) start(ctx context.Context, s *site) (*instance, error) {
	const workload = "workload"
	text := fmt.Sprintf(benchMesh, s.a.Addr4(), s.b.Addr4(),
		meshnode.CgroupPath(s.topology, s.a.Namespace, workload),
		meshnode.CgroupPath(s.topology, s.b.Namespace, "server"),
		serverPort, meshnode.Identity("client"))
	extra := benchExtra
	if m.spliced {
		extra += "spliceHops: auto\n"
	}
	nodes, err := startNodes(ctx, s, text, extra)
	if err != nil {
		return nil, err
	}
	in := &instance{target: s.serverAddr(), client: workload, descriptorsPerConnection: 1, stop: nodes.leave}
	for i, h := range s.topology.Hosts() {
		in.proxies = append(in.proxies, proxyProcess{nodes[i].Process, h.Cgroup(meshnode.Cgroup)})
	}
	if err := nodes.checkCaptured(ctx, s, in, "hbone"); err != nil {
		return nil, errors.Join(err, nodes.leave(ctx))
	}
	return in, nil
}

// checkCaptured makes sure that it isn't a direct connection that is measured.
func (m meshNodes) checkCaptured(ctx context.Context, s *site, in *instance, path string) error {
	client, err := s.startClient(in, clientArgs{Kind: "idle", Count: 1})
	if err != nil {
		return err
	}
	defer func() {
		_ = client.Kill()
		<-client.Done()
	}()
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	if _, err := client.Stdout().WaitString(ctx, "ready"); err != nil {
		return fmt.Errorf("connect through the mesh: %w: %s", err, client.Stderr().Tail(300))
	}
	for i, direction := range []string{"outbound", "inbound"} {
		open, err := m[i].Admin.Connections(ctx, api.ConnectionFilter{Path: path, Direction: direction})
		if err != nil {
			return fmt.Errorf("ask node: %w", err)
		}
		if open.Total != 1 {
			return fmt.Errorf("%w: %d %s connections by %s, want 1", errNotCaptured, open.Total, direction, path)
		}
	}
	return nil
}

// checkUsed makes sure that every workload got a leaf and was used once.
func (m meshNodes) checkUsed(ctx context.Context, count int) error {
	for _, n := range m {
		status, err := n.Admin.Status(ctx)
		if err != nil {
			return fmt.Errorf("ask node: %w", err)
		}
		if status.Identity.Leaves < count || status.Traffic.Opened < uint64(count) {
			return fmt.Errorf("%w: node %s has %d leaves and opened %d connections for %d workloads",
				errNotCaptured, status.Node, status.Identity.Leaves, status.Traffic.Opened, count)
		}
	}
	return nil
}

var errNotCaptured = errors.New("not through the mesh")

// meshNodes are the nodes of both hosts.
type meshNodes []*meshnode.Node

// startNodes starts a node on each host, with the same mesh.
func startNodes(ctx context.Context, s *site, mesh, extra string) (meshNodes, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	path, err := s.write("mesh.yaml", mesh)
	if err != nil {
		return nil, err
	}
	var nodes meshNodes
	for _, h := range s.topology.Hosts() {
		n, err := startNode(ctx, s, h, path, extra)
		if err != nil {
			return nil, errors.Join(err, nodes.leave(ctx))
		}
		nodes = append(nodes, n)
	}
	return nodes, nil
}

// startNode starts the node of a host, with a mesh file and more configuration.
func startNode(ctx context.Context, s *site, h *testnet.Host, mesh, extra string) (*meshnode.Node, error) {
	ca := filepath.Join(s.topology.Dir(), "ca")
	if _, err := os.Stat(ca); errors.Is(err, os.ErrNotExist) {
		if err := meshnode.InitCA(ca); err != nil {
			return nil, err
		}
	}
	return startFresh(ctx, meshnode.Options{Host: h, Program: []string{s.product}, MeshFile: mesh, CADir: ca, Extra: extra})
}

// startFresh starts a node that knows nothing: it would begin with the last mesh
// that it knew, which is another one.
func startFresh(ctx context.Context, o meshnode.Options) (*meshnode.Node, error) {
	if err := os.RemoveAll(meshnode.StateDir(o.Host)); err != nil {
		return nil, fmt.Errorf("remove state: %w", err)
	}
	return meshnode.Start(ctx, o)
}

// leave ends the nodes and what they keep in the kernel, so that the next
// peer runs without.
func (m meshNodes) leave(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	var errs []error
	for _, n := range m {
		errs = append(errs, n.Leave(ctx))
	}
	return errors.Join(errs...)
}
