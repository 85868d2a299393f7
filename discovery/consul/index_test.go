// SPDX-License-Identifier: Apache-2.0

package consul_test

import (
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/meshproxy/meshproxy/discovery"
	"github.com/meshproxy/meshproxy/discovery/consul"
	"github.com/meshproxy/meshproxy/discovery/consulagent"
	peer "github.com/meshproxy/meshproxy/tests/peers/consul"
)

// toAgent passes questions on to a real agent.
func toAgent(t *testing.T, s *peer.Server) *httputil.ReverseProxy {
	t.Helper()
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	p := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: s.HTTPAddr.String()})
	p.Transport = transport
	p.ErrorHandler = func(w http.ResponseWriter, _ *http.Request, _ error) { w.WriteHeader(http.StatusBadGateway) }
	return p
}

// startAsking is a source that asks somebody in place of the agent.
func startAsking(t *testing.T, s *peer.Server, instead http.Handler) *following {
	t.Helper()
	h := httptest.NewServer(instead)
	t.Cleanup(h.Close)
	o := optionsFor(t, s, "")
	agent, err := consulagent.New(consulagent.Settings{Address: strings.TrimPrefix(h.URL, "http://")}, consul.MaxConnections)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(agent.Close)
	o.Agent = agent
	return start(t, o)
}

// between is a source whose answers from a real agent go through somebody who
// changes them.
func between(t *testing.T, s *peer.Server, change func(*http.Response)) *following {
	t.Helper()
	p := toAgent(t, s)
	p.ModifyResponse = func(r *http.Response) error {
		change(r)
		return nil
	}
	return startAsking(t, s, p)
}

// TestWrongIndexes: whatever the agent's indexes do, the view is right and
// follows what changes.
func TestWrongIndexes(t *testing.T) {
	t.Parallel()
	var turn atomic.Int64
	for name, index := range map[string]func(right int64) int64{
		"none":      func(int64) int64 { return 0 },
		"one":       func(int64) int64 { return 1 },
		"backwards": func(right int64) int64 { return max(1, right-turn.Add(1)) },
	} {
		t.Run(name, func(t *testing.T) {
			s := peer.Start(t, peer.Options{Dev: true, Node: "n1"})
			register(t, s, "n2", "10.0.0.2", "db", 5432, nil)
			s.Register(t, &api.AgentServiceRegistration{ID: "web-1", Name: "web", Port: 8080})
			f := between(t, s, func(r *http.Response) {
				if right, err := strconv.ParseInt(r.Header.Get("X-Consul-Index"), 10, 64); err == nil {
					r.Header.Set("X-Consul-Index", strconv.FormatInt(index(right), 10))
				}
			})
			f.until("web and db", hasBoth)
			f.catchesUp(s)
		})
	}
}

// TestNoIndex: an agent that gives no index is not asked without a pause.
func TestNoIndex(t *testing.T) {
	t.Parallel()
	s := peer.Start(t, peer.Options{Dev: true, Node: "n1"})
	register(t, s, "n2", "10.0.0.2", "db", 5432, nil)
	s.Register(t, &api.AgentServiceRegistration{ID: "web-1", Name: "web", Port: 8080})
	var mu sync.Mutex
	var last time.Time
	var gaps []time.Duration
	f := between(t, s, func(r *http.Response) {
		r.Header.Del("X-Consul-Index")
		if r.Request.URL.Path != "/v1/config/mesh" {
			return
		}
		mu.Lock()
		defer mu.Unlock()
		now := time.Now()
		if !last.IsZero() {
			gaps = append(gaps, now.Sub(last))
		}
		last = now
	})
	f.until("web and db", hasBoth)
	f.catchesUp(s)
	f.until("two pauses", func(discovery.Update, error) bool {
		mu.Lock()
		defer mu.Unlock()
		return len(gaps) >= 2
	})
	mu.Lock()
	defer mu.Unlock()
	for _, gap := range gaps {
		if gap < time.Second {
			t.Errorf("asked again after %v", gap)
		}
	}
}

// TestSlowAnswers: an agent that takes its time delays the view, and nothing
// else.
func TestSlowAnswers(t *testing.T) {
	t.Parallel()
	s := peer.Start(t, peer.Options{Dev: true, Node: "n1"})
	register(t, s, "n2", "10.0.0.2", "db", 5432, nil)
	s.Register(t, &api.AgentServiceRegistration{ID: "web-1", Name: "web", Port: 8080})
	f := between(t, s, func(r *http.Response) {
		select {
		case <-time.After(time.Second):
		case <-r.Request.Context().Done():
		}
	})
	f.until("web and db", hasBoth)
	f.stays(func(u discovery.Update) bool { return hasBoth(u, nil) })
	f.catchesUp(s)
}
