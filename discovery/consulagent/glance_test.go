// SPDX-License-Identifier: Apache-2.0

package consulagent

import (
	"context"
	"encoding/pem"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
)

// glanceServer answers question /v1/n with index n, which ACLs have filtered if n
// ends in 5; it does not know /v1/7.
type glanceServer struct {
	t     *testing.T
	query string // that all questions must have
	token string

	mu          sync.Mutex
	connections map[string]bool
	last        string // the path after which it hangs up
	length      int    // of an answer
}

func (s *glanceServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.connections[r.RemoteAddr] = true
	if r.URL.RawQuery != s.query || r.Header.Get(header) != s.token {
		s.t.Errorf("asked %s with token %q, want query %s and token %q", r.URL, r.Header.Get(header), s.query, s.token)
	}
	if r.ProtoMajor != 1 {
		s.t.Errorf("asked by %s", r.Proto)
	}
	n := strings.TrimPrefix(r.URL.Path, "/v1/")
	w.Header().Set(indexHeader, n)
	if strings.HasSuffix(n, "5") {
		w.Header().Set(filteredHeader, "true")
	}
	if r.URL.Path == s.last {
		w.Header().Set("Connection", "close")
	}
	if n == "7" {
		w.WriteHeader(http.StatusNotFound)
	}
	fmt.Fprint(w, strings.Repeat("x", s.length))
}

func TestGlance(t *testing.T) {
	options := &api.QueryOptions{AllowStale: true, Filter: "Meta.v == 2", Namespace: "team", WaitIndex: 1, WaitTime: time.Millisecond}
	s := &glanceServer{
		t: t, token: "secret", length: 20_000, connections: make(map[string]bool),
		query: "dc=far&filter=Meta.v+%3D%3D+2&index=1&ns=team&stale=&wait=1ms",
	}
	plain := httptest.NewServer(s)
	defer plain.Close()
	secure := httptest.NewUnstartedServer(s)
	secure.EnableHTTP2 = true
	secure.StartTLS()
	defer secure.Close()
	dir := t.TempDir()
	ca := filepath.Join(dir, "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: secure.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	local, err := net.Listen("unix", filepath.Join(dir, "agent.sock"))
	if err != nil {
		t.Fatal(err)
	}
	socket := &http.Server{Handler: s}
	go func() { _ = socket.Serve(local) }()
	defer socket.Close()

	const count = 3*glanceDepth + 5
	questions := make([]Question, count)
	for i := range questions {
		questions[i] = Question{Path: fmt.Sprintf("/v1/%d", i), Options: options}
	}
	for _, settings := range []Settings{
		{Address: plain.URL},
		{Address: "unix://" + local.Addr().String()},
		{Address: secure.URL, CAFile: ca},
	} {
		t.Run(settings.Address[:5], func(t *testing.T) {
			settings.Token, settings.Datacenter, settings.Namespace = "secret", "far", "another"
			agent, err := New(settings, 1)
			if err != nil {
				t.Fatal(err)
			}
			defer agent.Close()
			clear(s.connections)
			next := 0
			err = agent.Glance(t.Context(), questions, func(i int, a Answer) {
				want := Answer{http.StatusOK, uint64(next), strings.HasSuffix(fmt.Sprint(next), "5")}
				if next == 7 {
					want.Status = http.StatusNotFound
				}
				if i != next || a != want {
					t.Errorf("answer %d is %+v, want that of %d, %+v", i, a, next, want)
				}
				next++
			})
			if err != nil || next != count {
				t.Errorf("%d of %d answers: %v", next, count, err)
			}
			if len(s.connections) != 1 {
				t.Errorf("%d connections", len(s.connections))
			}
		})
	}
}

// TestGlanceEnds: an agent that hangs up, or does not answer.
func TestGlanceEnds(t *testing.T) {
	// Whatever it has answered has arrived when it hangs up, read or not.
	s := &glanceServer{t: t, connections: make(map[string]bool), last: "/v1/40", length: 100, query: "index=1&wait=1ms"}
	server := httptest.NewServer(s)
	defer server.Close()
	questions := make([]Question, 100)
	for i := range questions {
		questions[i] = Question{Path: fmt.Sprintf("/v1/%d", i), Options: &api.QueryOptions{WaitIndex: 1, WaitTime: time.Millisecond}}
	}
	agent, err := New(Settings{Address: server.URL}, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer agent.Close()
	answers := 0
	if err := agent.Glance(t.Context(), questions, func(int, Answer) { answers++ }); err == nil || answers != 40 {
		t.Errorf("%d answers, %v; want those before the connection ended", answers, err)
	}

	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	var taken atomic.Pointer[net.Conn]
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		if c, err := ln.Accept(); err == nil {
			taken.Store(&c)
			cancel() // it hangs, and who asks has had enough
		}
	}()
	mute, err := New(Settings{Address: ln.Addr().String()}, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer mute.Close()
	if err := mute.Glance(ctx, questions, func(int, Answer) { t.Error("an answer from nobody") }); err == nil {
		t.Error("no error")
	}
	if c := taken.Load(); c != nil {
		_ = (*c).Close()
	}
	if err := mute.Glance(ctx, questions, nil); err == nil {
		t.Error("connected after the end")
	}
}
