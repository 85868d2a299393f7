// SPDX-License-Identifier: Apache-2.0

package demo

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.uber.org/goleak"

	"github.com/meshproxy/meshproxy/discovery/mesh"
	"github.com/meshproxy/meshproxy/discovery/static"
	"github.com/meshproxy/meshproxy/nodeproxy/admin/api"
	"github.com/meshproxy/meshproxy/nodeproxy/telemetry/reason"
	"github.com/meshproxy/meshproxy/tests/meshnode"
	"github.com/meshproxy/meshproxy/tests/workload"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == commandName && os.Args[2] == "hold-lock" {
		holdLock()
		return
	}
	if len(os.Args) > 1 && os.Args[1] == commandName {
		if err := Run(context.Background(), os.Args[2:], os.Stdout, os.Stderr); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if len(os.Args) > 1 && os.Args[1] == "run" { // a node, as Run starts them
		fmt.Fprintln(os.Stderr, "this is no node")
		os.Exit(3)
	}
	goleak.VerifyTestMain(m)
}

func newTestStage(t *testing.T) *stage {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	s, err := newStage(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// TestWithoutMesh plays all calls by address, as the demo does for comparison.
func TestWithoutMesh(t *testing.T) {
	s := newTestStage(t)
	if err := s.callBefore(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.wire.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s.wire.Contains(s.before) == 0 || s.wire.Contains(s.meshed) != 0 {
		t.Errorf("markers on the wire: %d before, %d meshed", s.wire.Contains(s.before), s.wire.Contains(s.meshed))
	}
}

// TestMeshFile reads the mesh as the nodes do.
func TestMeshFile(t *testing.T) {
	s := newTestStage(t)
	text, err := s.meshFile()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "mesh.yaml")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, h := range s.topology.Hosts() {
		checkMesh(t, path, h.Name())
	}
	for _, want := range []string{
		"{node: b, address: 10.77.2.11, port: 9090}",
		"/a/mesh/api}, {cgroup: ",
		"from: [{identity: " + meshnode.Identity("web") + "}]",
	} {
		if !strings.Contains(string(text), want) {
			t.Errorf("mesh lacks %q:\n%s", want, text)
		}
	}
}

func checkMesh(t *testing.T, path, node string) {
	t.Helper()
	domain, err := spiffeid.TrustDomainFromString(meshnode.TrustDomain)
	if err != nil {
		t.Fatal(err)
	}
	update, err := static.Load(static.Options{
		Files: []static.File{{Path: path}}, Node: mesh.Node{Name: node, TrustDomain: domain}, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatalf("node %s: %v", node, err)
	}
	if len(update.Services) != len(services) || len(update.Policies) != 1 {
		t.Errorf("node %s has %d services, %d policies", node, len(update.Services), len(update.Policies))
	}
	want := map[string]int{hostA: 3, hostB: 3}[node]
	if len(update.Workloads) != want {
		t.Errorf("node %s has %d workloads, want %d", node, len(update.Workloads), want)
	}
}

// good is traffic as a mesh makes it.
func good(s *stage, c *call) *traffic {
	tr := newTraffic(nil)
	if c.want == denied {
		tr.add(workload.Stats{Seconds: 1, Errors: 2, Error: "ECONNRESET"})
		return tr
	}
	client := s.ipOf(c.place).String() + ":40000"
	for _, name := range c.to {
		stats := workload.Stats{
			Seconds: 1, Requests: 10, P50: 100, P99: 900, Servers: map[string]int{name: 10},
			Seen: &workload.Seen{Server: name, Peers: workload.Peers{Accepted: client, Peer: client}},
		}
		if c.server != nil {
			stats.Peer = s.addrOf(*c.server).String()
		}
		tr.add(stats)
	}
	return tr
}

// goodSightings are what nodes say when all is well.
func goodSightings() *observer {
	o := newObserver()
	o.pass(hostA, 1)
	for i := range calls {
		c := &calls[i]
		if c.service == "" {
			continue
		}
		if c.want == denied {
			o.add(nodeOf(c.place), api.Connection{Direction: "outbound", Source: c.workload, Service: c.service},
				api.ConnectionEvent{Event: api.EventRefused, Reason: reason.PeerDenied})
			continue
		}
		for path := range strings.SplitSeq(c.path, "+") {
			o.add(nodeOf(c.place), api.Connection{
				Direction: "outbound", Source: c.workload, Service: c.service, Path: path,
				SourceIdentity: meshnode.Identity(c.workload), DestinationIdentity: meshnode.Identity(c.service),
			}, api.ConnectionEvent{})
		}
	}
	return o
}

func TestVerdict(t *testing.T) {
	s := newTestStage(t)
	// The wire is real, and nothing was on it.
	const fromWire = 3 // both controls and the tunnels
	judge := func(spoil func([]*traffic, *observer)) verdict {
		var all []*traffic
		for i := range calls {
			all = append(all, good(s, &calls[i]))
		}
		o := goodSightings()
		spoil(all, o)
		return s.judge(all, o)
	}
	failing := func(v verdict) string {
		var b bytes.Buffer
		v.write(&b)
		return b.String()
	}
	if v := judge(func([]*traffic, *observer) {}); v.failures() != fromWire {
		t.Fatalf("%d failures, want %d:\n%s", v.failures(), fromWire, failing(v))
	}
	for _, tc := range []struct {
		name  string
		spoil func([]*traffic, *observer)
		want  string
	}{
		{"an error", func(all []*traffic, _ *observer) { all[0].add(workload.Stats{Errors: 3, Error: "EOF"}) }, "3 errors EOF"},
		{"another server answers", func(all []*traffic, _ *observer) { all[2].servers["db"] = 1 }, "FAIL  web@a calls cache"},
		{"one endpoint never answers", func(all []*traffic, _ *observer) { delete(all[0].servers, "api-b") }, "and when that is gone api-b"},
		{"wrong client address", func(all []*traffic, _ *observer) {
			p := workload.Peers{Accepted: "127.0.0.1:1", Peer: "127.0.0.1:1"}
			all[4].add(workload.Stats{Seen: &workload.Seen{Peers: p}})
		}, "seen at 10.77.0.1, 127.0.0.1"},
		{"accept and getpeername disagree", func(all []*traffic, _ *observer) {
			p := workload.Peers{Accepted: "10.77.0.1:1", Peer: "127.0.0.1:1"}
			all[4].add(workload.Stats{Seen: &workload.Seen{Peers: p}})
		}, "agree: false"},
		{"another path", func(_ []*traffic, o *observer) {
			o.add(hostA, api.Connection{Direction: "outbound", Source: "api", Service: "db", Path: "plaintext"}, api.ConnectionEvent{})
		}, `the node says "hbone+plaintext"`},
		{"another identity", func(_ []*traffic, o *observer) {
			o.add(hostA, api.Connection{Direction: "outbound", Source: "api", Service: "db", SourceIdentity: "spiffe://x/y"}, api.ConnectionEvent{})
		}, "own identities"},
		{"the forbidden pair gets through", func(all []*traffic, _ *observer) { all[8].requests = 1 }, "is refused by db"},
		{"nothing was passed through", func(_ []*traffic, o *observer) { o.pass(hostA, 0) }, "is passed through"},
		{"refused for another reason", func(_ []*traffic, o *observer) {
			clear(o.seen[pair(hostA, "web", "db")].ended)
		}, "is refused by db"},
		{"a stranger gets in", func(all []*traffic, _ *observer) { all[11].requests = 1 }, "is refused by api-b"},
		{"a stranger is touched", func(all []*traffic, _ *observer) { all[10].peer = "127.0.0.1:15001" }, "peer 127.0.0.1:15001"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			v := judge(tc.spoil)
			if v.failures() != fromWire+1 || !strings.Contains(failing(v), tc.want) {
				t.Errorf("%d failures, want %d, one with %q:\n%s", v.failures(), fromWire+1, tc.want, failing(v))
			}
		})
	}
}

func TestView(t *testing.T) {
	s := newTestStage(t)
	var all []*traffic
	for i := range calls {
		all = append(all, good(s, &calls[i]))
	}
	var b bytes.Buffer
	newView(&b).refresh("Title.", all, goodSightings())
	for _, want := range []string{"Title.", "web@a", "hbone", "direct", "passthrough", "denied", "untouched", "spiffe://…/web → cache", "900µs", "api (api-a 10, api-b 10)"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("view lacks %q:\n%s", want, b.String())
		}
	}
	t.Log("\n" + b.String())
}

func TestRunCleansUp(t *testing.T) {
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	for _, tc := range []struct {
		name string
		ctx  context.Context
		want string
	}{
		{"after a failure", t.Context(), "this is no node"},
		{"after Ctrl-C", cancelled, "context canceled"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var out bytes.Buffer
			err := Run(tc.ctx, []string{"-duration", "1s"}, &out, &out)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want one with %q", err, tc.want)
			}
			left, err := filepath.Glob(fmt.Sprintf("/run/meshproxy-testnet/%d-*", os.Getpid()))
			if err != nil || len(left) > 0 {
				t.Errorf("left behind: %v, %v", left, err)
			}
		})
	}
}

func TestRunRefusesWrongFlags(t *testing.T) {
	var out bytes.Buffer
	if err := Run(t.Context(), []string{"-nonsense"}, &out, &out); err == nil {
		t.Error("no error")
	}
	if err := Run(t.Context(), []string{"-help"}, &out, &out); err != nil || !strings.Contains(out.String(), "-keep") {
		t.Errorf("help: %v, %q", err, out.String())
	}
}
