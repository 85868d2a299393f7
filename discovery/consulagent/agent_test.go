// SPDX-License-Identifier: Apache-2.0

package consulagent

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestSettings(t *testing.T) {
	for _, tt := range []struct {
		name     string
		settings Settings
		want     string // of the error; empty: none
	}{
		{"host", Settings{Address: "127.0.0.1:8500"}, ""},
		{"IPv6", Settings{Address: "[::1]:8500"}, ""},
		{"http", Settings{Address: "http://consul.internal:8500/"}, ""},
		{"https", Settings{Address: "https://consul.internal:8501", CAFile: "/ca.pem"}, ""},
		{"socket", Settings{Address: "unix:///run/consul/http.sock"}, ""},
		{"no port", Settings{Address: "127.0.0.1"}, "no host with a port"},
		{"path", Settings{Address: "http://127.0.0.1:8500/v1"}, "no host with a port"},
		{"relative socket", Settings{Address: "unix://consul.sock"}, "no host with a port"},
		{"other scheme", Settings{Address: "grpc://127.0.0.1:8502"}, "no host with a port"},
		{"user", Settings{Address: "http://me:secret@127.0.0.1:8500"}, "no host with a port"},
		{"TLS over http", Settings{Address: "127.0.0.1:8500", CAFile: "/ca.pem"}, "is not https://"},
		{"half a pair", Settings{Address: "https://127.0.0.1:8501", CertFile: "/a.pem"}, "go together"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := tt.settings.Validate()
			if got := fmt.Sprint(err); (err == nil) != (tt.want == "") || !strings.Contains(got, tt.want) {
				t.Errorf("error %v, want %q", err, tt.want)
			}
		})
	}
}

// serve answers like an agent whose leader is the token that it got.
func serve(t *testing.T, l net.Listener) {
	t.Helper()
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%q", strings.Join(r.Header.Values(header), "+"))
	}))
	_ = s.Listener.Close()
	s.Listener = l
	s.Start()
	t.Cleanup(s.Close)
}

func ask(t *testing.T, a *Agent) string {
	t.Helper()
	got, err := a.Status().LeaderWithQueryOptions((&api.QueryOptions{}).WithContext(t.Context()))
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func open(t *testing.T, s Settings) *Agent {
	t.Helper()
	a, err := New(s, 2)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Close)
	return a
}

// TestToken: the file wins over the environment and is followed.
func TestToken(t *testing.T) {
	t.Setenv("CONSUL_HTTP_TOKEN", "environment")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	serve(t, l)
	at := l.Addr().String()
	if got := ask(t, open(t, Settings{Address: at})); got != "" {
		t.Errorf("token %q without one configured", got)
	}
	if got := ask(t, open(t, Settings{Address: at, Token: "fixed"})); got != "fixed" {
		t.Errorf("token %q, want fixed", got)
	}
	path := filepath.Join(t.TempDir(), "token")
	if _, err := New(Settings{Address: at, TokenFile: path}, 2); err == nil {
		t.Error("no error without the file")
	}
	write := func(text string) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("first\n")
	a := open(t, Settings{Address: at, TokenFile: path})
	if got := ask(t, a); got != "first" {
		t.Errorf("token %q, want first", got)
	}
	write("the second\n")
	if got := ask(t, a); got != "the second" {
		t.Errorf("token %q, want the second", got)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if got := ask(t, a); got != "the second" {
		t.Errorf("token %q while the file is away, want the second", got)
	}
}

func TestSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "http.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	serve(t, l)
	if got := ask(t, open(t, Settings{Address: "unix://" + path, Token: "t"})); got != "t" {
		t.Errorf("token %q, want t", got)
	}
}

// TestRefusals has texts of Consul 1.22.
func TestRefusals(t *testing.T) {
	for _, tt := range []struct {
		err              error
		refused, limited bool
		rule             string
	}{
		{
			api.StatusError{Code: 403, Body: `Permission denied: token with AccessorID '0d2b7008-4a73-3ca7-ce4c-dd378735279c' lacks permission 'service:write' on "web"`},
			true, false, `service "web" { policy = "write" }`,
		},
		{
			api.StatusError{Code: 403, Body: `Permission denied: anonymous token lacks permission 'intention:read' on "part/space/web". The anonymous token is used implicitly when a request does not specify a token.`},
			true, false, `service "web" { intentions = "read" }`,
		},
		{api.StatusError{Code: 403, Body: `Permission denied: token with AccessorID 'x' lacks permission 'operator:write'`}, true, false, `operator = "write"`},
		{api.StatusError{Code: 403, Body: "ACL not found"}, true, false, ""},
		{api.StatusError{Code: 500, Body: "rpc error making call: ACL not found"}, true, false, ""},
		{api.StatusError{Code: 500, Body: "Rate limit reached, try again later"}, false, true, ""},
		{fmt.Errorf("get leaf: %w", api.StatusError{Code: 429, Body: ""}), false, true, ""},
		{api.StatusError{Code: 500, Body: "No cluster leader"}, false, false, ""},
		{net.ErrClosed, false, false, ""},
		{nil, false, false, ""},
	} {
		if got := Refused(tt.err); got != tt.refused {
			t.Errorf("%v: refused %v", tt.err, got)
		}
		if got := RateLimited(tt.err); got != tt.limited {
			t.Errorf("%v: rate limited %v", tt.err, got)
		}
		if got := Rule(tt.err); got != tt.rule {
			t.Errorf("%v: rule %s, want %s", tt.err, got, tt.rule)
		}
	}
}

// TestUnless: an answer that is known is not decoded, and the connection is used
// again.
func TestUnless(t *testing.T) {
	var header http.Header
	connections := make(map[string]bool)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		connections[r.RemoteAddr] = true
		if r.Header.Get("Accept-Encoding") != "" {
			t.Errorf("compression asked for: %q", r.Header.Get("Accept-Encoding"))
		}
		for name, values := range header {
			w.Header()[name] = values
		}
		fmt.Fprintf(w, "%q", strings.Repeat("x", 100_000))
	}))
	defer server.Close()
	agent, err := New(Settings{Address: server.URL}, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer agent.Close()
	for _, tt := range []struct {
		name   string
		ctx    context.Context
		header http.Header
		spared bool
	}{
		{"known", Unless(t.Context(), 7), http.Header{indexHeader: {"7"}}, true},
		{"another index", Unless(t.Context(), 7), http.Header{indexHeader: {"8"}}, false},
		{"no index", Unless(t.Context(), 7), nil, false},
		{"something left out", Unless(t.Context(), 7), http.Header{indexHeader: {"7"}, filteredHeader: {"true"}}, false},
		{"nothing left out", Unless(t.Context(), 7), http.Header{indexHeader: {"7"}, filteredHeader: {"false"}}, true},
		{"late enough", UnlessAfter(t.Context(), 7, time.Now().Add(-time.Hour)), http.Header{indexHeader: {"7"}}, true},
		{"too early", UnlessAfter(t.Context(), 7, time.Now().Add(time.Hour)), http.Header{indexHeader: {"7"}}, false},
		{"not known", t.Context(), http.Header{indexHeader: {"7"}}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			header = tt.header
			got := "untouched"
			if _, err := agent.Raw().Query("/v1/anything", &got, (&api.QueryOptions{}).WithContext(tt.ctx)); err != nil {
				t.Fatal(err)
			}
			if spared := got == "untouched"; spared != tt.spared {
				t.Errorf("%d bytes decoded, want none: %t", len(got), tt.spared)
			}
		})
	}
	if len(connections) != 1 {
		t.Errorf("%d connections", len(connections))
	}
}
