// SPDX-License-Identifier: Apache-2.0

package consul_test

import (
	"context"
	"log/slog"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
	"go.uber.org/goleak"

	"github.com/meshproxy/meshproxy/discovery"
	"github.com/meshproxy/meshproxy/discovery/consul"
	"github.com/meshproxy/meshproxy/discovery/consulagent"
	"github.com/meshproxy/meshproxy/discovery/mesh"
	peer "github.com/meshproxy/meshproxy/tests/peers/consul"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// within is how long a test waits for what must come. A check that changes
// while an agent that has little processor time syncs it is lost to the
// catalog (seen with 1.22) until the agent compares all, every one to two
// minutes (agent/ae). A question waits for less than that.
const within = 3 * time.Minute

// following is a source that runs, and what it said last.
type following struct {
	t      *testing.T
	source *consul.Source
	// always is what every view must be like once it was so.
	always  func(discovery.Update) bool
	mu      sync.Mutex
	last    discovery.Update // without an error
	err     error            // of the last update
	changed chan struct{}
}

func optionsFor(t *testing.T, s *peer.Server, token string) consul.Options {
	t.Helper()
	agent, err := consulagent.New(consulagent.Settings{Address: s.HTTPAddr.String(), Token: token}, consul.MaxConnections)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(agent.Close)
	return consul.Options{
		Agent: agent, Register: true, HBONEPort: 15008,
		Node:     mesh.Node{Name: "n1", Address: netip.MustParseAddr("127.0.0.1")},
		Workload: mesh.Workload{Inbound: mesh.InboundStrict, Egress: mesh.EgressPassthrough},
		Logger:   slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
}

// start runs a source until the test ends.
func start(t *testing.T, o consul.Options) *following {
	t.Helper()
	f := &following{t: t, source: consul.New(o), changed: make(chan struct{}, 1)}
	ctx, cancel := context.WithCancel(context.Background())
	updates := make(chan discovery.Update)
	var tasks sync.WaitGroup
	tasks.Go(func() {
		if err := f.source.Run(ctx, updates); err != nil {
			t.Errorf("run: %v", err)
		}
	})
	tasks.Go(func() {
		for {
			select {
			case u := <-updates:
				f.take(u)
			case <-ctx.Done():
				return
			}
		}
	})
	t.Cleanup(func() {
		cancel()
		tasks.Wait()
		o.Agent.Close()
	})
	return f
}

func (f *following) take(u discovery.Update) {
	f.mu.Lock()
	f.err = u.Err
	if u.Err == nil {
		f.err = u.Stale
		if f.always != nil && f.always(f.last) && !f.always(u) {
			f.t.Errorf("a view that is less than the one before: %s", describe(u))
		}
		f.last = u
	}
	f.mu.Unlock()
	select {
	case f.changed <- struct{}{}:
	default:
	}
}

func (f *following) now() (discovery.Update, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.last, f.err
}

// lookAgain is how often until asks without another view.
const lookAgain = 100 * time.Millisecond

// until waits for the view to be as it should, and the agent: what a condition
// asks it may become true without a change of the view.
func (f *following) until(what string, ok func(u discovery.Update, err error) bool) discovery.Update {
	f.t.Helper()
	deadline := time.After(within)
	again := time.NewTicker(lookAgain)
	defer again.Stop()
	for {
		u, err := f.now()
		if ok(u, err) {
			return u
		}
		select {
		case <-f.changed:
		case <-again.C:
		case <-deadline:
			f.t.Fatalf("waiting for %s: error %v; warnings %q; %s", what, err, u.Warnings, describe(u))
		}
	}
}

// stays has every view from now on checked.
func (f *following) stays(always func(discovery.Update) bool) {
	f.mu.Lock()
	f.always = always
	f.mu.Unlock()
}

func describe(u discovery.Update) (text string) {
	for _, s := range u.Services {
		text += "\nservice " + s.String()
		for _, e := range s.Endpoints {
			text += " " + e.Address.String() + "/" + e.Health.String() + "/" + e.Tunnel.String()
		}
	}
	for _, w := range u.Workloads {
		text += "\nworkload " + w.String() + " " + w.Identity.String()
	}
	return text
}

func service(u discovery.Update, name string) *mesh.Service {
	for _, s := range u.Services {
		if s.String() == name {
			return s
		}
	}
	return nil
}

func policy(u discovery.Update, name string) *mesh.Policy {
	for _, p := range u.Policies {
		if p.Name.Name == name {
			return p
		}
	}
	return nil
}

func workload(u discovery.Update, name string) *mesh.Workload {
	for _, w := range u.Workloads {
		if w.String() == name {
			return w
		}
	}
	return nil
}

// register puts an instance with a passing sidecar into the catalog, on a node
// that has no agent.
func register(t *testing.T, s *peer.Server, node, address, name string, port int, meta map[string]string) {
	t.Helper()
	for _, r := range []*api.CatalogRegistration{
		{Node: node, Address: address, Service: &api.AgentService{ID: name, Service: name, Port: port, Meta: meta}},
		{
			Node: node, Address: address,
			Service: &api.AgentService{
				Kind: api.ServiceKindConnectProxy, ID: name + "-sidecar-proxy", Service: name + "-sidecar-proxy", Port: port + 10000, Meta: meta,
				Proxy: &api.AgentServiceConnectProxyConfig{DestinationServiceName: name, DestinationServiceID: name, LocalServicePort: port},
			},
			Checks: api.HealthChecks{{Node: node, CheckID: name, Name: name, Status: api.HealthPassing, ServiceID: name + "-sidecar-proxy"}},
		},
	} {
		if _, err := s.Client().Catalog().Register(r, nil); err != nil {
			t.Fatal(err)
		}
	}
}

// status sets the state of a check that register made.
func status(t *testing.T, s *peer.Server, node, address, name, state string) {
	t.Helper()
	_, err := s.Client().Catalog().Register(&api.CatalogRegistration{
		Node: node, Address: address, SkipNodeUpdate: true,
		Check: &api.AgentCheck{Node: node, CheckID: name, Name: name, Status: state, ServiceID: name + "-sidecar-proxy"},
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
}
