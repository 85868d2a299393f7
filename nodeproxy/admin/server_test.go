// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/meshproxy/meshproxy/nodeproxy/admin/api"
	"github.com/meshproxy/meshproxy/nodeproxy/admin/client"
	"github.com/meshproxy/meshproxy/nodeproxy/telemetry"
	"github.com/meshproxy/meshproxy/nodeproxy/telemetry/reason"
)

// fakeNode answers with what a test put there.
type fakeNode struct {
	status          api.Status
	bypass          []api.Bypass
	reloadErr       error
	readyErr, alive error
	unserved        []string
}

var _ Node = (*fakeNode)(nil)

func (n *fakeNode) Ready() error { return n.readyErr }
func (n *fakeNode) Live() error  { return n.alive }

func (n *fakeNode) Unserved() []string { return n.unserved }

func (n *fakeNode) Status(context.Context) (api.Status, error) { return n.status, nil }

func (n *fakeNode) Services(context.Context) ([]api.Service, error) {
	return []api.Service{{Name: "web", Ports: []api.Port{{Port: 80, Protocol: "http"}}}}, nil
}

func (n *fakeNode) Workloads(context.Context) ([]api.Workload, error) {
	return []api.Workload{{Name: "front"}}, nil
}

func (n *fakeNode) ExplainPolicy(_ context.Context, q api.PolicyQuery) (api.PolicyExplanation, error) {
	if q.To != "web" {
		return api.PolicyExplanation{}, &api.Error{Kind: api.KindNotFound, Message: "no service " + q.To}
	}
	return api.PolicyExplanation{Query: q, Allowed: true, Conclusion: "allowed"}, nil
}

func (n *fakeNode) Config(context.Context) (api.Config, error) {
	return api.Config{File: "/etc/node.yaml", Settings: []api.Setting{{Key: "node.name", Value: "a", Origin: "default"}}}, nil
}

func (n *fakeNode) CA(context.Context) (api.CA, error) { return api.CA{Provider: "embedded"}, nil }

func (n *fakeNode) SetBypass(_ context.Context, b api.Bypass) error {
	n.bypass = append(n.bypass, b)
	return nil
}

func (n *fakeNode) SetSplice(_ context.Context, c api.SpliceControl) (api.Splice, error) {
	return api.Splice{On: !c.Pause, Paused: c.Pause}, nil
}

func (n *fakeNode) Reload(context.Context) (api.Reload, error) {
	return api.Reload{Changed: []string{"log.level"}}, n.reloadErr
}

func (n *fakeNode) Upgrade(context.Context) (api.Upgrade, error) {
	return api.Upgrade{PID: 4711, Version: "2.0", Before: "1.0", Generation: 2}, nil
}

func (n *fakeNode) Drain(context.Context) (api.Drain, error) { return api.Drain{Active: 3}, nil }

type fixture struct {
	*Server
	node    *fakeNode
	metrics *telemetry.Metrics
	level   *slog.LevelVar
	socket  string
	client  *client.Client
}

func start(t *testing.T) *fixture {
	t.Helper()
	return startReading(t, 0)
}

// startReading starts a server with another read timeout than its own.
func startReading(t *testing.T, within time.Duration) *fixture {
	t.Helper()
	f := &fixture{
		node: &fakeNode{}, metrics: telemetry.New(telemetry.Options{}), level: new(slog.LevelVar),
		socket: filepath.Join(t.TempDir(), "admin.sock"),
	}
	f.Server = f.start(t, within)
	f.client = client.New(f.socket)
	t.Cleanup(func() {
		f.client.Close()
		f.Close()
	})
	return f
}

func (f *fixture) start(t *testing.T, readTimeout time.Duration) *Server {
	t.Helper()
	s, err := Start(Options{
		Socket: f.socket, MetricsAddress: "127.0.0.1:0", ReadinessAddress: "127.0.0.1:0",
		Node: f.node, Metrics: f.metrics, Level: f.level, Log: discard(), readTimeout: readTimeout,
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

func TestQuestions(t *testing.T) {
	f := start(t)
	ctx := t.Context()
	f.node.status = api.Status{
		Node: "a", State: api.StateReady, Started: time.Unix(1000, 0).UTC(),
		Refusals: []api.Refusal{{Direction: "inbound", Reason: reason.PlaintextRefused, Count: 4}},
	}
	status, err := f.client.Status(ctx)
	check(t, err)
	if diff := cmp.Diff(f.node.status, status); diff != "" {
		t.Error(diff)
	}
	services, err := f.client.Services(ctx)
	check(t, err)
	workloads, err := f.client.Workloads(ctx)
	check(t, err)
	config, err := f.client.Config(ctx)
	check(t, err)
	ca, err := f.client.CA(ctx)
	check(t, err)
	drain, err := f.client.Drain(ctx)
	check(t, err)
	reload, err := f.client.Reload(ctx)
	check(t, err)
	if services[0].Name != "web" || workloads[0].Name != "front" || config.Settings[0].Key != "node.name" ||
		ca.Provider != "embedded" || drain.Active != 3 || reload.Changed[0] != "log.level" {
		t.Error(services, workloads, config, ca, drain, reload)
	}
	check(t, f.client.SetBypass(ctx, api.Bypass{Workload: "front", Bypass: true}))
	if diff := cmp.Diff([]api.Bypass{{Workload: "front", Bypass: true}}, f.node.bypass); diff != "" {
		t.Error(diff)
	}
	splice, err := f.client.SetSplice(ctx, api.SpliceControl{Pause: true})
	check(t, err)
	if splice.On || !splice.Paused {
		t.Errorf("splice %+v", splice)
	}
	explanation, err := f.client.ExplainPolicy(ctx, api.PolicyQuery{From: "front", To: "web", Port: 80})
	check(t, err)
	if !explanation.Allowed || explanation.Query.Port != 80 {
		t.Errorf("explanation: %+v", explanation)
	}
}

func TestErrors(t *testing.T) {
	f := start(t)
	ctx := t.Context()
	_, err := f.client.ExplainPolicy(ctx, api.PolicyQuery{To: "nothing"})
	expectKind(t, err, api.KindNotFound, "no service nothing")
	expectKind(t, f.client.SetBypass(ctx, api.Bypass{}), api.KindInvalid, "no workload named")
	f.node.reloadErr = errors.New("line 3: bad")
	_, err = f.client.Reload(ctx)
	expectKind(t, err, api.KindInternal, "line 3: bad")
	for _, test := range []struct {
		name, method, path, body string
		code                     int
		says                     string
	}{
		{"no such page", "GET", "/v1/nothing", "", 404, "no GET /v1/nothing"},
		{"wrong method", "POST", "/v1/status", "", 404, "no POST /v1/status"},
		{"unknown field", "POST", "/v1/policy/test", `{"fron":"x"}`, 400, `unknown field \"fron\"`},
		{"two values", "POST", "/v1/policy/test", `{} {}`, 400, "more than one value"},
		{"too long", "POST", "/v1/policy/test", `{"from":"` + strings.Repeat("x", maxBodyBytes) + `"}`, 400, "too large"},
		{"unknown filter", "GET", "/v1/connections?sorce=x", "", 400, `unknown filter`},
		{"bad limit", "GET", "/v1/connections?limit=x", "", 400, "want a number"},
		{"unknown filter of a watch", "GET", "/v1/connections/watch?sorce=x", "", 400, `unknown filter`},
	} {
		t.Run(test.name, func(t *testing.T) {
			code, body := f.request(t, test.method, test.path, test.body)
			if code != test.code || !strings.Contains(body, test.says) {
				t.Errorf("%d %s, want %d %q", code, body, test.code, test.says)
			}
		})
	}
}

func (f *fixture) request(t *testing.T, method, path, body string) (int, string) {
	t.Helper()
	transport := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", f.socket)
		},
		DisableKeepAlives: true,
	}
	r, err := http.NewRequestWithContext(t.Context(), method, "http://node"+path, strings.NewReader(body))
	check(t, err)
	answer, err := transport.RoundTrip(r)
	check(t, err)
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	check(t, err)
	return answer.StatusCode, string(text)
}

func TestLogLevel(t *testing.T) {
	f := start(t)
	ctx := t.Context()
	level, err := f.client.LogLevel(ctx)
	check(t, err)
	if level.Level != "info" {
		t.Errorf("level: %v", level)
	}
	check(t, f.client.SetLogLevel(ctx, api.LogLevel{Level: "debug"}))
	if f.level.Level() != slog.LevelDebug {
		t.Errorf("level: %v", f.level)
	}
	expectKind(t, f.client.SetLogLevel(ctx, api.LogLevel{Level: "loud"}), api.KindInvalid,
		`log level "loud": want debug, info, warn or error`)
}

func TestProfiles(t *testing.T) {
	f := start(t)
	code, body := f.request(t, "GET", "/debug/pprof/goroutine?debug=1", "")
	if code != 200 || !strings.Contains(body, "goroutine profile:") {
		t.Errorf("%d %.100s", code, body)
	}
}

func TestMetricsAndReadiness(t *testing.T) {
	f := start(t)
	get := func(listener, path string) (int, string) {
		answer, err := http.Get("http://" + f.Addr(listener).String() + path)
		check(t, err)
		defer answer.Body.Close()
		text, err := io.ReadAll(answer.Body)
		check(t, err)
		return answer.StatusCode, string(text)
	}
	defer http.DefaultClient.CloseIdleConnections()
	if code, body := get(ListenerMetrics, "/metrics"); code != 200 || !strings.Contains(body, "meshproxy_build_info") {
		t.Errorf("metrics: %d", code)
	}
	// What changes or tells more is not to be had there.
	for _, path := range []string{"/v1/status", "/debug/pprof/", "/healthz/ready"} {
		if code, _ := get(ListenerMetrics, path); code != 404 {
			t.Errorf("metrics listener answers %s: %d", path, code)
		}
	}
	if code, body := get(ListenerReadiness, "/healthz/ready"); code != 200 || body != "ok\n" {
		t.Errorf("ready: %d %q", code, body)
	}
	f.node.unserved = []string{"no leaf for web"}
	if code, body := get(ListenerReadiness, "/healthz/ready"); code != 200 || body != "ok\nno leaf for web\n" {
		t.Errorf("ready, save for a workload: %d %q", code, body)
	}
	f.node.readyErr = errors.New("no snapshot yet")
	if code, body := get(ListenerReadiness, "/healthz/ready"); code != 503 || body != "no snapshot yet\n" {
		t.Errorf("not ready: %d %q", code, body)
	}
	if code, _ := get(ListenerReadiness, "/healthz/live"); code != 200 {
		t.Errorf("live: %d", code)
	}
	f.node.alive = errors.New("loop 1 hangs")
	if code, _ := get(ListenerReadiness, "/healthz/live"); code != 503 {
		t.Errorf("not live: %d", code)
	}
}

func TestAddressInUse(t *testing.T) {
	f := start(t)
	_, err := Start(Options{
		Socket: filepath.Join(t.TempDir(), "admin.sock"), MetricsAddress: f.Addr(ListenerMetrics).String(),
		Node: f.node, Metrics: f.metrics, Level: f.level, Log: discard(),
	})
	if !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("Start = %v", err)
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func expectKind(t *testing.T, err error, kind api.Kind, message string) {
	t.Helper()
	known := (*api.Error)(nil)
	if !errors.As(err, &known) || known.Kind != kind || known.Message != message {
		t.Errorf("error %v, want %s %q", err, kind, message)
	}
}

func mode(t *testing.T, path string) os.FileMode {
	t.Helper()
	info, err := os.Stat(path)
	check(t, err)
	return info.Mode()
}
