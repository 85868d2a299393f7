// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"testing"
	"time"

	consulapi "github.com/hashicorp/consul/api"

	"github.com/meshproxy/meshproxy/nodeproxy/admin/api"
	"github.com/meshproxy/meshproxy/tests/meshnode"
	"github.com/meshproxy/meshproxy/tests/peers/consul"
	"github.com/meshproxy/meshproxy/tests/testnet"
)

// rotatingLeaves begin a minute before they are issued: they can be used for a
// minute and a half. Agents renew those that live for less than ten minutes over
// and over (agent/leafcert, calculateSoftExpiry).
const rotatingLeaves = 150 * time.Second

// TestConsulRotation: between two nodes, of two services each, every connection is a mutual TLS
// connection of its own. The CA gets new roots, leaves are renewed, and those that
// the open connections were made with expire; neither a connection that is made
// meanwhile nor one that is open fails.
func TestConsulRotation(t *testing.T) {
	t.Parallel()
	l := newConsulLab(t)
	l.server.ShortLeaves(t, rotatingLeaves)
	l.fronted("a", fronted{"web", 7001, "api"}, fronted{"shop", 7003, "stock"})
	l.fronted("b", fronted{"api", 7002, "web"}, fronted{"stock", 7004, "shop"})
	load := &load{lab: l.lab, calls: map[string]*testnet.Process{}}
	for host, services := range map[string][]string{"a": {"web", "shop"}, "b": {"api", "stock"}} {
		for _, service := range services {
			l.linesOf(load, host, service, 9001)
		}
	}
	for host := range l.nodes {
		for path, some := range map[string]bool{"mtls": true, "hbone": false} {
			list, err := l.nodes[host].Admin.Connections(l.ctx(), api.ConnectionFilter{Path: path})
			must(t, err)
			if (len(list.Connections) > 0) != some {
				t.Errorf("%d connections of %s take %s", len(list.Connections), host, path)
			}
		}
	}
	last := l.lastLeaf()
	since := l.rotateUnder(load, nil)
	l.eventually("the first leaves are over", func() error {
		if left := time.Until(last.Add(time.Second)); left > 0 {
			return fmt.Errorf("they are valid for %v", left)
		}
		return nil
	})
	load.end(since)
}

// TestConsulRotationWithEnvoy has an Envoy sidecar at the other end, and leaves that
// live for long: with others its clusters would change all the time, while Consul
// keeps back the listeners until they don't, so that on a busy machine these show
// leaves that are over, and don't know the roots that are in force.
func TestConsulRotationWithEnvoy(t *testing.T) {
	t.Parallel()
	l := newConsulLab(t)
	l.fronted("a", fronted{"web", 7001, "legacy"})
	b := l.net.Host("b")
	l.serve(b, "legacy", "-name", "legacy", "-tcp", "10.77.0.2:8001")
	l.server.Write(l, &consulapi.ServiceResolverConfigEntry{Kind: consulapi.ServiceResolver, Name: "web", ConnectTimeout: restartTime})
	envoy := l.sidecar("b", "legacy", 8001, envoyPublic, upstream("web", 9001))
	load := &load{lab: l.lab, calls: map[string]*testnet.Process{}}
	l.linesOf(load, "a", "web", 9001)
	l.linesOf(load, "b", "legacy", 9001)
	load.end(l.rotateUnder(load, envoy))
}

// fronted is a service of a host with an upstream at 127.0.0.1:9001.
type fronted struct {
	service  string
	port     int
	upstream string
}

// fronted starts services of a host, and a node whose rows don't say that it takes
// hbone.
func (l *consulLab) fronted(host string, services ...fronted) {
	l.Helper()
	h := l.net.Host(host)
	extra := "sources:\n  consul:\n    enabled: true\n    register: false\n    services:\n"
	for _, s := range services {
		l.register(host, s.service, s.port)
		l.front(host, s.service, s.port, nil)
		// A machine that stands still for seconds isn't what is tested.
		l.server.Write(l, &consulapi.ServiceResolverConfigEntry{Kind: consulapi.ServiceResolver, Name: s.upstream, ConnectTimeout: restartTime})
		l.serve(h, s.service, "-name", s.service, "-tcp", fmt.Sprintf("%s:%d", h.Addr4(), s.port))
		extra += fmt.Sprintf("      - {name: %s, match: [{cgroup: %q}], upstreams: [{listen: \"127.0.0.1:9001\", service: %s}]}\n",
			s.service, l.Cgroup(host, s.service), s.upstream)
	}
	l.startAs(host, meshnode.Options{
		NoTrustDomain: true, NoMeshFile: true, ProxyTimeout: restartTime,
		// For longer than the test takes, open connections outlive their leaves.
		Identity: "identity: {provider: consul, expiredGrace: 1h}\n",
		Extra:    extra,
	})
}

// linesOf makes new connections all the time, uses some, and leaves others alone.
func (l *consulLab) linesOf(load *load, host, service string, port uint16) {
	l.Helper()
	h, at := l.net.Host(host), l.loopback(port).String()
	l.eventually("a first connection of "+service, func() error {
		if d := l.dial(h, service, "-address", at, "-send", "hello"); !d.OK {
			return fmt.Errorf("%s at %s", d.Error, d.Stage)
		}
		return nil
	})
	load.calls["new of "+service] = l.call(h, service, "-tcp", at, "-fresh", "-rate", "10", "-workers", "2", "-timeout", restartTime.String())
	load.calls["used of "+service] = l.call(h, service, "-tcp", at, "-rate", "10", "-workers", "4", "-timeout", restartTime.String())
	load.held = append(load.held, l.hold(h, service, at, 10))
}

// rotateUnder changes the CA's root twice, the second time when all have heard of the
// first, and returns where the load was at the beginning.
func (l *consulLab) rotateUnder(load *load, envoy *consul.Sidecar) map[string]int {
	l.Helper()
	load.goOn()
	since := load.marks()
	for roots := 2; roots <= 3; roots++ {
		before, listeners := l.serials("a"), l.listenerUpdates(envoy)
		l.server.RotateCA(l)
		l.rotated(before, roots)
		l.eventually("Envoy's listeners to change", func() error {
			if n := l.listenerUpdates(envoy); envoy != nil && n == listeners {
				return fmt.Errorf("%d updates as before", n)
			}
			return nil
		})
		load.goOn()
	}
	return since
}

// listenerUpdates is how often an Envoy has taken other listeners.
func (l *consulLab) listenerUpdates(envoy *consul.Sidecar) uint64 {
	l.Helper()
	if envoy == nil {
		return 0
	}
	counters, err := envoy.Counters(l.ctx())
	must(l.T, err)
	return counters["listener_manager.lds.update_success"]
}

// end has the load go on, and ends it; nothing may have failed.
func (l *load) end(since map[string]int) {
	l.Helper()
	l.goOn()
	l.unharmed(since, patientWait)
	for _, p := range l.held {
		must(l.T, p.Kill())
	}
}

// lastLeaf is when the last of the nodes' leaves expires.
func (l *consulLab) lastLeaf() (last time.Time) {
	l.Helper()
	for _, n := range l.nodes {
		ca, err := n.Admin.CA(l.ctx())
		must(l.T, err)
		for _, leaf := range ca.Leaves {
			if leaf.NotAfter.After(last) {
				last = leaf.NotAfter
			}
		}
	}
	if last.IsZero() {
		l.Fatal("there are no leaves")
	}
	return last
}
