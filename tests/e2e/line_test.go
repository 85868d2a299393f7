// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/meshproxy/meshproxy/nodeproxy/admin/api"
	"github.com/meshproxy/meshproxy/tests/peers/credentials"
	"github.com/meshproxy/meshproxy/tests/testnet"
	"github.com/meshproxy/meshproxy/tests/workload"
)

// lineMesh has identities and server names as Consul gives them. On a there are
// two services behind the common port, one of which has a port of its own; on b
// is who calls them.
const lineMesh = `
authorization: {default: deny}
nodes: [{name: a, address: 10.77.0.1}, {name: b, address: 10.77.0.2}]
workloads:
  - {name: web, node: a, identity: "spiffe://mesh.internal/ns/default/dc/dc1/svc/web", match: [{cgroup: "{{.Cgroup "a" "web"}}"}]}
  - {name: api, node: a, identity: "spiffe://mesh.internal/ns/default/dc/dc1/svc/api", match: [{cgroup: "{{.Cgroup "a" "api"}}"}], mtlsPort: 20001}
  - {name: front, node: b, identity: "spiffe://mesh.internal/ns/default/dc/dc1/svc/front", match: [{cgroup: "{{.Cgroup "b" "front"}}"}]}
services:
  - name: web
    ports: [{port: 80}]
    endpoints: [{address: 10.77.0.1, port: 7001, node: a, workload: web, transport: mtls, tunnel: "10.77.0.1:20000", sni: web.default.dc1.internal.mesh.internal}]
  - name: api
    ports: [{port: 80}]
    endpoints: [{address: 10.77.0.1, port: 7002, node: a, workload: api, transport: mtls, tunnel: "10.77.0.1:20000", sni: v2.api.default.dc1.internal.mesh.internal}]
  - name: foreign
    ports: [{port: 80}]
    endpoints: [{address: 10.77.0.1, port: 7003, transport: mtls, tunnel: "10.77.0.1:21000", sni: foreign.default.dc1.internal.mesh.internal,
      identity: "spiffe://mesh.internal/ns/default/dc/dc1/svc/foreign"}]
policies:
  - {name: front-to-web, action: allow, from: [{identity: "{{.Front}}"}], to: [{workload: web}, {workload: api}]}
`

const frontID = "spiffe://mesh.internal/ns/default/dc/dc1/svc/front"

// Front is for templates: who is allowed in.
func (l *lab) Front() string { return frontID }

func consulID(service string) string {
	return "spiffe://mesh.internal/ns/default/dc/dc1/svc/" + service
}

// TestLines: two nodes, a mutual TLS connection for each stream between them.
func TestLines(t *testing.T) {
	l := newLab(t, lineMesh, "a", "b")
	a, b := l.net.Host("a"), l.net.Host("b")
	l.start("a", "listeners: {inboundMTLS: 20000}\n")
	front := l.start("b", "")
	k := &lane{app: l.listener(a, "web", "10.77.0.1:7001")}
	opener := l.opener(b, "front")
	k.dial = func() (net.Conn, error) { return opener.Dial("10.77.0.1:7001") }
	k.check(t)

	t.Run("the server sees its client", func(t *testing.T) {
		l := l.in(t)
		l.serve(a, "api", "-name", "api", "-tcp", "127.0.0.1:7002") // bound to loopback
		s := seen(t, l.dial(b, "front", "-address", "api:80", "-send", "hello"))
		if s.Server != "api" || host(t, s.Accepted) != "10.77.0.2" || s.Peer != s.Accepted {
			t.Errorf("%s saw %s and %s, want b's address", s.Server, s.Accepted, s.Peer)
		}
	})
	t.Run("account", func(t *testing.T) {
		l := l.in(t)
		c, s := k.open(t)
		pass(t, c, s, "hello")
		for node, want := range map[string]api.Connection{
			"b": {Direction: "outbound", Path: "mtls", Source: "front", Destination: "web", Service: "web"},
			"a": {Direction: "inbound", Path: "mtls", Source: "front", Destination: "web", Service: "web"},
		} {
			l.eventually("the connection on node "+node, func() error {
				list, err := l.nodes[node].Admin.Connections(l.ctx(), api.ConnectionFilter{})
				if err != nil {
					return err
				}
				if !slices.ContainsFunc(list.Connections, func(got api.Connection) bool {
					return got.Direction == want.Direction && got.Path == want.Path && got.Source == want.Source &&
						got.Destination == want.Destination && got.Service == want.Service && got.Sent == 5
				}) {
					return fmt.Errorf("no %+v among %+v", want, list.Connections)
				}
				return nil
			})
		}
	})
	t.Run("a policy that changes closes what is open", func(t *testing.T) {
		l := l.in(t)
		c, s := k.open(t)
		pass(t, c, s, "hello")
		denied := strings.ReplaceAll(l.mesh, "action: allow", "action: deny")
		l.writeMesh(denied)
		expectCut(t, "the connection", time.Now(), c, s)
		d := l.dial(b, "front", "-address", "web:80", "-send", "hello")
		if d.OK {
			t.Error("a denied client gets an answer")
		}
		l.writeMesh(strings.ReplaceAll(l.mesh, "action: deny", "action: allow"))
		l.eventually("allowed again", func() error {
			if d := l.dial(b, "front", "-address", "api:80", "-send", "hello"); !d.OK {
				return errors.New(d.Error)
			}
			return nil
		})
	})
	t.Run("a stopping client node lets go", func(t *testing.T) {
		must(t, front.Leave(l.in(t).ctx()))
	})
}

// TestLineClients: foreign clients of the ports for lines.
func TestLineClients(t *testing.T) {
	l := newLab(t, lineMesh, "a", "b")
	a, b := l.net.Host("a"), l.net.Host("b")
	node := l.start("a", "listeners: {inboundMTLS: 20000}\n")
	l.serve(a, "web", "-name", "web", "-tcp", "10.77.0.1:7001")
	l.serve(a, "api", "-name", "api", "-tcp", "10.77.0.1:7002")
	leaf, err := credentials.Issue(l.caDir, frontID)
	must(t, err)
	other, err := credentials.Issue(l.caDir, consulID("other"))
	must(t, err)
	const common, own = "10.77.0.1:20000", "10.77.0.1:20001"
	tls12 := func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12 }

	for _, tc := range []struct {
		name, at, sni string
		leaf          *credentials.Credentials
		change        func(*tls.Config)
		server        string // that answers; empty: none does
		alert         string
	}{
		{name: "by name", at: common, sni: "web.default.dc1.internal.mesh.internal", server: "web"},
		{name: "TLS 1.2", at: common, sni: "web.default.dc1.internal.mesh.internal", change: tls12, server: "web"},
		{name: "another by name", at: common, sni: "api.default.dc1.internal.mesh.internal", server: "api"},
		{name: "a subset", at: common, sni: "v1.web.default.dc1.internal.mesh.internal", server: "web"},
		{name: "ALPN h2 means nothing", at: common, sni: "web.default.dc1.internal.mesh.internal", server: "web", change: func(c *tls.Config) {
			c.NextProtos = []string{"h2"}
		}},
		{name: "a port of its own", at: own, server: "api"},
		{name: "a port of its own, TLS 1.2", at: own, change: tls12, server: "api"},
		{name: "a port of its own, by the name of another", at: own, sni: "web.default.dc1.internal.mesh.internal", alert: "unrecognized name"},
		{name: "a port of its own, by its name", at: own, sni: "api.default.dc1.internal.mesh.internal", server: "api"},
		{name: "no name", at: common, alert: "unrecognized name"},
		{name: "unknown name", at: common, sni: "gone.default.dc1.internal.mesh.internal", alert: "unrecognized name"},
		{name: "another datacenter", at: common, sni: "web.default.dc2.internal.mesh.internal", alert: "unrecognized name"},
		{name: "denied", at: common, sni: "web.default.dc1.internal.mesh.internal", leaf: other},
		{name: "denied, TLS 1.2", at: common, sni: "web.default.dc1.internal.mesh.internal", leaf: other, change: tls12},
		{name: "no certificate", at: common, sni: "web.default.dc1.internal.mesh.internal", alert: "certificate required", change: func(c *tls.Config) {
			c.Certificates = nil
		}},
		{name: "TLS 1.1", at: common, sni: "web.default.dc1.internal.mesh.internal", alert: "protocol version not supported", change: func(c *tls.Config) {
			c.MinVersion, c.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l, from := l.in(t), leaf
			if tc.leaf != nil {
				from = tc.leaf
			}
			config := from.Client(tc.sni, consulID(tc.server))
			config.NextProtos, config.MinVersion = nil, 0
			if tc.server == "" {
				config.VerifyConnection = nil
			}
			if tc.change != nil {
				tc.change(config)
			}
			text := "hello"
			if tc.alert != "" {
				text = "" // in TLS 1.3 it would cross the alert, and lose it
			}
			s, state, err := l.askTLS(b, tc.at, config, text)
			switch {
			case tc.alert != "":
				if err == nil || !strings.Contains(err.Error(), "remote error: tls: "+tc.alert) {
					t.Errorf("got %v, want the alert %q", err, tc.alert)
				}
			case tc.server == "":
				if !errors.Is(err, io.EOF) {
					t.Errorf("got %+v, %v, want the end", s, err)
				}
			case err != nil || s.Server != tc.server:
				t.Errorf("got %+v, %v", s, err)
			case state.NegotiatedProtocol != "" || state.DidResume:
				t.Errorf("negotiated %q, resumed %v", state.NegotiatedProtocol, state.DidResume)
			}
		})
	}
	t.Run("refusals are counted and logged", func(t *testing.T) {
		l := l.in(t)
		l.eventually("log of an unknown name", func() error {
			if !strings.Contains(node.Stderr().String(), `gone.default.dc1.internal.mesh.internal`) {
				return errors.New("nothing of it")
			}
			return nil
		})
		for _, want := range []string{`reason="identity_mismatch"`, `reason="policy_denied"`} {
			l.eventually("metrics", func() error {
				_, text, err := l.get(a, "http://127.0.0.1:15020/metrics")
				if err == nil && !strings.Contains(text, want) {
					err = fmt.Errorf("there is no %s", want)
				}
				return err
			})
		}
	})
	t.Run("OpenSSL", func(t *testing.T) {
		files, err := leaf.Write(filepath.Join(l.net.Dir(), "openssl"))
		must(t, err)
		for _, version := range []string{"-tls1_2", "-tls1_3"} {
			out := l.in(t).openssl(b, "hello\n", "s_client", "-connect", common, "-quiet", "-no_ign_eof", version, "-verify_return_error",
				"-servername", "web.default.dc1.internal.mesh.internal", "-CAfile", files.Roots, "-cert", files.Cert, "-key", files.Key)
			if !strings.Contains(out, `"server":"web"`) {
				t.Errorf("%s: %s", version, out)
			}
		}
	})
	t.Run("a port that nobody has any more", func(t *testing.T) {
		l := l.in(t)
		l.writeMesh(strings.Replace(l.mesh, "mtlsPort: 20001", "mtlsPort: 20002", 1))
		config := leaf.Client("", consulID("api"))
		config.NextProtos, config.MinVersion = nil, 0
		l.eventually("the new port", func() error {
			_, _, err := l.askTLS(b, "10.77.0.1:20002", config, "hello")
			return err
		})
		l.eventually("the old port's end", func() error {
			c, err := b.DialContext(l.ctx(), "tcp", own)
			if err != nil {
				return nil
			}
			c.Close()
			return errors.New("it is open")
		})
	})
}

// TestLineServers: foreign servers, with crypto/tls and OpenSSL, that a node
// opens lines to.
func TestLineServers(t *testing.T) {
	l := newLab(t, lineMesh, "a", "b")
	a, b := l.net.Host("a"), l.net.Host("b")
	l.start("b", "")
	issue := func(service string) *credentials.Credentials {
		c, err := credentials.Issue(l.caDir, consulID(service))
		must(t, err)
		return c
	}
	files, err := issue("foreign").Write(filepath.Join(l.net.Dir(), "foreign"))
	must(t, err)
	wrong, err := issue("wrong").Write(filepath.Join(l.net.Dir(), "wrong"))
	must(t, err)
	program, err := exec.LookPath("openssl")
	must(t, err)

	for _, tc := range []struct {
		name    string
		files   credentials.Files
		args    []string
		refused string // as the client's node says it
	}{
		{"TLS 1.3", files, []string{"-tls1_3"}, ""},
		{"TLS 1.2", files, []string{"-tls1_2"}, ""},
		{"without tickets", files, []string{"-num_tickets", "0"}, ""},
		{"another identity", wrong, nil, "identity_mismatch"},
		{"a cipher of TLS 1.2 without AEAD", files, []string{"-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-SHA"}, "tls_handshake"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l := l.in(t)
			p, err := a.Start(testnet.Command{Name: "openssl", Path: program, Args: append([]string{
				"s_server", "-accept", "10.77.0.1:21000", "-cert", tc.files.Cert, "-key", tc.files.Key, "-CAfile", tc.files.Roots,
				"-Verify", "1", "-verify_return_error", "-rev",
			}, tc.args...)})
			must(t, err)
			defer func() {
				must(t, p.Kill())
				<-p.Done() // its port is the next one's
			}()
			_, err = p.Stdout().WaitLine(l.ctx(), func(line string) bool { return strings.Contains(line, "ACCEPT") })
			must(t, err)
			d := l.dial(b, "front", "-address", "foreign:80", "-send", "hello")
			if tc.refused == "" {
				if strings.TrimSpace(d.Reply) != "olleh" {
					t.Errorf("%+v: %s", d, p.Stderr())
				}
				return
			}
			if d.Reply != "" {
				t.Errorf("got %+v", d)
			}
			// The client hears of it first.
			_, err = l.nodes["b"].Stdout().WaitString(l.ctx(), "reason="+tc.refused)
			must(t, err)
		})
	}
}

// askTLS sends a line, if any, to a server that says whom it sees.
func (l *lab) askTLS(from *testnet.Host, at string, config *tls.Config, text string) (s workload.Seen, state tls.ConnectionState, err error) {
	l.Helper()
	raw, err := from.DialContext(l.ctx(), "tcp", at)
	if err != nil {
		return s, state, err
	}
	defer raw.Close()
	must(l.T, raw.SetDeadline(time.Now().Add(patience)))
	c := tls.Client(raw, config)
	if err := c.Handshake(); err != nil {
		return s, state, err
	}
	if text != "" {
		if _, err := fmt.Fprintln(c, text); err != nil {
			return s, state, err
		}
		if err := c.CloseWrite(); err != nil {
			return s, state, err
		}
	}
	answer, err := io.ReadAll(c)
	if err != nil {
		return s, state, err
	}
	if len(answer) == 0 {
		return s, state, io.EOF
	}
	return s, c.ConnectionState(), json.Unmarshal(bytes.TrimSpace(answer), &s)
}

// openssl runs one of its commands with an input, and returns what it says.
func (l *lab) openssl(on *testnet.Host, input string, args ...string) string {
	l.Helper()
	program, err := exec.LookPath("openssl")
	must(l.T, err)
	theirs, ours, err := os.Pipe()
	must(l.T, err)
	defer ours.Close()
	p, err := on.Start(testnet.Command{Name: "openssl", Path: program, Args: args, Stdin: theirs})
	must(l.T, errors.Join(err, theirs.Close()))
	_, err = ours.WriteString(input)
	must(l.T, err)
	// The input stays open until there is an answer.
	_, _ = p.Stdout().WaitLine(l.ctx(), func(string) bool { return true })
	must(l.T, ours.Close())
	_ = p.Wait(l.ctx())
	return p.Stdout().String() + p.Stderr().String()
}
