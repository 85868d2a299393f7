// SPDX-License-Identifier: Apache-2.0

package demo

import (
	"bytes"
	"context"
	"crypto/rand"
	_ "embed" // the mesh's template
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"text/template"

	"github.com/meshproxy/meshproxy/tests/meshnode"
	"github.com/meshproxy/meshproxy/tests/testnet"
	"github.com/meshproxy/meshproxy/tests/workload"
)

// The arguments by which the demo starts itself in another role.
const (
	commandName = "demo"
	roleName    = "role"
)

// unreachableResolver is in resolv.conf (an address for documentation, RFC
// 5737): names resolve only because the node answers in its place.
const unreachableResolver = "192.0.2.53"

// stage is everything that the demo has made.
type stage struct {
	topology *testnet.Topology
	box      *testnet.Container
	// wire sees all that goes between the nodes.
	wire *testnet.Capture
	// The markers in payloads: of calls before the mesh, of calls within it,
	// and of strangers beside it.
	before, meshed, plain string

	servers map[string]*testnet.Process
	nodes   map[string]*meshnode.Node
	clients []*testnet.Process // as calls
}

//go:embed mesh.yaml.tmpl
var meshText string

// newStage makes hosts, the capture on the wire, and all servers.
func newStage(ctx context.Context) (*stage, error) {
	topology, err := testnet.New(hostA, hostB)
	if err != nil {
		return nil, err
	}
	run := rand.Text()[:8]
	s := &stage{
		topology: topology,
		before:   "before-the-mesh-" + run,
		meshed:   "inside-the-mesh-" + run,
		plain:    "beside-the-mesh-" + run,
		servers:  map[string]*testnet.Process{},
		nodes:    map[string]*meshnode.Node{},
	}
	if err := s.furnish(ctx); err != nil {
		return nil, errors.Join(err, topology.Close())
	}
	return s, nil
}

func (s *stage) close() error {
	for _, n := range s.nodes {
		n.Admin.Close()
	}
	return s.topology.Close()
}

func (s *stage) furnish(ctx context.Context) error {
	var err error
	b := s.topology.Host(hostB)
	if s.box, err = b.Container(box); err != nil {
		return err
	}
	if s.wire, err = b.StartCapture(testnet.WireLink, s.before, s.meshed, s.plain); err != nil {
		return err
	}
	for _, place := range []string{hostA, hostB, box} {
		if err := s.namespaceOf(place).SetResolver(unreachableResolver); err != nil {
			return err
		}
	}
	all := []server{outsider}
	for _, svc := range services {
		all = append(all, svc.servers...)
	}
	for _, srv := range all {
		p, err := s.startRole(srv.place, "serve-"+srv.name, srv.workload,
			"serve", "-name", srv.name, "-"+srv.kind, netip.AddrPortFrom(netip.IPv4Unspecified(), srv.port).String())
		if err != nil {
			return err
		}
		if _, err := p.Stdout().WaitString(ctx, workload.EventReady); err != nil {
			return fmt.Errorf("start %s: %w: %s", srv.name, err, p.Stderr().Tail(300))
		}
		s.servers[srv.name] = p
	}
	return nil
}

// startRole starts this program as a workload's process.
func (s *stage) startRole(place, name, workload string, args ...string) (*testnet.Process, error) {
	return s.namespaceOf(place).Start(testnet.Command{
		Name: name, Path: testnet.Self, Cgroup: cgroup(workload),
		Args: append([]string{commandName, roleName}, args...),
	})
}

// startCall starts a client with an address and a marker. A count of 0 calls
// until the process is stopped.
func (s *stage) startCall(c *call, addr, marker string, count int) (*testnet.Process, error) {
	args := []string{"call", "-body", marker, "-count", fmt.Sprint(count), "-rate", fmt.Sprint(c.rate), "-timeout", "30s"}
	if c.kind == "http" {
		args = append(args, "-url", "http://"+addr+"/")
	} else {
		args = append(args, "-tcp", addr)
	}
	if c.fresh {
		args = append(args, "-fresh")
	}
	name := c.name()
	if count > 0 {
		name = "before-" + name
	}
	return s.startRole(c.place, name, c.workload, args...)
}

// startMesh starts the nodes.
func (s *stage) startMesh(ctx context.Context) error {
	mesh := filepath.Join(s.topology.Dir(), "mesh.yaml")
	text, err := s.meshFile()
	if err != nil {
		return err
	}
	if err := os.WriteFile(mesh, text, 0o644); err != nil {
		return fmt.Errorf("write mesh: %w", err)
	}
	ca := filepath.Join(s.topology.Dir(), "ca")
	if err := meshnode.InitCA(ca); err != nil {
		return err
	}
	for _, h := range s.topology.Hosts() {
		n, err := meshnode.Start(ctx, meshnode.Options{
			Host: h, Program: []string{testnet.Self}, MeshFile: mesh, CADir: ca,
			Extra: "log: {access: json, accessEntries: all}\n",
		})
		if err != nil {
			return err
		}
		s.nodes[h.Name()] = n
	}
	return nil
}

// startCalls starts all clients.
func (s *stage) startCalls() error {
	for i := range calls {
		c := &calls[i]
		marker := s.meshed
		if c.workload == "" || c.server != nil {
			marker = s.plain
		}
		p, err := s.startCall(c, c.byName(s), marker, 0)
		if err != nil {
			return err
		}
		s.clients = append(s.clients, p)
	}
	return nil
}

// meshFile writes the file that both nodes read.
func (s *stage) meshFile() ([]byte, error) {
	type endpoint struct {
		Node    string
		Address netip.Addr
		Port    uint16
	}
	type meshService struct {
		Name      string
		Port      uint16
		Endpoints []endpoint
	}
	type meshWorkload struct {
		Name    string
		Node    string // empty is both
		Cgroups []string
	}
	var svcs []meshService
	var workloads []meshWorkload
	for _, svc := range services {
		m := meshService{Name: svc.name, Port: svc.port}
		for _, srv := range svc.servers {
			m.Endpoints = append(m.Endpoints, endpoint{nodeOf(srv.place), s.ipOf(srv.place), srv.port})
			path := meshnode.CgroupPath(s.topology, s.namespaceOf(srv.place), cgroup(srv.workload))
			i := slices.IndexFunc(workloads, func(w meshWorkload) bool { return w.Name == srv.workload })
			if i < 0 {
				i = len(workloads)
				workloads = append(workloads, meshWorkload{Name: srv.workload, Node: nodeOf(srv.place)})
			} else if workloads[i].Node != nodeOf(srv.place) {
				workloads[i].Node = ""
			}
			workloads[i].Cgroups = append(workloads[i].Cgroups, path)
		}
		svcs = append(svcs, m)
	}
	tmpl, err := template.New("mesh").Option("missingkey=error").Parse(meshText)
	if err != nil {
		return nil, fmt.Errorf("parse template: %w", err)
	}
	var text bytes.Buffer
	err = tmpl.Execute(&text, map[string]any{
		"Nodes": s.topology.Hosts(), "Workloads": workloads, "Services": svcs,
		"Forbidden": meshnode.Identity("web"),
	})
	if err != nil {
		return nil, fmt.Errorf("fill template: %w", err)
	}
	return text.Bytes(), nil
}
