// SPDX-License-Identifier: Apache-2.0

package consul_test

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/meshproxy/meshproxy/discovery"
	"github.com/meshproxy/meshproxy/discovery/mesh"
	peer "github.com/meshproxy/meshproxy/tests/peers/consul"
)

// views stands between a source and a real agent, and has its views lag: what it
// says about instances is what it said before, or that it has heard nothing yet.
type views struct {
	to *httputil.ReverseProxy

	mu     sync.Mutex
	before map[string]answer // by question
	lags   chan struct{}     // closed when they lag no longer; nil: they don't
	empty  bool
	begins chan struct{} // closed when they begin to lag
	asked  chan string   // paths that were asked for while they lagged
}

type answer struct {
	header http.Header
	body   []byte
}

func (v *views) lag(empty bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.lags, v.empty = make(chan struct{}), empty
	close(v.begins)
	v.begins = make(chan struct{})
}

func (v *views) catchUp() {
	v.mu.Lock()
	defer v.mu.Unlock()
	close(v.lags)
	v.lags = nil
}

func (v *views) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !strings.HasPrefix(r.URL.Path, "/v1/health/connect/") {
		v.to.ServeHTTP(w, r)
		return
	}
	q := r.URL.Query()
	wait, err := time.ParseDuration(q.Get("wait"))
	if err != nil {
		wait = 0
	}
	question := r.URL.Path + "?" + q.Get("filter")
	for {
		v.mu.Lock()
		lags, begins := v.lags, v.begins
		last := v.before[question]
		if v.empty && last.header != nil {
			last.header = last.header.Clone()
			last.header.Set("X-Consul-Index", "1")
			last.body = []byte("[]")
			if q.Get("index") != "1" {
				wait = 0 // who has waited hears it when the time is over
			}
		}
		v.mu.Unlock()
		if lags == nil || last.header == nil {
			if v.pass(w, r, begins, question) {
				return
			}
			continue
		}
		select {
		case v.asked <- r.URL.Path:
		default:
		}
		select {
		case <-lags:
			continue
		case <-r.Context().Done():
			return
		case <-time.After(wait):
		}
		for k, list := range last.header {
			w.Header()[k] = list
		}
		_, _ = w.Write(last.body) // who asked may be gone
		return
	}
}

// pass has the agent answer, unless its views begin to lag before it does.
func (v *views) pass(w http.ResponseWriter, r *http.Request, begins <-chan struct{}, question string) bool {
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	rec := httptest.NewRecorder()
	done := make(chan struct{})
	go func() {
		defer close(done)
		v.to.ServeHTTP(rec, r.WithContext(ctx))
	}()
	select {
	case <-done:
	case <-begins:
		cancel()
		<-done
		return false
	}
	if rec.Code == http.StatusOK {
		v.mu.Lock()
		v.before[question] = answer{rec.Header(), bytes.Clone(rec.Body.Bytes())}
		v.mu.Unlock()
	}
	for k, list := range rec.Header() {
		w.Header()[k] = list
	}
	w.WriteHeader(rec.Code)
	_, _ = io.Copy(w, rec.Body) // likewise
	return true
}

// startBehind is a source that asks an agent whose views may lag.
func startBehind(t *testing.T, s *peer.Server) (*following, *views) {
	t.Helper()
	v := &views{to: toAgent(t, s), before: make(map[string]answer), begins: make(chan struct{}), asked: make(chan string, 4096)}
	return startAsking(t, s, v), v
}

// behindServices are more than have blocking queries of their own.
const behindServices = 40

func servicesOnNode(t *testing.T, s *peer.Server, count int) {
	t.Helper()
	s.Register(t, &api.AgentServiceRegistration{ID: "web-1", Name: "web", Port: 8080})
	for i := range count {
		register(t, s, "n2", "10.0.0.2", churnedName(i), 5000+i, nil)
	}
}

// TestLateViews: what the agent's own views show long after its servers said that
// a check changed arrives all the same, and needs no other change.
func TestLateViews(t *testing.T) {
	t.Parallel()
	s := peer.Start(t, peer.Options{Dev: true, Node: "n1"})
	servicesOnNode(t, s, behindServices)
	f, v := startBehind(t, s)
	f.untilWithin("all services", func(u discovery.Update) bool { return inState(u, mesh.HealthHealthy) == behindServices })
	last := churnedName(behindServices - 1)
	for _, step := range []struct {
		state string
		want  int // that are healthy
	}{{api.HealthCritical, behindServices - 1}, {api.HealthPassing, behindServices}} {
		v.lag(false)
		status(t, s, "n2", "10.0.0.2", last, step.state)
		deadline := time.After(within)
		for asked := 0; asked < 4; { // it begins with one question, of a second
			select {
			case path := <-v.asked:
				if strings.HasSuffix(path, "/"+last) {
					asked++
				}
			case <-deadline:
				t.Fatalf("%s: asked %d times about a view that lags", step.state, asked)
			}
		}
		v.catchUp()
		f.untilWithin(step.state, func(u discovery.Update) bool { return inState(u, mesh.HealthHealthy) == step.want })
	}
}

// TestEmptyViews: an agent that subscribes anew says for a while that no service
// has an instance. What was known stays in force, and the status says why.
func TestEmptyViews(t *testing.T) {
	t.Parallel()
	for name, count := range map[string]int{"own queries": 3, "sweeps": behindServices} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := peer.Start(t, peer.Options{Dev: true, Node: "n1"})
			servicesOnNode(t, s, count)
			f, v := startBehind(t, s)
			all := func(u discovery.Update) bool { return inState(u, mesh.HealthHealthy) == count }
			f.untilWithin("all services", all)
			f.stays(all)
			v.lag(true)
			register(t, s, "n3", "10.0.0.3", "other", 7000, nil) // has all asked for
			f.until("the agent's trouble", func(_ discovery.Update, err error) bool {
				return err != nil && strings.Contains(err.Error(), "has not heard from its servers")
			})
			v.catchUp()
			f.untilWithin("other", func(u discovery.Update) bool {
				o := service(u, "other")
				return all(u) && o != nil && len(o.Endpoints) == 1
			})
		})
	}
}
