// SPDX-License-Identifier: Apache-2.0

package consul

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/meshproxy/meshproxy/discovery/consulagent"
	"github.com/meshproxy/meshproxy/nodeproxy/identity"
	"github.com/meshproxy/meshproxy/nodeproxy/identity/internal/identitytest"
	peer "github.com/meshproxy/meshproxy/tests/peers/consul"
)

// TestEstate: a node restarts while Consul is away, and goes on with the leaves
// and roots of the process before.
func TestEstate(t *testing.T) {
	t.Parallel()
	s := peer.Start(t, peer.Options{})
	td := domainOf(t, s)
	ids := []spiffeid.ID{idOf(td, "client"), idOf(td, "web")}
	before := open(t, s, nil)
	before.Keep(ids)
	for _, id := range ids {
		before.awaitLeaf(t, id)
	}
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	text, err := before.Export()
	if err != nil {
		t.Fatal(err)
	}

	after := newFixture(t, s, nil)
	if err := after.Import(text); err != nil {
		t.Fatal(err)
	}
	after.run(t)
	after.Keep(ids)
	after.await(t, "the agent is missed", func() bool { return len(after.Summary().Problems) > 0 })
	for _, id := range ids {
		if !sameLeaf(before.peek(id), after.peek(id)) {
			t.Errorf("leaf of %s is another one", id)
		}
	}
	if !before.Bundle().Equal(after.Bundle()) || after.Summary().Roots[0].State != "signing" {
		t.Errorf("roots differ: %+v", after.Summary().Roots)
	}
	names := identity.NewNames(ids[1:], spiffeid.ID{})
	c, sv := identitytest.Handshake(t,
		identity.ClientConfig(after, ids[0], ids[1:], "", identity.Options{}),
		identity.ServerConfig(before, names, identity.Options{}))
	if c.Err != nil || sv.Err != nil {
		t.Errorf("handshake: client %v, server %v", c.Err, sv.Err)
	}

	if err := s.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.RotateCA(t)
	after.await(t, "leaves of the new root", func() bool {
		t := after.trusted.Load()
		return len(after.Summary().Roots) == 2 && t.signed(after.peek(ids[0])) && t.signed(after.peek(ids[1]))
	})

	late := newFixture(t, s, func(o *Options, _ *consulagent.Settings) { o.Clock = later{80 * time.Hour} })
	if err := late.Import(text); err != nil {
		t.Fatal(err)
	}
	if len(late.Summary().Leaves) != 0 || !late.log.has("of no use") {
		t.Errorf("leaves that have ended: %+v", late.Summary().Leaves)
	}
	other := newFixture(t, s, func(o *Options, _ *consulagent.Settings) {
		o.TrustDomain = spiffeid.RequireTrustDomainFromString("other.consul")
	})
	if err := other.Import(text); err == nil || !strings.Contains(err.Error(), "other.consul") {
		t.Errorf("of another trust domain: %v", err)
	}
}

// later is a clock that is ahead.
type later struct{ by time.Duration }

func (l later) Now() time.Time                         { return time.Now().Add(l.by) }
func (l later) After(d time.Duration) <-chan time.Time { return time.After(d) }

// synthetic is an estate without an agent.
func synthetic(t testing.TB) *estate {
	root := identitytest.NewRoot(t, "x.consul")
	leaf := root.Leaf(t, "spiffe://x.consul/ns/default/dc/dc1/svc/web", nil)
	key, err := leaf.PrivateKey.(identity.Key).PKCS8()
	if err != nil {
		t.Fatal(err)
	}
	return &estate{
		Version: estateVersion, TrustDomain: "x.consul", Roots: []estateRoot{{root.Cert.Raw, true}},
		Leaves: []*estateLeaf{{idOf(root0("x.consul"), "web"), leaf.Certificate, key}},
	}
}

func root0(td string) spiffeid.TrustDomain { return spiffeid.RequireTrustDomainFromString(td) }

func TestImportRefuses(t *testing.T) {
	for _, tt := range []struct {
		name  string
		spoil func(*estate)
		fails bool
	}{
		{"nothing", func(*estate) {}, false},
		{"version", func(e *estate) { e.Version = 2 }, true},
		{"trust domain", func(e *estate) { e.TrustDomain = "y.consul" }, true},
		{"root", func(e *estate) { e.Roots[0].Certificate = []byte("x") }, true},
		{"leaf without a root", func(e *estate) { e.Roots[0].Certificate = identitytest.NewRoot(t, "x.consul").Cert.Raw }, false},
		{"another identity", func(e *estate) { e.Leaves[0].Identity = idOf(root0("x.consul"), "db") }, false},
		{"no chain", func(e *estate) { e.Leaves[0].Chain = nil }, false},
		{"another key", func(e *estate) { e.Leaves[0].Key = synthetic(t).Leaves[0].Key }, false},
		{"half a key", func(e *estate) { e.Leaves[0].Key = e.Leaves[0].Key[:20] }, false},
		{"null", func(e *estate) { e.Leaves[0] = nil }, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := synthetic(t)
			tt.spoil(e)
			text, err := json.Marshal(e)
			if err != nil {
				t.Fatal(err)
			}
			p := Open(Options{Clock: identitytest.NewClock()})
			if err := p.Import(text); (err != nil) != tt.fails {
				t.Errorf("error %v", err)
			}
			if got, want := len(p.Summary().Leaves), 0; tt.name != "nothing" && got != want || tt.name == "nothing" && got != 1 {
				t.Errorf("%d leaves", got)
			}
		})
	}
}

func FuzzImport(f *testing.F) {
	text, err := json.Marshal(synthetic(f))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add([]byte(`{"version":1,"trustDomain":"x","roots":[{}],"leaves":[null,{}]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		p := Open(Options{Clock: identitytest.NewClock()})
		if err := p.Import(text); err != nil {
			return
		}
		again, err := p.Export()
		if err != nil {
			t.Fatal(err)
		}
		if len(p.Bundle().TrustDomains()) > 0 && !bytes.Contains(again, []byte(`"trustDomain"`)) {
			t.Fatal("what was imported is not exported")
		}
	})
}
