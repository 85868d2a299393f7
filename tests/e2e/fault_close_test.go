// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/meshproxy/meshproxy/tests/testnet"
	"github.com/meshproxy/meshproxy/tests/workload"
)

// TestCloses: whichever end half-closes or resets, the other one sees just
// that, between nodes and on one, as it would without a mesh.
func TestCloses(t *testing.T) {
	l := newLab(t, strings.ReplaceAll(faultMesh, "ports: [{port: 80}]", "ports: [{name: line, port: 80}, {name: echo, port: 81}]"), "a", "b")
	a, b := l.net.Host("a"), l.net.Host("b")
	l.rewriteMesh("port: 8080", "ports: {line: 8080, echo: 8081}")
	l.start("a", "")
	l.start("b", "")
	servers := map[string]*testnet.Process{}
	for where, h := range map[string]*testnet.Host{"near": a, "far": b, "plain": b} {
		ip := h.Addr4().String()
		line, echo := 8080, 8081
		if where == "plain" {
			line, echo = 7080, 7081
		}
		servers[where] = l.serve(h, where, "-name", where, "-report-closed",
			"-tcp", fmt.Sprintf("%s:%d", ip, line), "-echo", fmt.Sprintf("%s:%d", ip, echo))
	}
	for _, tc := range []struct {
		name, kind, steps string
		step, err, rest   string
		lines             int
		server            string // how the client ended it, as the server sees it
		received          int64  // and what came before that
	}{
		{"client half-closes", "echo", "send one,send two,shut,end", "", "", "one\ntwo\n", 0, "EOF", 8},
		{"client half-closes at once", "echo", "shut,end", "", "", "", 0, "EOF", 0},
		{"server half-closes", "line", "send one,line,send HALFCLOSE,end,send two,shut", "", "", "", 1, "EOF", 18},
		{"client closes", "line", "send one,line", "", "", "", 1, "EOF", 4},
		{"client resets", "line", "send one,line,reset", "", "", "", 1, "ECONNRESET", 4},
		{"server resets", "line", "send one,line,send RESET,end", "end", "ECONNRESET", "", 1, "", 0},
		{"server half-closes, client resets", "line", "send HALFCLOSE,end,reset", "", "", "", 0, "ECONNRESET", 10},
	} {
		for where, from := range map[string]string{"plain": "nobody", "near": "client", "far": "client"} {
			t.Run(tc.name+" "+where, func(t *testing.T) {
				l := l.in(t)
				address := map[string]string{"line": where + ":80", "echo": where + ":81"}[tc.kind]
				if where == "plain" {
					address = map[string]string{"line": "10.77.0.2:7080", "echo": "10.77.0.2:7081"}[tc.kind]
				}
				seen := mark(servers[where])
				c := l.converse(a, from, address, tc.steps)
				if c.OK != (tc.err == "") || c.Step != tc.step || c.Error != tc.err || c.Rest != tc.rest || len(c.Lines) != tc.lines {
					t.Errorf("the client says %+v", c)
				}
				if tc.server != "" {
					l.closed(servers[where], seen, tc.server, tc.received)
				}
			})
		}
	}
	// None of them is left behind.
	for _, host := range []string{"a", "b"} {
		l.eventually("no connection is open on "+host, func() error {
			if n := l.status(host).Traffic.Active; n > 0 {
				return fmt.Errorf("%d are", n)
			}
			return nil
		})
	}
}

// converse has one conversation in a cgroup.
func (l *lab) converse(where place, cgroup, address, steps string) (c workload.Conversed) {
	l.Helper()
	out, err := where.Run(l.ctx(), testnet.Command{
		Name: "converse-" + cgroup, Path: programs.workload, Args: []string{"converse", "-timeout", clientTimeout, "-address", address, "-steps", steps}, Cgroup: cgroup,
	})
	if json.Unmarshal(out, &c) != nil {
		l.Fatalf("converse with %s: %v, said %q", address, err, out)
	}
	return c
}

// closed waits until a server tells how a client ended, and wants it to be so.
func (l *lab) closed(server *testnet.Process, from int, want string, received int64) {
	l.Helper()
	var c workload.Closed
	l.eventually("the server sees the end", func() error {
		lines, _ := server.Stdout().Lines(from)
		for _, line := range lines {
			if strings.Contains(line, `"event":"closed"`) {
				return json.Unmarshal([]byte(line), &c)
			}
		}
		return fmt.Errorf("it has not")
	})
	if c.Error != want || c.Received != received {
		l.Errorf("the server saw %s after %d bytes, want %s after %d", c.Error, c.Received, want, received)
	}
}

// rewriteMesh replaces a text everywhere in the mesh file.
func (l *lab) rewriteMesh(before, after string) {
	l.Helper()
	text := strings.ReplaceAll(l.mesh, before, after)
	if text == l.mesh {
		l.Fatalf("%q is not in the mesh file", before)
	}
	l.writeMesh(text)
}
