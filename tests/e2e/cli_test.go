// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/meshproxy/meshproxy/nodeproxy/admin/api"
	"github.com/meshproxy/meshproxy/tests/testnet"
)

// commandMesh has a pair that policy forbids.
const commandMesh = `
authorization: {default: deny}
nodes: [{name: a, address: 10.77.0.1}, {name: b, address: 10.77.0.2}]
workloads:
  - {name: client, node: a, match: [{cgroup: "{{.Cgroup "a" "client"}}"}], upstreams: [{listen: "127.0.0.1:9191", service: far, port: 80}]}
  - {name: near, node: a, match: [{cgroup: "{{.Cgroup "a" "near"}}"}]}
  - {name: idle, node: a, bypass: true, match: [{unit: idle.service}]}
  - {name: strict, node: a, egress: registered-only, match: [{cgroup: "{{.Cgroup "a" "strict"}}"}]}
  - {name: far, node: b, match: [{cgroup: "{{.Cgroup "b" "far"}}"}]}
services:
  - {name: near, ports: [{port: 80}], endpoints: [{address: 10.77.0.1, port: 8080, node: a, workload: near}]}
  - name: far
    ports: [{port: 80}]
    healthCheck: {tcp: true, interval: 1s}
    endpoints: [{address: 10.77.0.2, port: 8080, node: b, workload: far}]
policies:
  - {name: client-may, action: allow, from: [{identity: "spiffe://mesh.internal/ns/default/sa/client"}]}
`

// shell runs commands against node a.
type shell struct {
	*lab
	config string
}

// says runs a command that must succeed and say all of parts.
func (s shell) says(args []string, parts ...string) string {
	s.Helper()
	out, code := s.commandOn(s.net.Host("a"), []string{"MESHPROXY_CONFIG=" + s.config}, args...)
	if code != 0 {
		s.Fatalf("%v: exit code %d: %s", args, code, out)
	}
	s.wantParts(args, out, parts...)
	return out
}

func (s shell) wantParts(args []string, out string, parts ...string) {
	s.Helper()
	for _, p := range parts {
		if !strings.Contains(out, p) {
			s.Errorf("%v: %q is not in\n%s", args, p, out)
		}
	}
}

// refuses runs a command that must not succeed.
func (s shell) refuses(code int, args []string, parts ...string) {
	s.Helper()
	out, got := s.commandOn(s.net.Host("a"), []string{"MESHPROXY_CONFIG=" + s.config}, args...)
	if got != code {
		s.Errorf("%v: exit code %d, want %d", args, got, code)
	}
	s.wantParts(args, out, parts...)
}

// parsed runs a command with -o json.
func parsed[T any](s shell, args ...string) (v T) {
	s.Helper()
	out := s.says(append(args, "-o", "json"))
	if err := json.Unmarshal([]byte(out), &v); err != nil {
		s.Fatalf("%v: %v in %q", args, err, out)
	}
	return v
}

// commandLab runs both nodes with traffic on them: an open connection from
// client to far and one to near, an ended one, and refused ones.
func commandLab(t *testing.T, extra string) (*lab, shell) {
	l := newLab(t, commandMesh, "a", "b")
	a, b := l.net.Host("a"), l.net.Host("b")
	l.start("a", throughProxy+extra)
	l.start("b", extra)
	l.serve(a, "near", "-name", "near", "-tcp", "10.77.0.1:8080", "-tcp", "0.0.0.0:7777")
	l.serve(b, "far", "-name", "far", "-tcp", "10.77.0.2:8080")
	l.hold(a, "client", "far:80", 1)
	l.hold(a, "client", "near:80", 1)
	l.works(a, "client", "127.0.0.1:9191")
	l.fails(a, "near", "far:80", "ECONNRESET at read")
	l.fails(a, "strict", "10.77.0.2:9", "ECONNREFUSED at connect")
	l.eventually("two connections are open", func() error {
		if n := l.status("a").Traffic.Active; n != 2 {
			return fmt.Errorf("%d are", n)
		}
		return nil
	})
	return l, shell{l, l.nodes["a"].ConfigPath()}
}

// TestCommands runs every command against a running node.
func TestCommands(t *testing.T) {
	l, s := commandLab(t, "")
	a := l.net.Host("a")
	run := func(name string, f func(s shell)) {
		t.Run(name, func(t *testing.T) { f(shell{l.in(t), s.config}) })
	}
	run("status", func(s shell) {
		s.eventually("refusals are counted", func() error {
			out := s.says([]string{"status"}, "a (10.77.0.1)", "ready", "LISTENER", "outbound", "127.0.0.1:15001", "LOOP", "PEER", "10.77.0.2:15008")
			if !containsAll(out, []string{"policy denies it", "egress_unregistered"}) {
				return errors.New(out)
			}
			return nil
		})
		st := parsed[api.Status](s, "status")
		if st.State != api.StateReady || len(st.Loops) == 0 || st.Loops[0].Turns == 0 || len(st.Listeners) < 8 || st.Snapshot.Services != 2 ||
			st.Workloads.Configured != 4 || st.Workloads.Running != 3 || st.Workloads.Bypassed != 1 || st.Traffic.Active != 2 ||
			st.Capture.Captured < 4 || st.Identity.Leaves == 0 || st.Identity.NextExpiry.IsZero() {
			s.Errorf("status: %+v", st)
		}
		if i := slices.IndexFunc(st.Peers, func(p api.Peer) bool { return p.Role == "client" }); i < 0 || st.Peers[i].Streams < 1 {
			s.Errorf("peers: %+v", st.Peers)
		}
	})
	run("services", func(s shell) {
		s.says([]string{"services"}, "SERVICE", "far", "80/tcp", "240.240.", "1/1")
		s.says([]string{"services", "--endpoints"}, "near", "10.77.0.1:8080", "a (here)", "hbone")
		s.refuses(1, []string{"services", "nobody"}, "nobody")
		s.eventually("endpoint of far is healthy", func() error {
			far := parsed[[]api.Service](s, "services", "far")[0]
			if e := far.Endpoints[0]; e.Health != api.HealthHealthy || e.Active != 1 || e.Identity != "spiffe://mesh.internal/ns/default/sa/far" {
				return fmt.Errorf("%+v", e)
			}
			return nil
		})
	})
	run("workloads", func(s shell) {
		s.says([]string{"workloads"}, "WORKLOAD", "client", "running", "idle", "bypassed", "registered-only")
		s.says([]string{"workloads", "client"}, "127.0.0.1:9191 is far port 80", s.Cgroup("a", "client"))
		s.eventually("ports are learned", func() error {
			near := parsed[[]api.Workload](s, "workloads", "near")[0]
			if !slices.Equal(near.Ports, []uint16{7777, 8080}) || !slices.Equal(near.Cgroups, []string{s.Cgroup("a", "near")}) || near.LeafExpires.IsZero() {
				return fmt.Errorf("%+v", near)
			}
			return nil
		})
		if w := parsed[[]api.Workload](s, "workloads", "client")[0]; w.Active != 2 {
			s.Errorf("client has %d connections, want 2", w.Active)
		}
		if w := parsed[[]api.Workload](s, "workloads", "idle")[0]; !w.Bypass || w.BypassCause != "configuration" || len(w.Cgroups) > 0 {
			s.Errorf("idle: %+v", w)
		}
		if w := parsed[[]api.Workload](s, "workloads", "strict")[0]; w.Refused == 0 {
			s.Errorf("strict: %+v", w)
		}
	})
	run("connections", func(s shell) {
		s.says([]string{"connections"}, "DIRECTION", "client", "hbone", "direct")
		all := parsed[api.Connections](s, "connections")
		if len(all.Connections) != 2 || all.Total != 2 {
			s.Errorf("connections: %+v", all)
		}
		some := parsed[api.Connections](s, "connections", "--service", "far").Connections
		if len(some) != 1 {
			s.Fatalf("connections to far: %+v", some)
		}
		if c := some[0]; c.Source != "client" || c.SourceIdentity == "" || c.Destination != "far" || c.DestinationIdentity == "" || c.Path != "hbone" ||
			!strings.HasPrefix(c.Client, "10.77.0.1:") || !strings.HasPrefix(c.Dialled, "240.240.") || c.Endpoint != "10.77.0.2:8080" || c.Sent == 0 || c.Received == 0 || !c.Connected {
			s.Errorf("connection: %+v", c)
		}
	})
	run("policy test", func(s shell) {
		s.says([]string{"policy", "test", "--from", "client", "--to", "near", "--port", "80"}, "client-may", "allow")
		s.refuses(1, []string{"policy", "test", "--from", "near", "--to", "near"}, "client-may", "denied")
		s.refuses(1, []string{"policy", "test", "--from", "10.1.2.3", "--to", "workload:near", "--port", "8080"}, "10.1.2.3")
		s.says([]string{"policy", "test", "--from", "client", "--to", "far"}, "on node b, whose policies decide")
		s.refuses(1, []string{"policy", "test", "--from", "client", "--to", "nobody"}, "nobody")
		s.refuses(2, []string{"policy", "test", "--from", "client"}, "--to is required")
	})
	run("config", func(s shell) {
		s.says([]string{"config", "validate"}, "is valid")
		s.says([]string{"config", "validate", s.config}, "is valid")
		s.says([]string{"config", "show"}, "node.name", "meshproxy.yaml:3")
		s.says([]string{"config", "show", "--running"}, "node.trustDomain", "default")
		s.says([]string{"config", "show", "--defaults"}, "MESHPROXY_DNS_DOMAIN")
		if c := parsed[api.Config](s, "config", "show", "--running"); c.File != s.config || len(c.Settings) < 20 {
			s.Errorf("config: %+v", c)
		}
	})
	run("ca", func(s shell) {
		s.says([]string{"ca", "show"}, "mesh.internal", "signing")
		s.says([]string{"ca", "show", "--running"}, "spiffe://mesh.internal/ns/default/sa/client")
		ca := parsed[api.CA](s, "ca", "show", "--running")
		for _, leaf := range ca.Leaves {
			if leaf.Serial == "" || leaf.Issuer == "" || leaf.NotAfter.Before(time.Now()) {
				s.Errorf("leaf: %+v", leaf)
			}
		}
		if len(ca.Roots) == 0 || len(ca.Leaves) == 0 {
			s.Errorf("ca: %+v", ca)
		}
	})
	run("bypass", func(s shell) {
		direct := func() bool {
			d := s.dial(a, "client", "-address", "10.77.0.1:8080", "-send", "hello")
			return seen(s.T, d).Accepted == d.Local
		}
		if direct() {
			s.Fatal("client is not in the mesh to begin with")
		}
		s.says([]string{"bypass", "client"}, "bypasses")
		if !direct() {
			s.Error("a bypassed workload's connection went through the mesh")
		}
		s.says([]string{"workloads", "client"}, "bypassed by command")
		s.says([]string{"bypass", "client", "--off"}, "in the mesh")
		if direct() {
			s.Error("the workload is not back in the mesh")
		}
		s.refuses(1, []string{"bypass", "nobody"}, `no workload "nobody"`)
		s.refuses(1, []string{"bypass", "idle", "--off"}, "by configuration")
	})
	run("others", func(s shell) {
		s.says([]string{"version"}, "meshproxy", "go1.")
		s.says([]string{"completion", "bash"}, "meshproxy")
		s.says([]string{"__complete", "workloads", "ne"}, "near")
		s.says([]string{"check"}, "cgroup", "A node can run here")
		s.says([]string{"log-level"}, "info")
		s.says([]string{"reload"}, "Nothing changed")
		s.refuses(2, []string{"statsu"}, "did you mean status?")
		s.refuses(2, []string{"status", "-o", "xml"}, "table or json")
		s.refuses(1, []string{"leave"}, "stop it first")
		s.refuses(1, []string{"status", "--socket", "/nonexistent/admin.sock"}, "not running", "/nonexistent/admin.sock")
	})
}

// TestWatch: what opens, closes and is refused is seen as it happens.
func TestWatch(t *testing.T) {
	l, s := commandLab(t, "")
	a := l.net.Host("a")
	watch := func(args ...string) *testnet.Process {
		t.Helper()
		p, err := a.Start(testnet.Command{
			Name: "watch", Path: programs.meshproxy, Cgroup: "cli",
			Args: append([]string{"connections", "--watch", "--config", s.config}, args...),
		})
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	objects, lines := watch("-o", "json"), watch()
	saw := func(p *testnet.Process, parts ...string) error {
		found, _ := p.Stdout().Lines(0)
		for _, line := range found {
			if containsAll(line, parts) {
				return nil
			}
		}
		return fmt.Errorf("no line with %q in %q", parts, found)
	}
	// Nobody says when a watch has begun, so things are made to happen until
	// it sees them.
	l.eventually("events", func() error {
		l.dial(a, "client", "-address", "far:80", "-send", "hello")
		l.dial(a, "near", "-address", "near:80", "-send", "hello")
		return errors.Join(
			saw(objects, `"event":"opened"`, `"source":"client"`, `"service":"far"`, `"path":"hbone"`),
			saw(objects, `"event":"closed"`, `"source":"client"`, `"sentBytes":6`),
			saw(objects, `"event":"refused"`, `"source":"near"`, `"reason":"policy_denied"`),
			saw(lines, "opened", "outbound", "client -> far"),
			saw(lines, "closed", "client -> far", "sent"),
			saw(lines, "refused", "near -> near", "policy_denied"),
		)
	})
	found, _ := objects.Stdout().Lines(0)
	for _, line := range found {
		var e api.ConnectionEvent
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Errorf("%q: %v", line, err)
		}
	}
}

// TestMetricsAndLogs: what happened is in the metrics, with who, where to and
// how, and in the access log.
func TestMetricsAndLogs(t *testing.T) {
	for _, format := range []string{"json", "text"} {
		t.Run(format, func(t *testing.T) {
			l, _ := commandLab(t, "log: {access: "+format+", accessEntries: all}\n")
			n := l.nodes["a"]
			if format == "json" {
				l.wantMetrics()
				line := l.accessEntry(n.Stdout())
				for key, want := range map[string]string{
					"direction": "outbound", "path": "hbone", "source": "client", "destination": "far", "service": "far",
					"source_identity": "spiffe://mesh.internal/ns/default/sa/client", "destination_identity": "spiffe://mesh.internal/ns/default/sa/far",
					"dialled": "127.0.0.1:9191", "endpoint": "10.77.0.2:8080", "sent": "6",
				} {
					if got := fmt.Sprint(line[key]); got != want {
						t.Errorf("%s is %s, want %s", key, got, want)
					}
				}
				for _, key := range []string{"time", "client", "received", "duration"} {
					if line[key] == nil {
						t.Errorf("no %s in %v", key, line)
					}
				}
				l.logged(n, `"connection refused"`, `"reason":"peer_denied"`, `"source":"near"`)
				l.logged(l.nodes["b"], `"direction":"inbound"`, `"policy":"client-may"`, `"source":"client"`, `"destination":"far"`)
				return
			}
			l.logged(n, `msg="connection closed"`, "source=client", "service=far", "path=hbone", "sent=6", "received=", "duration=")
			l.logged(n, `msg="connection refused"`, "source=strict", "reason=egress_unregistered", "dialled=10.77.0.2:9")
		})
	}
}

// accessEntry is the entry of the connection to the explicit upstream.
func (l *lab) accessEntry(out *testnet.Output) map[string]any {
	l.Helper()
	text, err := out.WaitString(l.ctx(), `"dialled":"127.0.0.1:9191"`)
	if err != nil {
		l.Fatal(err)
	}
	var line map[string]any
	if err := json.Unmarshal([]byte(text), &line); err != nil {
		l.Fatal(err)
	}
	return line
}

// wantMetrics looks for each family, with its labels, and a value that isn't 0.
func (l *lab) wantMetrics() {
	l.Helper()
	pair := func(path, destination string) string {
		return fmt.Sprintf(`{destination=%q,direction="outbound",path=%q,service=%q,source="client"}`, destination, path, destination)
	}
	want := map[string][]string{"a": {
		"meshproxy_connections_opened_total" + pair("hbone", "far"),
		"meshproxy_connections_opened_total" + pair("direct", "near"),
		"meshproxy_connections_closed_total" + pair("hbone", "far"),
		"meshproxy_connections_active" + pair("hbone", "far"),
		"meshproxy_sent_bytes_total" + pair("hbone", "far"),
		"meshproxy_received_bytes_total" + pair("hbone", "far"),
		"meshproxy_connect_duration_seconds_count" + pair("hbone", "far"),
		`meshproxy_tunnel_connections{role="client",transport="hbone"}`,
		`meshproxy_tunnel_streams{role="client",transport="hbone"}`,
		`meshproxy_snapshot_age_seconds`, `meshproxy_snapshot_version`, `meshproxy_source_ready{source="static"}`,
		`meshproxy_loop_turns_total{loop="0"}`, `meshproxy_leaf_expiry_timestamp_seconds{workload="client"}`,
		`meshproxy_capture_connections_total`, `meshproxy_capture_up`,
		`meshproxy_capture_destination_connections_total{service="far",source="client"}`,
		`meshproxy_capture_refusals_total{reason="egress_unregistered"}`,
		`meshproxy_build_info{`, `go_goroutines`, `process_resident_memory_bytes`,
	}, "b": {
		`meshproxy_tunnel_connections{role="server",transport="hbone"}`,
		`meshproxy_connections_opened_total{destination="far",direction="inbound",path="hbone",service="far",source="client"}`,
	}}
	counted := map[string][][]string{
		"a": {
			{"meshproxy_handshakes_total{", `role="client"`},
			{"meshproxy_refusals_total{", `reason="peer_denied"`, `source="near"`, `service="far"`},
			{"meshproxy_refusals_total{", `reason="egress_unregistered"`, `source="strict"`},
		},
		"b": {
			{"meshproxy_handshakes_total{", `role="server"`},
			{"meshproxy_refusals_total{", `reason="policy_denied"`, `direction="inbound"`},
		},
	}
	for _, host := range []string{"a", "b"} {
		l.eventually("metrics of "+host, func() error {
			code, text, err := l.get(l.net.Host(host), "http://127.0.0.1:15020/metrics")
			if err != nil || code != http.StatusOK {
				return fmt.Errorf("%d, %v", code, err)
			}
			var missing []error
			for _, name := range want[host] {
				missing = append(missing, counts(text, name))
			}
			for _, parts := range counted[host] {
				missing = append(missing, counts(text, parts...))
			}
			return errors.Join(missing...)
		})
	}
}

// counts wants a sample that begins with the first part, has the others, and
// is above 0.
func counts(text string, parts ...string) error {
	near := ""
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if !strings.HasPrefix(line, parts[0]) {
			if name, _, _ := strings.Cut(parts[0], "{"); strings.HasPrefix(line, name) {
				near = line
			}
			continue
		}
		value, err := strconv.ParseFloat(line[strings.LastIndexByte(line, ' ')+1:], 64)
		if containsAll(line, parts) && err == nil && value > 0 {
			return nil
		}
		near = line
	}
	return fmt.Errorf("no %q; nearest: %s", parts, near)
}

// TestProbesAndProfiles: readiness says when capture is in force, and when it
// ends; the admin socket has the profiles.
func TestProbesAndProfiles(t *testing.T) {
	l, s := commandLab(t, "drainTimeout: 20s\n")
	a, n := l.net.Host("a"), l.nodes["a"]
	t.Run("pprof", func(t *testing.T) {
		transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", n.Socket())
		}, DisableKeepAlives: true}
		for path, want := range map[string]string{
			"/debug/pprof/goroutine?debug=1": "goroutine profile:", "/debug/pprof/heap?debug=1": "heap profile:", "/debug/pprof/profile?seconds=1": "",
		} {
			code, body, err := fetch(l.in(t).ctx(), transport, "http://node"+path)
			if err != nil || code != http.StatusOK || !strings.Contains(body, want) || body == "" {
				t.Errorf("%s: %d, %v", path, code, err)
			}
		}
		if code, _, err := l.in(t).get(a, "http://127.0.0.1:15020/debug/pprof/heap"); err != nil || code != http.StatusNotFound {
			t.Errorf("the metrics' port answers %d, %v for profiles", code, err)
		}
	})
	t.Run("draining", func(t *testing.T) {
		l := l.in(t)
		if code, _, err := l.get(a, "http://127.0.0.1:15021/healthz/live"); err != nil || code != http.StatusOK {
			t.Errorf("live: %d, %v", code, err)
		}
		if err := l.ready200(a); err != nil {
			t.Error(err)
		}
		shell{l, s.config}.says([]string{"drain"}, "2 connections open")
		code, body, err := l.get(a, "http://127.0.0.1:15021/healthz/ready")
		if err != nil || code != http.StatusServiceUnavailable || !strings.Contains(body, "draining") {
			t.Errorf("ready while draining: %d %q, %v", code, body, err)
		}
		if st := l.status("a"); st.State != api.StateDraining || st.Traffic.Active != 2 {
			t.Errorf("status: %s with %d connections, want draining with those that were open", st.State, st.Traffic.Active)
		}
		l.fails(a, "client", "10.77.0.1:8080", "ECONNREFUSED at connect")
	})
	t.Run("not running", func(t *testing.T) {
		l := l.in(t)
		l.kill("a")
		s := shell{l, s.config}
		for _, args := range [][]string{{"status"}, {"services"}, {"workloads"}, {"connections"}, {"bypass", "client"}, {"policy", "test", "--from", "client", "--to", "near"}} {
			s.refuses(1, args, "not running", n.Socket(), "systemctl status meshproxy")
		}
		s.says([]string{"leave"}, "Nothing of instance")
		s.says([]string{"leave"}, "Nothing of instance")
		if left, _ := filepath.Glob(filepath.Join(a.BPFFS(), "meshproxy", "*")); len(left) > 0 {
			t.Errorf("left in the kernel: %v", left)
		}
		d := l.dial(a, "client", "-address", "10.77.0.1:8080", "-send", "hello")
		if got := seen(t, d); got.Accepted != d.Local {
			t.Errorf("after leave: the server accepted %s, the client is %s", got.Accepted, d.Local)
		}
	})
}

// TestReadiness: as soon as a node is ready, and not later than that, what a
// workload dials is captured.
func TestReadiness(t *testing.T) {
	l := newLab(t, commandMesh, "a", "b")
	a := l.net.Host("a")
	l.serve(a, "near", "-name", "near", "-tcp", "10.77.0.1:8080")
	for range 3 {
		l.start("a", throughProxy+"drainTimeout: 0s\n")
		if d := l.dial(a, "client", "-address", "10.77.0.1:8080", "-send", "hello"); seen(t, d).Accepted == d.Local {
			t.Error("the node is ready, and a workload's connection is not captured")
		}
		n := l.nodes["a"]
		n.Admin.Close()
		if err := n.Leave(l.ctx()); err != nil {
			t.Fatal(err)
		}
		if err := l.ready200(a); err == nil {
			t.Error("a node that left is ready")
		}
	}
}
