// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"crypto/tls"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/meshproxy/meshproxy/tests/meshnode"
	"github.com/meshproxy/meshproxy/tests/peers/credentials"
	"github.com/meshproxy/meshproxy/tests/peers/rawh2"
	"github.com/meshproxy/meshproxy/tests/testnet"
)

// shake makes a tunnel as far as TLS, and returns what the server says about
// it: in TLS 1.3 its opinion of the client comes after the handshake.
func (l *lab) shake(from *testnet.Host, config *tls.Config) (tls.ConnectionState, error) {
	l.Helper()
	raw, err := from.DialContext(l.ctx(), "tcp", nodeTunnels)
	if err != nil {
		l.Fatal(err)
	}
	defer raw.Close()
	c := tls.Client(raw, config)
	if err := c.HandshakeContext(l.ctx()); err != nil {
		return tls.ConnectionState{}, err
	}
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		l.Fatal(err)
	}
	_, err = c.Read(make([]byte, 1)) // of its SETTINGS, which it sends unasked
	return c.ConnectionState(), err
}

// TestTLSClients: whom the tunnels' listener takes, with crypto/tls as client.
func TestTLSClients(t *testing.T) {
	l := foreignLab(t)
	b, web := l.net.Host("b"), meshnode.Identity("web")
	peer := l.credentials("peer")
	good := func(change func(*tls.Config)) *tls.Config {
		c := peer.Client("", web)
		if change != nil {
			change(c)
		}
		return c
	}
	otherCA := filepath.Join(l.net.Dir(), "other-ca")
	must(t, meshnode.InitCA(otherCA))
	leafOf := func(dir, id string) tls.Certificate {
		c, err := credentials.Issue(dir, id)
		must(t, err)
		return c.Leaf
	}

	for _, tc := range []struct {
		name   string
		config *tls.Config
		alert  string // "" is accepted
	}{
		{"as it should be", good(nil), ""},
		{"by name", peer.Client(serverName("web"), web), ""},
		{"classical key exchange", good(func(c *tls.Config) { c.CurvePreferences = []tls.CurveID{tls.X25519} }), ""},
		{"h2 beside others", good(func(c *tls.Config) { c.NextProtos = []string{"http/1.1", "h2"} }), ""},
		{"TLS 1.2", good(func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12 }), "protocol version not supported"},
		{"no certificate", good(func(c *tls.Config) { c.Certificates = nil }), "certificate required"},
		{"another CA", good(func(c *tls.Config) {
			c.Certificates = []tls.Certificate{leafOf(otherCA, meshnode.Identity("peer"))}
		}), "bad certificate"},
		{"another trust domain", good(func(c *tls.Config) {
			c.Certificates = []tls.Certificate{leafOf(l.caDir, "spiffe://other.example/ns/default/sa/peer")}
		}), "bad certificate"},
		{"no identity", good(func(c *tls.Config) {
			c.Certificates = []tls.Certificate{leafOf(l.caDir, "https://mesh.internal/peer")}
		}), "bad certificate"},
		{"no ALPN", good(func(c *tls.Config) { c.NextProtos = nil }), "bad certificate"},
		{"another protocol", good(func(c *tls.Config) { c.NextProtos = []string{"h3"} }), "no application protocol"},
		// crypto/tls goes on without ALPN when there is nothing else.
		{"HTTP/1.1", good(func(c *tls.Config) { c.NextProtos = []string{"http/1.1"} }), "bad certificate"},
		{"unknown server name", peer.Client("web.mesh.internal", web), "unrecognized name"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			state, err := l.in(t).shake(b, tc.config)
			if tc.alert == "" {
				if err != nil || state.Version != tls.VersionTLS13 || state.NegotiatedProtocol != "h2" || state.DidResume {
					t.Errorf("%v: %+v", err, state)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), "remote error: tls: "+tc.alert) {
				t.Errorf("got %v, want the alert %q", err, tc.alert)
			}
		})
	}
	t.Run("post-quantum key exchange", func(t *testing.T) {
		state, err := l.in(t).shake(b, good(nil))
		if err != nil || state.CurveID != tls.X25519MLKEM768 {
			t.Errorf("negotiated %v, %v", state.CurveID, err)
		}
	})
	t.Run("a name gives no more than its workload", func(t *testing.T) {
		l := l.in(t)
		h, err := rawh2.Client(l.tls(b, peer.Client(serverName("closed"), meshnode.Identity("closed"))))
		must(t, err)
		must(t, h.Connect(1, webAuthority))
		wantStatus(t, l, h, 1, "400")
	})
}

// TestDefaultIdentity: whom clients meet that name nobody, as ztunnel's do not.
func TestDefaultIdentity(t *testing.T) {
	l := newLab(t, foreignMesh, "a", "b")
	n := l.start("a", "")
	b, peer := l.net.Host("b"), l.credentials("peer")
	meets := func(name, workload string) error {
		_, err := l.shake(b, peer.Client(name, meshnode.Identity(workload)))
		return err
	}
	if err := meets("", "web"); err == nil || !strings.Contains(err.Error(), "unrecognized name") {
		t.Errorf("several workloads and no default: %v, want the alert unrecognized name", err)
	}
	for _, w := range []string{"web", "closed", "front"} {
		if err := meets(serverName(w), w); err != nil {
			t.Errorf("%s by its name: %v", w, err)
		}
	}
	text, err := os.ReadFile(n.ConfigPath())
	must(t, err)
	for _, standard := range []string{"closed", meshnode.Identity("web")} {
		changed := strings.Replace(string(text), "provider: embedded", "provider: embedded\n  default: "+standard, 1)
		must(t, os.WriteFile(n.ConfigPath(), []byte(changed), 0o600))
		must(t, n.Signal(syscall.SIGHUP))
		l.eventually("default identity "+standard, func() error { return meets("", filepath.Base(standard)) })
	}
}

// TestOpenSSL: the same listener as OpenSSL sees it.
func TestOpenSSL(t *testing.T) {
	l := foreignLab(t)
	b := l.net.Host("b")
	files, err := l.credentials("peer").Write(filepath.Join(l.net.Dir(), "openssl"))
	must(t, err)
	program, err := exec.LookPath("openssl")
	must(t, err)
	client := func(t *testing.T, args ...string) string {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		args = append([]string{"s_client", "-connect", nodeTunnels, "-CAfile", files.Roots, "-verify_return_error", "-brief"}, args...)
		p, err := b.Start(testnet.Command{Name: "openssl", Path: program, Args: args})
		must(t, err)
		_ = p.Wait(ctx) // the status says less than the text
		return p.Stdout().String() + p.Stderr().String()
	}
	leaf := []string{"-cert", files.Cert, "-key", files.Key}
	for _, tc := range []struct {
		name string
		args []string
		want []string
	}{
		{"without SNI", append(leaf, "-noservername", "-alpn", "h2"), []string{"CONNECTION ESTABLISHED", "TLSv1.3", "Verification: OK"}},
		{"with SNI", append(leaf, "-servername", serverName("closed"), "-alpn", "h2"), []string{"CONNECTION ESTABLISHED", "TLSv1.3", "Verification: OK"}},
		{"unknown server name", append(leaf, "-servername", "web.mesh.internal", "-alpn", "h2"), []string{"unrecognized name"}},
		{"TLS 1.2", append(leaf, "-noservername", "-alpn", "h2", "-tls1_2"), []string{"alert protocol version"}},
		{"another protocol", append(leaf, "-noservername", "-alpn", "h3"), []string{"no application protocol"}},
		// These hear of it after the handshake, and so wait for the end.
		{"no certificate", []string{"-noservername", "-alpn", "h2", "-ign_eof"}, []string{"alert certificate required"}},
		{"no ALPN", append(leaf, "-noservername", "-ign_eof"), []string{"alert bad certificate"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			out := client(t, tc.args...)
			for _, want := range tc.want {
				if !strings.Contains(out, want) {
					t.Errorf("said nothing of %q:\n%s", want, out)
				}
			}
		})
	}
}
