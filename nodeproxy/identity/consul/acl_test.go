// SPDX-License-Identifier: Apache-2.0

package consul

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hashicorp/consul/api"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/meshproxy/meshproxy/discovery/consulagent"
	"github.com/meshproxy/meshproxy/nodeproxy/identity"
	peer "github.com/meshproxy/meshproxy/tests/peers/consul"
)

// TestToken: a right that is missing is named, a token that is replaced is used,
// and one that is revoked costs no leaf before its time.
func TestToken(t *testing.T) {
	t.Parallel()
	s := peer.Start(t, peer.Options{ACLDefaultDeny: true})
	td := domainOf(t, s)
	web, db := idOf(td, "web"), idOf(td, "db")
	path := filepath.Join(t.TempDir(), "token")
	use := func(token *api.ACLToken) {
		if err := os.WriteFile(path+".new", []byte(token.SecretID+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
	}
	poor := s.ServiceToken(t, "db")
	use(poor)
	f := open(t, s, func(_ *Options, c *consulagent.Settings) { c.Token, c.TokenFile = "", path })
	f.Keep([]spiffeid.ID{web, db})
	f.awaitLeaf(t, db)
	f.await(t, "the rule in the log", func() bool { return f.log.has(`rule="service \"web\" { policy = \"write\" }"`) })
	f.await(t, "the rule in the summary", func() bool {
		p := f.Summary().Problems
		return len(p) == 1 && strings.HasPrefix(p[0], "no leaf of "+web.String()+" since 20") &&
			strings.HasSuffix(p[0], `the token needs the rule: service "web" { policy = "write" }`)
	})
	if _, err := f.Leaf(t.Context(), web); !errors.Is(err, identity.ErrNoLeaf) || !consulagent.Refused(err) {
		t.Errorf("leaf: %v", err)
	}

	rich := s.Token(t, `service_prefix "" { policy = "write" }`)
	use(rich)
	before := f.awaitLeaf(t, web)
	f.await(t, "no problems", func() bool { return len(f.Summary().Problems) == 0 })

	s.Revoke(t, rich)
	s.RotateCA(t) // so that leaves have to be renewed
	f.await(t, "both not renewed", func() bool {
		p := f.Summary().Problems
		return len(p) == 2 && strings.Contains(p[0]+p[1], "leaf of "+web.String()+" not renewed since 20")
	})
	if now, err := f.Leaf(t.Context(), web); err != nil || now != before {
		t.Errorf("the leaf did not stay: %v", err)
	}
	use(s.ServiceToken(t, "web", "db"))
	f.await(t, "a leaf of the new root", func() bool { return f.trusted.Load().signed(f.peek(web)) })
	f.await(t, "no problems", func() bool { return len(f.Summary().Problems) == 0 })
}
