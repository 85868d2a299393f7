// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/meshproxy/meshproxy/nodeproxy/admin/api"
	"github.com/meshproxy/meshproxy/nodeproxy/telemetry"
	"github.com/meshproxy/meshproxy/nodeproxy/telemetry/reason"
)

// TestTables compares what people read with golden files.
func TestTables(t *testing.T) {
	n := startNode(t)
	openConnections(n.metrics)
	for name, test := range map[string]struct {
		args []string
		code int
	}{
		"status":           {args: []string{"status"}},
		"services":         {args: []string{"services"}},
		"service":          {args: []string{"services", "web"}},
		"endpoints":        {args: []string{"services", "-e"}},
		"workloads":        {args: []string{"workloads"}},
		"workload":         {args: []string{"workloads", "shop", "cron"}},
		"connections":      {args: []string{"connections", "--limit", "2"}},
		"policy-allowed":   {args: []string{"policy", "test", "--from", "shop", "--to", "web", "--port", "80"}},
		"policy-denied":    {args: []string{"policy", "test", "--from", "cron", "--to", "web"}, code: ExitFailure},
		"policy-json":      {args: []string{"policy", "test", "--from", "cron", "--to", "web", "-o", "json"}, code: ExitFailure},
		"config-running":   {args: []string{"config", "show", "--running"}},
		"ca-running":       {args: []string{"ca", "show", "--running"}},
		"reload":           {args: []string{"reload"}},
		"drain":            {args: []string{"drain"}},
		"status-json":      {args: []string{"status", "-o", "json"}},
		"connections-json": {args: []string{"connections", "-o", "json", "--service", "db"}},
	} {
		t.Run(name, func(t *testing.T) {
			o := n.ask(t, test.args...)
			o.expect(t, test.code)
			if o.stderr != "" {
				t.Errorf("stderr: %s", o.stderr)
			}
			golden(t, name, o.stdout)
		})
	}
}

func openConnections(m *telemetry.Metrics) {
	s := m.Shard()
	for i, r := range []telemetry.Record{
		{Direction: telemetry.Outbound, Path: telemetry.PathHBONE, Source: "shop", Destination: "web", Service: "web"},
		{Direction: telemetry.Inbound, Path: telemetry.PathHBONE, Source: "other", Destination: "shop", Service: "shop"},
		{Direction: telemetry.Outbound, Path: telemetry.PathDirect, Source: "shop", Destination: "db", Service: "db"},
	} {
		r.Client = netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), uint16(40000+i))
		r.Endpoint = netip.MustParseAddrPort("192.0.2.2:8080")
		c := new(telemetry.Connection)
		s.Open(c, r)
		if i != 1 {
			c.Connected()
		}
		c.Sent(100 << (10 * i))
		c.Received(5)
	}
}

func TestDegradedStatus(t *testing.T) {
	n := startNode(t)
	n.status.State = api.StateDegraded
	n.status.Problems = []string{"no DNS listener: address in use"}
	n.status.Config.LastError = "a.yaml:1:1: unknown key\nb.yaml:2:2: wrong"
	n.status.Config.RestartNeeded = []string{"node.name"}
	n.status.Sources = []api.Source{
		{Name: "static", Ready: true, Warnings: []string{"two of a kind"}},
		{Name: "consul", Stale: true, Since: noon.Add(-time.Hour)},
		{Name: "kubernetes", Error: "connection refused\x1b[2J"},
	}
	n.status.Capture = api.Capture{}
	n.status.Identity.Missing = []string{"web", "shop"}
	n.status.Snapshot = api.Snapshot{}
	n.status.Listeners, n.status.Loops, n.status.Peers, n.status.Refusals = nil, nil, nil, nil
	o := n.ask(t, "status")
	o.expect(t, ExitOK)
	golden(t, "status-degraded", o.stdout)
}

// TestColours: on a terminal, columns are as wide as without colours.
func TestColours(t *testing.T) {
	n := startNode(t)
	o := command(t, func(s *Surroundings) { s.Colour = true }, "--socket", n.socket, "workloads")
	o.expect(t, ExitOK, "\x1b[32mrunning\x1b[0m", "\x1b[1mshop\x1b[0m")
	bare := n.ask(t, "workloads")
	stripped := o.stdout
	for _, code := range []string{"0", "1", "2", "31", "32", "33"} {
		stripped = strings.ReplaceAll(stripped, "\x1b["+code+"m", "")
	}
	if diff := cmp.Diff(bare.stdout, stripped); diff != "" {
		t.Error(diff)
	}
}

func TestNodeCommands(t *testing.T) {
	n := startNode(t)
	n.ask(t, "splice", "pause").expect(t, ExitOK, "Splicing is off: paused.")
	n.ask(t, "splice", "resume").expect(t, ExitOK, "Splicing is on.")
	n.ask(t, "bypass", "shop").expect(t, ExitOK, "shop bypasses the mesh.")
	n.ask(t, "bypass", "shop", "--off").expect(t, ExitOK, "shop is in the mesh.")
	n.ask(t, "bypass", "nobody").expect(t, ExitFailure, `no workload "nobody"`)
	if diff := cmp.Diff([]api.Bypass{{Workload: "shop", Bypass: true}, {Workload: "shop"}}, n.bypass); diff != "" {
		t.Error(diff)
	}
	n.ask(t, "log-level").expect(t, ExitOK, "info\n")
	n.ask(t, "log-level", "debug", "-o", "json").expect(t, ExitOK, `"level": "debug"`)
	n.ask(t, "log-level", "loud").expect(t, ExitFailure, "want debug, info, warn or error")
	n.ask(t, "services", "web", "nothing").expect(t, ExitFailure, `no service "nothing"`)
	n.ask(t, "__complete", "bypass", "s").expect(t, ExitOK, "shop\n")
}

func TestSocketOfConfiguration(t *testing.T) {
	n := startNode(t)
	file := write(t, "node.yaml", "runDir: "+filepath.Dir(n.socket)+"\n")
	command(t, nil, "status", "--config", file).expect(t, ExitOK, "v0.1.0")
	command(t, func(s *Surroundings) { s.Env = []string{"MESHPROXY_SOCKET=" + n.socket} }, "status").expect(t, ExitOK, "v0.1.0")
	command(t, func(s *Surroundings) { s.Env = append(s.Env, "MESHPROXY_RUN_DIR="+filepath.Dir(n.socket)) }, "status").
		expect(t, ExitOK, "v0.1.0")
}

func TestNodeIsNotThere(t *testing.T) {
	path := filepath.Join(t.TempDir(), "admin.sock")
	command(t, nil, "--socket", path, "status").
		expect(t, ExitFailure, "the node is not running: no socket at "+path, "systemctl status meshproxy")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	command(t, nil, "--socket", path, "status").expect(t, ExitFailure, "the node is not running: nobody answers on "+path)
}

// lines is a writer that hands out whole lines.
type lines struct {
	buffer bytes.Buffer
	each   func(string)
}

func (l *lines) Write(p []byte) (int, error) {
	l.buffer.Write(p)
	for {
		line, err := l.buffer.ReadString('\n')
		if err != nil {
			l.buffer.WriteString(line)
			return len(p), nil
		}
		l.each(line)
	}
}

func TestWatch(t *testing.T) {
	for _, format := range []string{"table", "json"} {
		t.Run(format, func(t *testing.T) {
			n := startNode(t)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var got []string
			seen := make(chan struct{})
			out := &lines{each: func(line string) {
				if got = append(got, line); len(got) == 1 {
					close(seen)
					cancel()
				}
			}}
			go func() {
				// The watch begins at a moment that nobody can know: events
				// come until the first is seen.
				for {
					n.metrics.Refused(telemetry.Record{
						Direction: telemetry.Inbound, Destination: "web", Client: netip.MustParseAddrPort("192.0.2.9:5"),
					}, reason.PlaintextRefused, "strict")
					select {
					case <-seen:
						return
					case <-time.After(time.Millisecond):
					}
				}
			}()
			code := Main(ctx, Surroundings{
				Args: []string{"--socket", n.socket, "connections", "--watch", "-o", format}, Stdout: out, Stderr: out,
				Stdin: strings.NewReader(""), Clock: fixedClock{},
			})
			if code != ExitOK || len(got) == 0 {
				t.Fatalf("exit code %d, lines %q", code, got)
			}
			if format == "json" {
				var e api.ConnectionEvent
				if err := json.Unmarshal([]byte(got[0]), &e); err != nil || e.Event != api.EventRefused || e.Detail != "strict" {
					t.Errorf("%s: %v", got[0], err)
				}
			} else if want := "12:00:00.000  refused  inbound  192.0.2.9:5 -> web  plaintext_refused: strict\n"; got[0] != want {
				t.Errorf("got %q, want %q", got[0], want)
			}
		})
	}
}

func TestEvents(t *testing.T) {
	var out bytes.Buffer
	p := &page{w: &out}
	c := api.Connection{Direction: "outbound", Source: "shop", Destination: "web", Service: "web", Path: "hbone", Opened: noon, Sent: 2048, Received: 1}
	for _, e := range []api.ConnectionEvent{
		{Event: api.EventOpened, Time: noon, Connection: c},
		{Event: api.EventClosed, Time: noon.Add(90 * time.Second), Connection: c, Reason: reason.TunnelReset, Lost: 3},
		{Event: api.EventRefused, Time: noon, Connection: api.Connection{Direction: "outbound", Source: "shop", Dialled: "198.51.100.1:25"}, Reason: reason.EgressUnregistered},
	} {
		renderEvent(p, &e)
	}
	golden(t, "events", out.String())
}
