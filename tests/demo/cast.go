// SPDX-License-Identifier: Apache-2.0

package demo

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"strconv"

	"github.com/meshproxy/meshproxy/tests/testnet"
)

// The places where processes run: two hosts, and a container on the second.
const (
	hostA = "a"
	hostB = "b"
	box   = "box" // on hostB
)

// server is a process that serves.
type server struct {
	name  string // as it calls itself in answers
	place string
	// workload is the one it belongs to; empty is none.
	workload string
	kind     string // "http" or "tcp", as package workload has them
	port     uint16 // that it listens on
}

// service is what clients call by name.
type service struct {
	name     string
	port     uint16 // that clients dial
	protocol string
	servers  []server
}

// The ports of the services, as clients dial them.
const (
	httpPort  = 80
	dbPort    = 5432
	cachePort = 6379
)

// leaves is the server that goes away halfway.
const leaves = "api-a"

// services of the mesh. api has an endpoint on each node.
var services = []service{
	{"web", httpPort, "http", []server{{"web", hostA, "web", "http", 8080}}},
	{"api", httpPort, "http", []server{
		{"api-a", hostA, "api", "http", 8081},
		{"api-b", hostB, "api", "http", 8081},
	}},
	{"db", dbPort, "tcp", []server{{"db", hostB, "db", "tcp", dbPort}}},
	{"cache", cachePort, "tcp", []server{{"cache", hostA, "cache", "tcp", cachePort}}},
	{"worker", httpPort, "http", []server{{"worker", box, "worker", "http", 9090}}},
}

// outsider serves on node b and belongs to no workload.
var outsider = server{"outsider", hostB, "", "tcp", 7070}

// What a call is expected to come to.
type outcome int

const (
	works outcome = iota
	denied
)

// call is a client that calls in a loop.
type call struct {
	place string
	// workload is the client's; empty is none.
	workload string
	// service is called by name, at port; or address is.
	service string
	host    string // the name, when it isn't service + the domain
	server  *server
	kind    string
	port    uint16
	want    outcome
	// path and to are what the node should say of it.
	path string
	to   []string // the servers that should answer, all of them
	// outlives: one of the servers goes away meanwhile, which may cost the
	// calls that it was just answering.
	outlives bool
	// fresh calls make a connection each.
	fresh bool
	rate  float64
}

// The paths, as nodes name them.
const (
	pathHBONE  = "hbone"
	pathDirect = "direct"
	pathPlain  = "passthrough"
	pathDenied = "denied"
	pathNone   = "untouched"
)

// calls are all the traffic.
var calls = []call{
	// A node prefers its own endpoint, until that goes away.
	{place: hostA, workload: "web", service: "api", kind: "http", port: httpPort, path: pathDirect + "+" + pathHBONE, to: []string{"api-a", "api-b"}, outlives: true, fresh: true, rate: 100},
	{place: box, workload: "worker", service: "api", kind: "http", port: httpPort, path: pathDirect, to: []string{"api-b"}, fresh: true, rate: 50},
	{place: hostA, workload: "web", service: "cache", host: "cache", kind: "tcp", port: cachePort, path: pathDirect, to: []string{"cache"}, rate: 200},
	{place: hostA, workload: "web", service: "worker", kind: "http", port: httpPort, path: pathHBONE, to: []string{"worker"}, rate: 50},
	{place: hostA, workload: "api", service: "db", kind: "tcp", port: dbPort, path: pathHBONE, to: []string{"db"}, rate: 200},
	{place: hostB, workload: "api", service: "db", kind: "tcp", port: dbPort, path: pathDirect, to: []string{"db"}, rate: 200},
	{place: hostB, workload: "api", service: "cache", kind: "tcp", port: cachePort, path: pathHBONE, to: []string{"cache"}, rate: 200},
	{place: box, workload: "worker", service: "web", kind: "http", port: httpPort, path: pathHBONE, to: []string{"web"}, rate: 50},
	// The pair that policy forbids.
	{place: hostA, workload: "web", service: "db", kind: "tcp", port: dbPort, want: denied, path: pathDenied, fresh: true, rate: 2},
	// Out of the mesh, and from outside into it.
	{place: hostA, workload: "web", server: &outsider, kind: "tcp", path: pathPlain, to: []string{"outsider"}, rate: 20},
	{place: hostA, server: &outsider, kind: "tcp", path: pathNone, to: []string{"outsider"}, rate: 20},
	{place: hostA, server: &services[1].servers[1], kind: "http", want: denied, path: pathDenied, fresh: true, rate: 2},
}

// domain is the mesh's DNS domain, the default one.
const domain = "mesh.internal"

// from names the client for people.
func (c *call) from() string {
	if c.workload == "" {
		return "stranger@" + c.place
	}
	return c.workload + "@" + c.place
}

// target names what is called.
func (c *call) target() string {
	if c.server != nil {
		return c.server.name
	}
	return c.service
}

// name tells the client processes apart.
func (c *call) name() string {
	from := c.workload
	if from == "" {
		from = "stranger"
	}
	return fmt.Sprintf("call-%s-%s-%s", from, c.place, c.target())
}

// byName is the address that the client is given within the mesh.
func (c *call) byName(s *stage) string {
	if c.server != nil {
		return s.addrOf(*c.server).String()
	}
	host := c.host
	if host == "" {
		host = c.service + "." + domain
	}
	return host + ":" + strconv.Itoa(int(c.port))
}

// byAddress is a server's own address, for the time before the mesh.
func (c *call) byAddress(s *stage) netip.AddrPort {
	if c.server != nil {
		return s.addrOf(*c.server)
	}
	for _, svc := range services {
		if svc.name == c.service {
			// Across the wire where there is a choice.
			last := svc.servers[len(svc.servers)-1]
			return s.addrOf(last)
		}
	}
	panic("demo: no service " + c.service)
}

// cgroup is below the place's own.
func cgroup(workload string) string {
	if workload == "" {
		return "stranger"
	}
	return filepath.Join("mesh", workload)
}

// namespaceOf returns where a place is.
func (s *stage) namespaceOf(place string) *testnet.Namespace {
	if place == box {
		return s.box.Namespace
	}
	return s.topology.Host(place).Namespace
}

// ipOf returns the address of a place.
func (s *stage) ipOf(place string) netip.Addr {
	if place == box {
		return s.box.Addr4()
	}
	return s.topology.Host(place).Addr4()
}

func (s *stage) addrOf(srv server) netip.AddrPort {
	return netip.AddrPortFrom(s.ipOf(srv.place), srv.port)
}

// nodeOf returns the node that a place is on.
func nodeOf(place string) string {
	if place == box {
		return hostB
	}
	return place
}
