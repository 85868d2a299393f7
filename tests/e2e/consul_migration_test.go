// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	consulapi "github.com/hashicorp/consul/api"

	"github.com/meshproxy/meshproxy/tests/peers/consul"
)

// requests are made one after the other by several workers, on new connections
// or on connections that are kept for a while.
type requests struct {
	name   string
	dial   func() (net.Conn, error)
	kept   bool
	served atomic.Int64

	mu     sync.Mutex
	failed []string
}

// How many requests are made on a connection that is kept, and how often.
const (
	keptFor   = 40
	keptPause = 50 * time.Millisecond
)

func (g *requests) run(ctx context.Context) {
	for ctx.Err() == nil {
		if err := g.connection(ctx); err != nil {
			g.mu.Lock()
			g.failed = append(g.failed, fmt.Sprintf("request %d: %v", g.served.Load(), err))
			g.mu.Unlock()
		}
	}
}

// connection makes the requests of one connection.
func (g *requests) connection(ctx context.Context) error {
	c, err := g.dial()
	if err != nil {
		return err
	}
	defer c.Close()
	in := bufio.NewReader(c)
	if !g.kept {
		return g.request(c, in)
	}
	pace := time.NewTicker(keptPause)
	defer pace.Stop()
	for i := range keptFor {
		if err := g.request(c, in); err != nil {
			return fmt.Errorf("number %d of its connection: %w", i, err)
		}
		select {
		case <-pace.C:
		case <-ctx.Done():
			return nil
		}
	}
	return nil
}

func (g *requests) request(c net.Conn, in *bufio.Reader) error {
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if _, err := fmt.Fprintln(c, "hello"); err != nil {
		return err
	}
	line, err := in.ReadString('\n')
	if err != nil {
		return err
	}
	if !strings.Contains(line, `"body":"hello"`) {
		return fmt.Errorf("answered %q", line)
	}
	g.served.Add(1)
	return nil
}

// failures are the first few.
func (g *requests) failures() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.failed[:min(len(g.failed), 5)]
}

// TestMigration follows docs/consul.md: on a there are two services with an Envoy
// each, under load in both directions, and at the end none.
func TestMigration(t *testing.T) {
	l := newConsulLab(t)
	a, b := l.net.Host("a"), l.net.Host("b")
	l.serve(a, "web", "-name", "web", "-tcp", "127.0.0.1:7001")
	l.serve(a, "api", "-name", "api", "-tcp", "127.0.0.1:7002")
	l.serve(b, "legacy", "-name", "legacy", "-tcp", "10.77.0.2:8001")
	sidecars := map[string]*consul.Sidecar{
		"web": l.behindEnvoy("web", 7001, 21000, upstream("legacy", 9391)),
		"api": l.behindEnvoy("api", 7002, 21001),
	}
	l.sidecar("b", "legacy", 8001, 21000, upstream("web", 9191), upstream("api", 9193))

	web := l.opener(a, "web")
	var loads []*requests
	for name, dial := range map[string]func() (net.Conn, error){
		"legacy to web": l.dialer("b", 9191),
		"legacy to api": l.dialer("b", 9193),
		"web to legacy": func() (net.Conn, error) { return web.Dial("127.0.0.1:9391") },
	} {
		loads = append(loads, &requests{name: name, dial: dial}, &requests{name: name + ", kept", dial: dial, kept: true})
	}
	ctx, stop := context.WithCancel(context.Background())
	var running sync.WaitGroup
	defer running.Wait()
	defer stop()
	for _, g := range loads {
		once := (&requests{dial: g.dial}).connection
		l.eventually(g.name, func() error { return once(ctx) })
		for range 2 {
			running.Go(func() { g.run(ctx) })
		}
	}
	l.more(loads, 20)

	// meshproxy is installed. It finds the services by who listens on their
	// ports; the upstreams move to its configuration, since they go with the
	// sidecar's registration.
	l.node("a", `
      - name: web
        upstreams: [{listen: "127.0.0.1:9391", service: legacy}]`)
	for _, service := range []string{"web", "api"} {
		l.eventually("connections to "+service+" by way of meshproxy", func() error { return l.through("a", service) })
	}
	l.more(loads, 20)
	l.check(loads)

	// The sidecars leave Consul, their last connections end, then they do.
	for service, sidecar := range sidecars {
		l.agents["a"].Deregister(l, service+"-sidecar-proxy")
		l.eventually("the last connection of "+service+"'s Envoy", func() error {
			n, err := sidecar.Counters(l.ctx())
			if err != nil {
				return err
			}
			if active, total := n["listener.0.0.0.0_"+publicPort[service]+".downstream_cx_active"], n["cluster.local_app.upstream_cx_active"]; active+total > 0 {
				return fmt.Errorf("%d connections", active+total)
			}
			return nil
		})
	}
	l.more(loads, 20)
	for _, sidecar := range sidecars {
		must(t, sidecar.Stop())
	}
	l.more(loads, 50)
	stop()
	running.Wait()
	l.check(loads)
	for _, g := range loads {
		t.Logf("%s: %d requests", g.name, g.served.Load())
	}
	l.eventually("Consul knows one way to web", func() error {
		rows, _, err := l.server.Client().Health().Connect("web", "", true, (&consulapi.QueryOptions{}).WithContext(l.ctx()))
		if err == nil && (len(rows) != 1 || rows[0].Service.Port != 20000) {
			err = fmt.Errorf("it knows %d", len(rows))
		}
		return err
	})
}

var publicPort = map[string]string{"web": "21000", "api": "21001"}

// behindEnvoy registers a service of a, bound to loopback, as its users do:
// with a sidecar, for which it starts an Envoy.
func (l *consulLab) behindEnvoy(service string, port, public int, upstreams ...consulapi.Upstream) *consul.Sidecar {
	l.Helper()
	l.agents["a"].Register(l, &consulapi.AgentServiceRegistration{
		Name: service, Port: port,
		Connect: &consulapi.AgentServiceConnect{SidecarService: &consulapi.AgentServiceRegistration{
			Port: public, Proxy: &consulapi.AgentServiceConnectProxyConfig{Upstreams: upstreams},
		}},
	})
	return l.agents["a"].StartEnvoy(l, service, "")
}

// more waits until each load has made so many requests more.
func (l *consulLab) more(loads []*requests, n int64) {
	l.Helper()
	for _, g := range loads {
		from := g.served.Load()
		l.eventually(g.name, func() error {
			if done := g.served.Load() - from; done < n {
				return fmt.Errorf("%d requests of %d, %v", done, n, g.failures())
			}
			return nil
		})
	}
}

// check expects that no request has failed.
func (l *consulLab) check(loads []*requests) {
	l.Helper()
	for _, g := range loads {
		if f := g.failures(); len(f) > 0 {
			l.Errorf("%s: %v", g.name, f)
		}
	}
}

var errNone = errors.New("none yet")

// through reports whether the node has carried connections to a service.
func (l *consulLab) through(host, service string) error {
	_, text, err := l.get(l.net.Host(host), "http://127.0.0.1:15020/metrics")
	if err != nil {
		return err
	}
	for line := range strings.Lines(text) {
		if strings.Contains(line, `path="mtls"`) && strings.Contains(line, `destination="`+service+`"`) && strings.Contains(line, `direction="inbound"`) {
			return nil
		}
	}
	return errNone
}
