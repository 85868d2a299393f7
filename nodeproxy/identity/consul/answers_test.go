// SPDX-License-Identifier: Apache-2.0

package consul

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/meshproxy/meshproxy/discovery/consulagent"
	"github.com/meshproxy/meshproxy/nodeproxy/identity"
	"github.com/meshproxy/meshproxy/nodeproxy/identity/internal/identitytest"
)

// askedFor is a query for roots that the agent's stand-in has seen, and where
// its answer is to go.
type askedFor struct {
	index  string
	answer chan<- answer
}

type answer struct {
	index string
	body  any // as JSON; a text as it is
}

// standIn plays an agent with answers that no real one gives on request.
func standIn(t *testing.T) (settings consulagent.Settings, asked <-chan askedFor) {
	t.Helper()
	queries := make(chan askedFor)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answers := make(chan answer, 1)
		select {
		case queries <- askedFor{r.FormValue("index"), answers}:
		case <-r.Context().Done():
			return
		}
		select {
		case a := <-answers:
			w.Header().Set("X-Consul-Index", a.index)
			if text, ok := a.body.(string); ok {
				_, _ = w.Write([]byte(text))
				return
			}
			_ = json.NewEncoder(w).Encode(a.body)
		case <-r.Context().Done():
		}
	}))
	t.Cleanup(s.Close)
	return consulagent.Settings{Address: strings.TrimPrefix(s.URL, "http://")}, queries
}

// TestWrongIndexes: whatever an agent's index does, it is not asked all the
// time, and asked from the beginning when it may have been replaced.
func TestWrongIndexes(t *testing.T) {
	settings, asked := standIn(t)
	agent, err := consulagent.New(settings, Connections)
	if err != nil {
		t.Fatal(err)
	}
	clock := identitytest.NewClock()
	p := Open(Options{Agent: agent, Clock: clock})
	f := &fixture{Provider: p, log: &logText{}}
	f.run(t)

	list := func(trustDomain string) rootList {
		root := identitytest.NewRoot(t, trustDomain)
		return rootList{TrustDomain: trustDomain, Roots: []listedRoot{{RootCert: string(identitytest.PEM(root.Cert)), Active: true}}}
	}
	good := list("x.consul")
	for i, step := range []struct {
		index string // that is asked for
		answer
		roots int // that are trusted then
		fails bool
	}{
		{"", answer{"100", good}, 1, false},
		{"100", answer{"100", good}, 1, false},
		{"100", answer{"50", good}, 1, false}, // backwards
		{"", answer{"0", good}, 1, false},     // no index at all
		{"", answer{"200", list("x.consul")}, 1, false},
		{"200", answer{"201", "<html>"}, 1, true},
		{"", answer{"202", rootList{}}, 1, true},
		{"", answer{"nonsense", good}, 1, false}, // the api package takes it for none
		{"", answer{"18446744073709551615", good}, 1, false},
		{"18446744073709551615", answer{"1", good}, 1, false},
		{"", answer{"300", good}, 1, false},
	} {
		if i > 0 {
			select {
			case q := <-asked:
				t.Fatalf("step %d: asked for index %q without a pause", i, q.index)
			default:
			}
		}
		var q askedFor
		f.await(t, fmt.Sprintf("query %d", i), func() bool {
			clock.Advance(time.Second)
			select {
			case q = <-asked:
				return true
			default:
				return false
			}
		})
		if q.index != step.index {
			t.Errorf("step %d: asked for index %q, want %q", i, q.index, step.index)
		}
		q.answer <- step.answer
		f.await(t, fmt.Sprintf("answer %d", i), func() bool {
			return (len(p.Summary().Problems) > 0) == step.fails && len(p.Summary().Roots) == step.roots
		})
	}
}

// TestSlowAnswer: whoever asks for a leaf does not wait longer than it wants,
// and the answer is not lost on the others.
func TestSlowAnswer(t *testing.T) {
	settings, asked := standIn(t)
	agent, err := consulagent.New(settings, Connections)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(agent.Close)
	p := Open(Options{Agent: agent})
	ctx, cancel := context.WithCancel(t.Context())
	failed := make(chan error, 1)
	web := idOf(root0("x.consul"), "web")
	go func() {
		_, err := p.Leaf(ctx, web)
		failed <- err
	}()
	<-asked
	cancel()
	if err := <-failed; err == nil || identity.Reason(err) != "no_leaf" {
		t.Errorf("leaf: %v", err)
	}
	if problems := p.Summary().Problems; len(problems) > 0 {
		t.Errorf("a caller's impatience is a problem: %q", problems)
	}
}
