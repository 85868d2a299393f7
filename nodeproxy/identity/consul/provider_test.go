// SPDX-License-Identifier: Apache-2.0

package consul

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.uber.org/goleak"

	"github.com/meshproxy/meshproxy/discovery/consulagent"
	"github.com/meshproxy/meshproxy/nodeproxy/identity"
	"github.com/meshproxy/meshproxy/nodeproxy/identity/internal/identitytest"
	peer "github.com/meshproxy/meshproxy/tests/peers/consul"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fixture is a provider of a real agent.
type fixture struct {
	*Provider
	log *logText
}

// logText is a log that is read while it is written.
type logText struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logText) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logText) has(s string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Contains(l.text.String(), s)
}

// open makes a provider that runs until the test ends; edit changes how.
func open(t *testing.T, s *peer.Server, edit func(*Options, *consulagent.Settings)) *fixture {
	t.Helper()
	f := newFixture(t, s, edit)
	f.run(t)
	return f
}

func newFixture(t *testing.T, s *peer.Server, edit func(*Options, *consulagent.Settings)) *fixture {
	t.Helper()
	f := &fixture{log: &logText{}}
	settings := consulagent.Settings{Address: s.HTTPAddr.String(), Token: s.ManagementToken}
	opts := Options{
		RotationWindow: time.Second, Wait: time.Second,
		Logger: slog.New(slog.NewTextHandler(f.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	if edit != nil {
		edit(&opts, &settings)
	}
	agent, err := consulagent.New(settings, Connections)
	if err != nil {
		t.Fatal(err)
	}
	opts.Agent = agent
	f.Provider = Open(opts)
	return f
}

func (f *fixture) run(t *testing.T) {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// domainOf asks the agent itself.
func domainOf(t *testing.T, s *peer.Server) spiffeid.TrustDomain {
	t.Helper()
	roots, _, err := s.Client().Agent().ConnectCARoots((&api.QueryOptions{}).WithContext(t.Context()))
	if err != nil {
		t.Fatal(err)
	}
	return spiffeid.RequireTrustDomainFromString(roots.TrustDomain)
}

func idOf(td spiffeid.TrustDomain, service string) spiffeid.ID {
	return spiffeid.RequireFromSegments(td, "ns", "default", "dc", "dc1", "svc", service)
}

// await waits until the provider is as wanted, at its changes and now and then.
func (f *fixture) await(t *testing.T, what string, wanted func() bool) {
	t.Helper()
	deadline := time.After(5 * time.Minute)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !wanted() {
		select {
		case <-f.Changed():
		case <-tick.C:
		case <-deadline:
			t.Fatalf("%s: it does not happen; problems %q, log:\n%s", what, f.Summary().Problems, f.log.text.String())
		}
	}
}

// peek is the current leaf, without asking for one.
func (f *fixture) peek(id spiffeid.ID) *tls.Certificate { return f.leaves.Peek(id) }

func (f *fixture) awaitLeaf(t *testing.T, id spiffeid.ID) *tls.Certificate {
	t.Helper()
	f.await(t, "leaf of "+id.String(), func() bool { return f.peek(id) != nil })
	return f.peek(id)
}

func TestLeaf(t *testing.T) {
	t.Parallel()
	s := peer.Start(t, peer.Options{Dev: true})
	f := open(t, s, nil)
	td := domainOf(t, s)
	f.await(t, "trust domain", func() bool { return f.TrustDomain() == td })
	web := idOf(td, "web")
	leaf, err := f.Leaf(t.Context(), web) // nobody has named it before
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(leaf.Leaf.URIs); got != "["+web.String()+"]" {
		t.Errorf("URIs %s, want %s", got, web)
	}
	if text := fmt.Sprintf("%v %+v %#v", leaf.PrivateKey, leaf.PrivateKey, leaf.PrivateKey); !strings.Contains(text, "[private key]") {
		t.Errorf("key is shown: %s", text)
	}
	sum := f.Summary()
	if len(sum.Roots) != 1 || sum.Roots[0].State != "signing" || len(sum.Leaves) != 1 || len(sum.Problems) != 0 {
		t.Errorf("summary %+v", sum)
	}
	f.Keep([]spiffeid.ID{idOf(td, "api")})
	f.awaitLeaf(t, idOf(td, "api"))
	if f.peek(web) != nil {
		t.Error("a leaf that is not wanted is kept")
	}
	for _, id := range []string{
		"spiffe://" + td.Name() + "/ns/default/sa/web",
		"spiffe://" + td.Name() + "/ns/default/dc/dc2/svc/web",
		"spiffe://other.consul/ns/default/dc/dc1/svc/web",
	} {
		if _, err := f.Leaf(t.Context(), spiffeid.RequireFromString(id)); !errors.Is(err, identity.ErrNoLeaf) {
			t.Errorf("%s: %v, want no leaf", id, err)
		}
	}
}

// TestRenewal: a leaf is replaced before its end, and its predecessor is good
// until then.
func TestRenewal(t *testing.T) {
	t.Parallel()
	s := peer.Start(t, peer.Options{Dev: true})
	s.ShortLeaves(t, 2*time.Minute) // renewed after 12 s: 60 %, of which 1 min is past
	f := open(t, s, nil)
	web := idOf(domainOf(t, s), "web")
	f.Keep([]spiffeid.ID{web})
	leaf := f.awaitLeaf(t, web)
	for range 2 {
		f.await(t, "another leaf", func() bool { return f.peek(web) != leaf })
		next := f.peek(web)
		if left := time.Until(leaf.Leaf.NotAfter); left < 10*time.Second || !next.Leaf.NotAfter.After(leaf.Leaf.NotAfter) {
			t.Errorf("renewed %v before its end, until %v", left, next.Leaf.NotAfter)
		}
		leaf = next
	}
	if p := f.Summary().Problems; len(p) > 0 {
		t.Errorf("problems %q", p)
	}
}

// TestManyWorkloads: a first start stays within what a CA signs in a second and
// what an agent takes from one client.
func TestManyWorkloads(t *testing.T) {
	t.Parallel()
	s := peer.Start(t, peer.Options{Dev: true})
	f := open(t, s, nil)
	td := domainOf(t, s)
	var ids []spiffeid.ID
	for i := range 200 {
		ids = append(ids, idOf(td, fmt.Sprintf("s%d", i)))
	}
	begin := time.Now()
	f.Keep(ids)
	most := 0
	f.await(t, "200 leaves", func() bool {
		most = max(most, connectionsTo(t, s))
		return len(f.Summary().Leaves) == len(ids)
	})
	t.Logf("200 leaves after %v, with at most %d connections", time.Since(begin).Round(10*time.Millisecond), most)
	if most > Connections {
		t.Errorf("%d connections to the agent, at most %d", most, Connections)
	}
	if f.log.has("ate limit") { // "Rate limit reached" is the CA's, "rate limit exceeded" the agent's
		t.Errorf("more was asked for than is given:\n%s", f.log.text.String())
	}
	if p := f.Summary().Problems; len(p) > 0 {
		t.Errorf("problems %q", p)
	}
}

// connectionsTo counts the established ones in /proc/net/tcp, at their clients'
// ends.
func connectionsTo(t *testing.T, s *peer.Server) (n int) {
	t.Helper()
	text, err := os.ReadFile("/proc/net/tcp")
	if err != nil {
		t.Fatal(err)
	}
	to := fmt.Sprintf("0100007F:%04X", s.HTTPAddr.Port())
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if len(fields) > 3 && fields[2] == to && fields[3] == "01" {
			n++
		}
	}
	return n
}

// TestAgentComesLater: the provider runs before its agent does.
func TestAgentComesLater(t *testing.T) {
	t.Parallel()
	s := peer.Start(t, peer.Options{})
	web := idOf(domainOf(t, s), "web")
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	f := open(t, s, nil)
	f.Keep([]spiffeid.ID{web})
	if _, err := f.Leaf(t.Context(), web); !errors.Is(err, identity.ErrNoLeaf) {
		t.Errorf("leaf: %v, want none", err)
	}
	f.await(t, "a problem", func() bool {
		p := f.Summary().Problems
		return len(p) > 0 && strings.Contains(p[0], "no roots from Consul's agent at "+s.HTTPAddr.String()+" since 20")
	})
	if err := s.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.awaitLeaf(t, web)
	f.await(t, "no problems", func() bool { return len(f.Summary().Problems) == 0 })
}

// TestAgentAway: leaves stay, and a rotation that was missed is caught up with.
func TestAgentAway(t *testing.T) {
	t.Parallel()
	server := peer.Start(t, peer.Options{Node: "server"})
	agent := peer.Start(t, peer.Options{Join: server, Node: "client"})
	f := open(t, agent, nil)
	web := idOf(domainOf(t, server), "web")
	f.Keep([]spiffeid.ID{web})
	before := f.awaitLeaf(t, web)
	if err := agent.Stop(); err != nil {
		t.Fatal(err)
	}
	f.await(t, "a problem", func() bool { return len(f.Summary().Problems) > 0 })
	server.RotateCA(t)
	if now, err := f.Leaf(t.Context(), web); err != nil || now != before {
		t.Errorf("another leaf without an agent: %v", err)
	}
	if err := agent.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.await(t, "the leaf of the new root", func() bool {
		return len(f.Bundle().Roots(f.TrustDomain())) == 2 && f.peek(web) != before && f.trusted.Load().signed(f.peek(web))
	})
	f.await(t, "no problems", func() bool { return len(f.Summary().Problems) == 0 })

	// The agent is there, and its servers are not.
	if err := server.Stop(); err != nil {
		t.Fatal(err)
	}
	db := idOf(f.TrustDomain(), "db")
	f.Keep([]spiffeid.ID{web, db})
	f.await(t, "a problem with the other leaf", func() bool {
		return strings.Contains(strings.Join(f.Summary().Problems, " "), "no leaf of "+db.String()+" since 20")
	})
	if f.peek(web) == nil {
		t.Error("a leaf is lost with the servers")
	}
	if err := server.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.awaitLeaf(t, db)
	f.await(t, "no problems", func() bool { return len(f.Summary().Problems) == 0 })
}

// TestAgentHangs: an agent that takes requests and answers none is noticed.
func TestAgentHangs(t *testing.T) {
	t.Parallel()
	s := peer.Start(t, peer.Options{Dev: true})
	f := open(t, s, nil)
	f.Keep([]spiffeid.ID{idOf(domainOf(t, s), "web")})
	f.awaitLeaf(t, idOf(domainOf(t, s), "web"))
	if err := s.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.await(t, "a problem", func() bool {
		p := f.Summary().Problems
		return len(p) == 1 && strings.Contains(p[0], errSilent.Error())
	})
	if err := s.Resume(); err != nil {
		t.Fatal(err)
	}
	f.await(t, "no problems", func() bool { return len(f.Summary().Problems) == 0 })
}

// TestAnotherConsul: the agent's state was lost, and with it trust domain and
// indexes.
func TestAnotherConsul(t *testing.T) {
	t.Parallel()
	s := peer.Start(t, peer.Options{Dev: true})
	for i := range 20 { // the new one's indexes are lower for a while
		s.Intend(t, fmt.Sprintf("a%d", i), "b", api.IntentionActionAllow)
	}
	f := open(t, s, nil)
	old := domainOf(t, s)
	f.Keep([]spiffeid.ID{idOf(old, "web")})
	f.awaitLeaf(t, idOf(old, "web"))
	if err := s.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	td := domainOf(t, s)
	f.await(t, "the new trust domain", func() bool { return f.TrustDomain() == td })
	f.Keep([]spiffeid.ID{idOf(td, "web")})
	f.awaitLeaf(t, idOf(td, "web"))
	if !f.log.has("of another trust domain now") {
		t.Errorf("no warning:\n%s", f.log.text.String())
	}
}

// TestOtherTrustDomain: somebody has said which one it must be.
func TestOtherTrustDomain(t *testing.T) {
	t.Parallel()
	s := peer.Start(t, peer.Options{Dev: true})
	f := open(t, s, func(o *Options, _ *consulagent.Settings) {
		o.TrustDomain = spiffeid.RequireTrustDomainFromString("other.consul")
	})
	f.await(t, "a problem", func() bool {
		p := f.Summary().Problems
		return len(p) > 0 && strings.Contains(p[0], "node.trustDomain is other.consul")
	})
	if len(f.Bundle().TrustDomains()) != 0 {
		t.Error("it is trusted all the same")
	}
}

// TestAnswers: what comes from whatever listens on the agent's port.
func TestAnswers(t *testing.T) {
	root := identitytest.NewRoot(t, "x.consul")
	good := string(identitytest.PEM(root.Cert))
	for _, tt := range []struct {
		name string
		list rootList
		want string
	}{
		{"none", rootList{TrustDomain: "x.consul"}, "no roots"},
		{"no trust domain", rootList{Roots: []listedRoot{{RootCert: good}}}, "trust domain"},
		{"no certificate", rootList{TrustDomain: "x.consul", Roots: []listedRoot{{RootCert: "x"}}}, "no certificate in PEM form"},
		{"of another trust domain", rootList{TrustDomain: "y.consul", Roots: []listedRoot{{RootCert: good}}}, "not of trust domain"},
		{"good", rootList{TrustDomain: "x.consul", Roots: []listedRoot{{RootCert: good, Active: true}}}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := Open(Options{})
			err := p.trust(&tt.list)
			if (err == nil) != (tt.want == "") || !strings.Contains(fmt.Sprint(err), tt.want) {
				t.Errorf("%v, want %q", err, tt.want)
			}
			if trusted := len(p.Bundle().TrustDomains()) > 0; trusted != (err == nil) {
				t.Errorf("trusted: %v", trusted)
			}
		})
	}
}
