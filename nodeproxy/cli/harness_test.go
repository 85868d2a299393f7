// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"context"
	"flag"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/meshproxy/meshproxy/nodeproxy/admin"
	"github.com/meshproxy/meshproxy/nodeproxy/admin/api"
	"github.com/meshproxy/meshproxy/nodeproxy/telemetry"
	"github.com/meshproxy/meshproxy/nodeproxy/telemetry/reason"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// noon is when all tests take place.
var noon = time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)

type fixedClock struct{}

func (fixedClock) Now() time.Time                       { return noon }
func (fixedClock) After(time.Duration) <-chan time.Time { return nil }

// outcome is what a command did.
type outcome struct {
	code           int
	stdout, stderr string
}

// command runs a command in surroundings that a test may change first.
func command(t *testing.T, change func(*Surroundings), args ...string) outcome {
	t.Helper()
	var stdout, stderr bytes.Buffer
	s := Surroundings{
		Args: args, Stdin: strings.NewReader(""), Stdout: &stdout, Stderr: &stderr, Clock: fixedClock{},
		// No test may depend on the machine's own configuration.
		Env: []string{"MESHPROXY_CONFIG=" + write(t, "node.yaml", "node: {name: a}\n")},
	}
	if change != nil {
		change(&s)
	}
	code := Main(t.Context(), s)
	return outcome{code, stdout.String(), stderr.String()}
}

func write(t *testing.T, name, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// golden compares with a file of testdata.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got; -update rewrites it):\n%s", path, diff)
	}
}

// expect checks the exit code and that what was said contains all of the
// texts.
func (o outcome) expect(t *testing.T, code int, texts ...string) {
	t.Helper()
	if o.code != code {
		t.Errorf("exit code %d, want %d", o.code, code)
	}
	for _, text := range texts {
		if !strings.Contains(o.stdout+o.stderr, text) {
			t.Errorf("no %q in:\n%s%s", text, o.stdout, o.stderr)
		}
	}
	if t.Failed() {
		t.Logf("stdout:\n%s\nstderr:\n%s", o.stdout, o.stderr)
	}
}

// fakeNode is a node that always says the same.
type fakeNode struct {
	status  api.Status
	bypass  []api.Bypass
	metrics *telemetry.Metrics
	level   slog.LevelVar
	socket  string
}

var _ admin.Node = (*fakeNode)(nil)

// startNode serves a fake node's admin socket.
func startNode(t *testing.T) *fakeNode {
	t.Helper()
	n := &fakeNode{
		status: healthy(), metrics: telemetry.New(telemetry.Options{Now: fixedClock{}.Now}),
		socket: filepath.Join(t.TempDir(), "admin.sock"),
	}
	s, err := admin.Start(admin.Options{
		Socket: n.socket, Node: n, Metrics: n.metrics, Level: &n.level, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return n
}

// ask runs a command that asks the node.
func (n *fakeNode) ask(t *testing.T, args ...string) outcome {
	t.Helper()
	return command(t, nil, append([]string{"--socket", n.socket}, args...)...)
}

func healthy() api.Status {
	return api.Status{
		Node: "a", Address: "192.0.2.1", TrustDomain: "mesh.internal", Version: "v0.1.0", PID: 42,
		Started: noon.Add(-3*time.Hour - 12*time.Minute), State: api.StateReady,
		Config:   api.ConfigStatus{File: "/etc/meshproxy/meshproxy.yaml", LoadedAt: noon.Add(-3 * time.Hour)},
		Snapshot: api.Snapshot{Version: 12, Built: noon.Add(-5 * time.Second), Services: 2, Endpoints: 3, Policies: 1},
		Sources:  []api.Source{{Name: "static", Ready: true}},
		Capture: api.Capture{
			Attached: true, CgroupRoot: "/sys/fs/cgroup", Captured: 120, Passthrough: 33, Refused: 2, Flows: 1,
			Splice: api.Splice{On: true, Opened: 9, Spliced: 8, Sent: 700, Received: 300, Redirected: 950},
		},
		Identity:  api.Identity{Provider: "embedded", Leaves: 1, NextExpiry: noon.Add(12 * time.Hour)},
		Workloads: api.WorkloadCount{Configured: 4, Running: 3, Bypassed: 1},
		Traffic:   api.Traffic{Active: 12, Opened: 345, Sent: 1536, Received: 3 << 30},
		Listeners: []api.Listener{
			{Name: "outbound", Address: "127.0.0.1:15001"},
			{Name: "outbound", Address: "127.0.0.1:15001", NetNS: "/run/netns/box"},
		},
		Loops:    []api.Loop{{Loop: 0, Descriptors: 34, Turns: 1234567, Lag: 1200 * time.Microsecond}},
		Peers:    []api.Peer{{Address: "192.0.2.2:15008", Transport: "hbone", Role: "client", Connections: 2, Streams: 11}},
		Refusals: []api.Refusal{{Direction: "inbound", Reason: reason.PlaintextRefused, Count: 7}},
	}
}

func (n *fakeNode) Ready() error       { return nil }
func (n *fakeNode) Unserved() []string { return nil }
func (n *fakeNode) Live() error        { return nil }

func (n *fakeNode) Status(context.Context) (api.Status, error) { return n.status, nil }

func (n *fakeNode) Services(context.Context) ([]api.Service, error) {
	return []api.Service{
		{
			Name: "web", Source: "static", VirtualIPs: []string{"240.240.0.1", "2001:2::1"}, Balance: "least_request",
			Ports: []api.Port{{Port: 80, Protocol: "http"}, {Port: 81, Protocol: "tcp"}},
			Endpoints: []api.Endpoint{
				{Address: "192.0.2.1", Ports: []uint16{8080, 8081}, Node: "a", Local: true, Transport: "hbone", Identity: "spiffe://mesh.internal/ns/default/sa/web", Health: api.HealthHealthy, Active: 3},
				{Address: "2001:db8::2", Ports: []uint16{8080, 8081}, Node: "b", Transport: "hbone", Identity: "spiffe://mesh.internal/ns/default/sa/web", Health: api.HealthUnhealthy, HealthDetail: "GET /healthz: 503"},
			},
		},
		{Name: "team/db", Source: "consul", Ports: []api.Port{{Port: 5432, Protocol: "tcp"}}, Balance: "random"},
	}, nil
}

func (n *fakeNode) Workloads(context.Context) ([]api.Workload, error) {
	return []api.Workload{
		{
			Name: "shop", Source: "static", Identity: "spiffe://mesh.internal/ns/default/sa/shop", Match: []string{"unit shop.service"},
			Cgroups: []string{"/system.slice/shop.service"}, Inbound: "strict", InboundLocal: "allow", Egress: "passthrough", OnProxyDown: "refuse",
			Upstreams: []api.Upstream{{Listen: "127.0.0.1:9191", Service: "web", Port: 80}}, Ports: []uint16{8080, 9100},
			LeafExpires: noon.Add(18 * time.Hour), Active: 4, MaxConnections: 16384, Refused: 2,
		},
		{Name: "web", Source: "static", Identity: "spiffe://mesh.internal/ns/default/sa/web", Inbound: "permissive", Egress: "registered-only", LeafError: "no leaf", MaxConnections: 100},
		{Name: "cron", Source: "static", Identity: "spiffe://mesh.internal/ns/default/sa/cron", Bypass: true, BypassCause: "command", Inbound: "off", Egress: "passthrough", LeafExpires: noon.Add(-time.Minute), MaxConnections: 100},
	}, nil
}

func (n *fakeNode) ExplainPolicy(_ context.Context, q api.PolicyQuery) (api.PolicyExplanation, error) {
	e := api.PolicyExplanation{
		Query: q, Identity: "spiffe://mesh.internal/ns/default/sa/" + q.From, Workload: "web", Services: []string{"web"}, Port: 8080,
		Steps: []api.PolicyStep{
			{Policy: "no-partners", Action: "deny", Audit: true, Outcome: "no_match", Why: "trust domain partner.example does not match"},
			{Policy: "shop-to-web", Action: "allow", Outcome: "match", Why: "identity matches"},
		},
	}
	if e.Allowed = q.From == "shop"; e.Allowed {
		e.Policy, e.Conclusion = "shop-to-web", "allowed: no deny policy matches, an allow policy does (shop-to-web)"
	} else {
		e.Steps[1].Outcome, e.Conclusion = "no_match", "denied: allow policies select this destination and none matches"
		e.Note = "web has an endpoint on node b, whose policies decide there."
	}
	return e, nil
}

func (n *fakeNode) Config(context.Context) (api.Config, error) {
	return api.Config{File: "/etc/x.yaml", LoadedAt: noon.Add(-time.Minute), Settings: []api.Setting{
		{Key: "node.name", Value: "a", Origin: "/etc/x.yaml:3"}, {Key: "dns.upstreams", Value: []string{"1.1.1.1", "8.8.8.8"}, Origin: "default"},
	}}, nil
}

func (n *fakeNode) CA(context.Context) (api.CA, error) {
	return api.CA{
		Provider: "embedded",
		Roots: []api.Root{
			{TrustDomain: "mesh.internal", Fingerprint: "0123456789abcdef0123", Subject: "CN=one", NotAfter: noon.Add(24 * time.Hour), State: "retiring", TrustedUntil: noon.Add(3 * time.Hour)},
			{TrustDomain: "mesh.internal", Fingerprint: "fedcba9876543210fedc", Subject: "CN=two", NotAfter: noon.Add(100 * 24 * time.Hour), State: "signing"},
		},
		Leaves:   []api.Leaf{{Identity: "spiffe://mesh.internal/ns/default/sa/shop", Workload: "shop", Serial: "a1", Issuer: "CN=two", NotAfter: noon.Add(20 * time.Minute)}},
		Problems: []string{"something is odd"},
	}, nil
}

func (n *fakeNode) SetBypass(_ context.Context, b api.Bypass) error {
	if b.Workload != "shop" {
		return &api.Error{Kind: api.KindNotFound, Message: `no workload "` + b.Workload + `"`}
	}
	n.bypass = append(n.bypass, b)
	return nil
}

func (n *fakeNode) SetSplice(_ context.Context, s api.SpliceControl) (api.Splice, error) {
	if s.Pause {
		return api.Splice{Paused: true, Reason: "paused"}, nil
	}
	return api.Splice{On: true}, nil
}

func (n *fakeNode) Reload(context.Context) (api.Reload, error) {
	return api.Reload{Changed: []string{"log.level"}, RestartNeeded: []string{"node.name", "stateDir"}}, nil
}

func (n *fakeNode) Upgrade(context.Context) (api.Upgrade, error) {
	return api.Upgrade{PID: 4711, Version: "2.0", Before: "1.0", Generation: 2}, nil
}

func (n *fakeNode) Drain(context.Context) (api.Drain, error) {
	return api.Drain{Active: 1}, nil
}
