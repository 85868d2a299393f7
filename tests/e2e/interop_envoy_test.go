// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/meshproxy/meshproxy/nodeproxy/identity"
	"github.com/meshproxy/meshproxy/tests/meshnode"
	"github.com/meshproxy/meshproxy/tests/peers/credentials"
	"github.com/meshproxy/meshproxy/tests/peers/envoy"
	"github.com/meshproxy/meshproxy/tests/testnet"
	"github.com/meshproxy/meshproxy/tests/workload"
)

// foreignMesh has a node, a; on b there is a peer that is none of ours.
const foreignMesh = `
authorization: {default: deny}
nodes: [{name: a, address: 10.77.0.1}, {name: b, address: 10.77.0.2}]
workloads:
  - {name: web, node: a, match: [{cgroup: "{{.Cgroup "a" "web"}}"}]}
  - {name: closed, node: a, match: [{cgroup: "{{.Cgroup "a" "closed"}}"}]}
  - {name: front, node: a, match: [{cgroup: "{{.Cgroup "a" "front"}}"}]}
services:
  - {name: web, ports: [{port: 80}], endpoints: [{address: 10.77.0.1, port: 7001, node: a, workload: web}]}
  - {name: seen, ports: [{port: 80}], endpoints: [{address: 10.77.0.1, port: 7002, node: a, workload: web}]}
  - {name: down, ports: [{port: 80}], endpoints: [{address: 10.77.0.1, port: 7003, node: a, workload: web}]}
  - {name: closed, ports: [{port: 80}], endpoints: [{address: 10.77.0.1, port: 7004, node: a, workload: closed}]}
  - {name: back, ports: [{port: 80}], endpoints: [{address: 10.77.0.2, port: 7001, node: b, identity: "spiffe://mesh.internal/ns/default/sa/peer"}]}
  - {name: refusing, ports: [{port: 80}], endpoints: [{address: 10.77.0.2, port: 7002, node: b, identity: "spiffe://mesh.internal/ns/default/sa/peer"}]}
  - {name: failing, ports: [{port: 80}], endpoints: [{address: 10.77.0.2, port: 7003, node: b, identity: "spiffe://mesh.internal/ns/default/sa/peer"}]}
policies:
  - name: peer-to-web
    action: allow
    from: [{identity: "spiffe://mesh.internal/ns/default/sa/peer"}]
    to: [{workload: web}]
`

// foreignLab has the node, which shows web to clients that name nobody.
func foreignLab(t *testing.T) *lab {
	t.Helper()
	l := newLab(t, foreignMesh, "a", "b")
	l.startAs("a", meshnode.Options{Env: []string{"MESHPROXY_IDENTITY_DEFAULT=web"}})
	return l
}

// serverName is the SNI of a workload.
func serverName(workload string) string {
	return identity.ServerName(spiffeid.RequireFromString(meshnode.Identity(workload)))
}

// credentials has a leaf of the mesh.
func (l *lab) credentials(workload string) *credentials.Credentials {
	l.Helper()
	c, err := credentials.Issue(l.caDir, meshnode.Identity(workload))
	if err != nil {
		l.Fatal(err)
	}
	return c
}

// envoy starts an Envoy that proves to be peer, with the configuration that
// of returns.
func (l *lab) envoy(h *testnet.Host, of func(credentials.Files) (string, error)) *envoy.Proxy {
	l.Helper()
	files, err := l.credentials("peer").Write(filepath.Join(h.Dir(), "leaf"))
	if err != nil {
		l.Fatal(err)
	}
	config, err := of(files)
	if err != nil {
		l.Fatal(err)
	}
	p, err := envoy.Start(l.ctx(), h, config)
	if err != nil {
		l.Fatal(err)
	}
	l.Cleanup(func() {
		if l.Failed() {
			l.Logf("envoy:\n%s", p.Stderr().Tail(4000))
		}
	})
	return p
}

// counters of an Envoy, of which there must be the named ones.
func counters(l *lab, p *envoy.Proxy) map[string]uint64 {
	l.Helper()
	all, err := p.Counters(l.ctx())
	if err != nil {
		l.Fatal(err)
	}
	return all
}

func on(port uint16) netip.AddrPort {
	return netip.AddrPortFrom(netip.MustParseAddr("10.77.0.2"), port)
}

// The listeners of Envoy as a client.
const (
	envoyPlain = iota + 9000 // without SNI, as ztunnel
	envoyNamed               // with the workload's server name
	envoySeen                // to the server that says whom it sees
	envoyForwarded
	envoyConnect // takes CONNECT
)

// TestEnvoyToNode: tunnels that Envoy opens.
func TestEnvoyToNode(t *testing.T) {
	l := foreignLab(t)
	a, b := l.net.Host("a"), l.net.Host("b")
	web := meshnode.Identity("web")
	p := l.envoy(b, func(f credentials.Files) (string, error) {
		return envoy.Client{Node: netip.MustParseAddrPort("10.77.0.1:15008"), Files: f, Tunnels: []envoy.Tunnel{
			{Listen: on(envoyPlain), Authority: "10.77.0.1:7001", Identity: web},
			{Listen: on(envoyNamed), Authority: "10.77.0.1:7001", Identity: web, ServerName: serverName("web")},
			{Listen: on(envoySeen), Authority: "10.77.0.1:7002", Identity: web},
			{Listen: on(envoyForwarded), Authority: "10.77.0.1:7002", Identity: web, Forwarded: true},
			{Listen: on(envoyConnect), Identity: web},
		}}.Config()
	})
	app := l.listener(a, "web", "10.77.0.1:7001")
	l.serve(a, "web", "-name", "web", "-tcp", "10.77.0.1:7002")

	for name, port := range map[string]uint16{"without SNI": envoyPlain, "with SNI": envoyNamed} {
		t.Run(name, func(t *testing.T) {
			k := &lane{app: app, softToClient: true, dial: func() (net.Conn, error) {
				return b.DialContext(l.ctx(), "tcp", on(port).String())
			}}
			k.check(t)
		})
	}
	t.Run("one connection", func(t *testing.T) {
		l := l.in(t)
		n := counters(l, p)
		if opened, streams := n["cluster.node-0.upstream_cx_total"], n["cluster.node-0.upstream_rq_total"]; opened != 1 || streams < 250 {
			t.Errorf("%d streams took %d connections", streams, opened)
		}
		if n["cluster.node-0.http2.rx_reset"] != 1 {
			t.Errorf("Envoy was sent %d resets, want the one of the application", n["cluster.node-0.http2.rx_reset"])
		}
		if n["cluster.node-0.http2.rx_messaging_error"]+n["cluster.node-0.upstream_cx_protocol_error"] > 0 {
			t.Errorf("Envoy complains: %v", n)
		}
	})
	t.Run("the server sees its client", func(t *testing.T) {
		_, s := l.in(t).ask(b, on(envoySeen))
		if host(t, s.Accepted) != "10.77.0.2" || s.Peer != s.Accepted {
			t.Errorf("the server saw %s and %s, want Envoy's host", s.Accepted, s.Peer)
		}
		var c string
		c, s = l.in(t).ask(b, on(envoyForwarded))
		if s.Accepted != c || s.Peer != c {
			t.Errorf("the server saw %s and %s, want %s, which Envoy vouches for", s.Accepted, s.Peer, c)
		}
	})
	for _, tc := range []struct {
		name, authority string
		want            int
	}{
		{"accepted", "10.77.0.1:7001", 200},
		{"policy denies", "10.77.0.1:7004", 401},
		{"nobody listens", "10.77.0.1:7003", 503},
		{"a port of no service", "10.77.0.1:7999", 400},
		{"another node's endpoint", "10.77.0.2:7001", 400},
		{"no address", "web.mesh.internal:80", 400},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := l.in(t).connect(b, on(envoyConnect), tc.authority); got != tc.want {
				t.Errorf("CONNECT %s was answered %d, want %d", tc.authority, got, tc.want)
			}
		})
	}
}

// ask calls a server that says whom it sees. It returns the client's address.
func (l *lab) ask(from *testnet.Host, at netip.AddrPort) (string, workload.Seen) {
	l.Helper()
	c, err := from.DialContext(l.ctx(), "tcp", at.String())
	if err != nil {
		l.Fatal(err)
	}
	defer c.Close()
	fmt.Fprintln(c, "hello")
	line, err := bufio.NewReader(c).ReadBytes('\n')
	if err != nil {
		l.Fatal(err)
	}
	var s workload.Seen
	if err := json.Unmarshal(line, &s); err != nil {
		l.Fatal(err)
	}
	return c.LocalAddr().String(), s
}

// connect sends a CONNECT of HTTP/1.1 and returns the status.
func (l *lab) connect(from *testnet.Host, at netip.AddrPort, authority string) int {
	l.Helper()
	c, err := from.DialContext(l.ctx(), "tcp", at.String())
	if err != nil {
		l.Fatal(err)
	}
	defer c.Close()
	fmt.Fprintf(c, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n", authority, authority)
	resp, err := http.ReadResponse(bufio.NewReader(c), &http.Request{Method: http.MethodConnect})
	if err != nil {
		l.Fatal(err)
	}
	return resp.StatusCode
}
