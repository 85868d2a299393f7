// SPDX-License-Identifier: Apache-2.0

package main

// service is an application and its port.
type service struct {
	name string
	host string
	port int
	// public is the port of its sidecar; 0 where a node fronts it.
	public int
	// upstreams are what it dials on loopback.
	upstreams []upstream
}

type upstream struct {
	service string
	port    int
}

// The hosts: a and b have a node, the third one sidecars and Consul's server.
const envoyHost = "c"

var hosts = []string{"a", "b", envoyHost}

var services = []service{
	{name: "shop", host: "a", port: 8101, upstreams: []upstream{{"stock", 9001}, {"billing", 9002}}},
	{name: "cart", host: "a", port: 8102, upstreams: []upstream{{"shop", 9001}}},
	{name: "pay", host: "a", port: 8103},
	{name: "stock", host: "b", port: 8201, upstreams: []upstream{{"mail", 9001}}},
	{name: "billing", host: envoyHost, port: 8301, public: 21001, upstreams: []upstream{{"shop", 9101}}},
	{name: "mail", host: envoyHost, port: 8302, public: 21002},
	{name: "print", host: envoyHost, port: 8303, public: 21003, upstreams: []upstream{{"pay", 9102}}},
}

func servicesOf(host string) (list []service) {
	for _, s := range services {
		if s.host == host {
			list = append(list, s)
		}
	}
	return list
}

var sidecarServices = servicesOf(envoyHost)

// flow is who calls whom, and how the node that has part in it says that the
// connection goes.
type flow struct{ from, to, path, what string }

var flows = []flow{
	{"shop", "stock", "hbone", "between two nodes"},
	{"shop", "billing", "mtls", "from a node to an Envoy sidecar"},
	{"stock", "mail", "mtls", "from a node to an Envoy sidecar"},
	{"billing", "shop", "mtls", "from an Envoy sidecar to a node"},
	{"print", "pay", "mtls", "from an Envoy sidecar to a node"},
	{"cart", "shop", "direct", "on one node"},
}

// flipped is whose intention changes.
var flipped = flows[3]
