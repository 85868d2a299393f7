// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	consulapi "github.com/hashicorp/consul/api"

	"github.com/meshproxy/meshproxy/tests/meshnode"
	"github.com/meshproxy/meshproxy/tests/peers/consul"
)

// consulLab is a lab whose mesh is a real Consul's: each host has an agent, b's is
// the server.
type consulLab struct {
	*lab
	agents map[string]*consul.Server
	server *consul.Server
	// cluster is set where there are several servers.
	cluster consul.Cluster
	// TrustDomain is the cluster's.
	TrustDomain string
}

func newConsulLab(t *testing.T) *consulLab {
	t.Helper()
	return newConsulLabAs(t, consul.Options{})
}

// newConsulLabAs is newConsulLab with options for all agents, and more hosts.
func newConsulLabAs(t *testing.T, o consul.Options, more ...string) *consulLab {
	t.Helper()
	hosts := append([]string{"b", "a"}, more...)
	l := &consulLab{lab: newLab(t, "{}", slices.Sorted(slices.Values(hosts))...), agents: make(map[string]*consul.Server)}
	for _, name := range hosts {
		o.Host, o.Node, o.Join = l.net.Host(name), name, l.server
		l.agents[name] = consul.Start(t, o)
		if l.server == nil {
			l.server = l.agents[name]
		}
	}
	l.learnTrustDomain()
	return l
}

func (l *consulLab) learnTrustDomain() {
	l.Helper()
	roots, _, err := l.server.Client().Agent().ConnectCARoots((&consulapi.QueryOptions{}).WithContext(l.ctx()))
	must(l.T, err)
	l.TrustDomain = roots.TrustDomain
}

// in is the lab for a subtest.
func (l *consulLab) in(t *testing.T) *consulLab {
	sub := *l
	sub.lab = l.lab.in(t)
	return &sub
}

// addr is an address of a host.
func (l *consulLab) addr(host string, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(l.net.Host(host).Addr4(), port)
}

// sidecar registers a service of a host with a sidecar, and starts Envoy for it.
func (l *consulLab) sidecar(host, service string, port, sidecar uint16, upstreams ...consulapi.Upstream) *consul.Sidecar {
	l.Helper()
	agent := l.agents[host]
	address := l.net.Host(host).Addr4().String()
	agent.Register(l, &consulapi.AgentServiceRegistration{
		Name: service, Address: address, Port: int(port),
		Connect: &consulapi.AgentServiceConnect{SidecarService: &consulapi.AgentServiceRegistration{
			Port: int(sidecar), Address: address,
			Proxy: &consulapi.AgentServiceConnectProxyConfig{LocalServiceAddress: address, LocalServicePort: int(port), Upstreams: upstreams},
		}},
	})
	return agent.StartEnvoy(l, service, "")
}

// register registers a service of a host, which a node there will front.
func (l *consulLab) register(host, service string, port int) {
	l.Helper()
	l.agents[host].Register(l, &consulapi.AgentServiceRegistration{
		Name: service, Address: l.net.Host(host).Addr4().String(), Port: port, Meta: map[string]string{"version": "v1"},
	})
}

// front registers a node in front of a service that is at a port, as the node itself does
// unless it is told not to.
func (l *consulLab) front(host, service string, port int, meta map[string]string) {
	l.Helper()
	l.agents[host].Register(l, &consulapi.AgentServiceRegistration{
		Kind: consulapi.ServiceKindConnectProxy, Name: service + "-sidecar-proxy", Meta: meta,
		Address: l.net.Host(host).Addr4().String(), Port: 20000,
		Proxy: &consulapi.AgentServiceConnectProxyConfig{
			DestinationServiceName: service, DestinationServiceID: service, LocalServicePort: port,
		},
	})
}

// node starts meshproxy on a host: what it needs to know is the agent's, and
// what services, a list in YAML, says beside.
func (l *consulLab) node(host, services string, more ...string) *meshnode.Node {
	l.Helper()
	o := consulNode
	o.Extra = "sources:\n  consul:\n    enabled: true\n"
	for _, line := range more {
		o.Extra += "    " + line + "\n"
	}
	if services != "" {
		o.Extra += "    services:" + services + "\n"
	}
	return l.startAs(host, o)
}

// consulNode is how a node in Consul's mesh is run.
var consulNode = meshnode.Options{NoTrustDomain: true, NoMeshFile: true, Identity: "identity: {provider: consul}\n"}

// upstream is a local port for a service.
func upstream(service string, port int) consulapi.Upstream {
	return consulapi.Upstream{DestinationName: service, LocalBindPort: port}
}

func (l *consulLab) loopback(port uint16) netip.AddrPort {
	return netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port)
}

// dialer makes a lane's dial, from a host to its loopback.
func (l *consulLab) dialer(host string, port uint16) func() (net.Conn, error) {
	return func() (net.Conn, error) {
		return l.net.Host(host).DialContext(l.ctx(), "tcp", l.loopback(port).String())
	}
}

// arrives waits until what a client sends arrives at the application: sidecars
// hear of changes when they do.
func (k *lane) arrives(l *lab) {
	l.Helper()
	attempt := byte(0)
	l.eventually("a first connection", func() error {
		attempt++
		c, err := k.dial()
		if err != nil {
			return err
		}
		defer c.Close()
		if _, err := c.Write([]byte{attempt}); err != nil {
			return err
		}
		for got := byte(0); got != attempt; { // others come late
			if got, err = k.first(); err != nil {
				return err
			}
		}
		return nil
	})
}

// first is the first byte of the next connection that arrives.
func (k *lane) first() (byte, error) {
	if err := k.app.SetDeadline(time.Now().Add(3 * time.Second)); err != nil {
		return 0, err
	}
	c, err := k.app.Accept()
	if err != nil {
		return 0, err
	}
	defer c.Close()
	b := make([]byte, 1)
	_, err = c.Read(b)
	return b[0], err
}
