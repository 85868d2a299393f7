// SPDX-License-Identifier: Apache-2.0

package embedded

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/meshproxy/meshproxy/nodeproxy/identity"
	"github.com/meshproxy/meshproxy/nodeproxy/identity/internal/identitytest"
)

func open(t *testing.T, dir string, clock identity.Clock) *Provider {
	t.Helper()
	p, err := Open(Options{Dir: dir, Clock: clock})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func leaf(t *testing.T, p *Provider, id spiffeid.ID) *x509.Certificate {
	t.Helper()
	l, err := p.Leaf(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return l.Leaf
}

func TestLeaf(t *testing.T) {
	clock := identitytest.NewClock()
	p := open(t, newCA(t, clock), clock)
	c := leaf(t, p, curl)
	now := clock.Now()
	if !c.NotBefore.Equal(now.Add(-time.Minute)) || !c.NotAfter.Equal(now.Add(24*time.Hour)) {
		t.Errorf("valid from %v to %v, now %v", c.NotBefore, c.NotAfter, now)
	}
	if id, err := identity.Verify([]*x509.Certificate{c}, p.Bundle(), now); err != nil || id != curl {
		t.Errorf("Verify: %v, %v", id, err)
	}
	if c.KeyUsage != x509.KeyUsageDigitalSignature || c.IsCA || len(c.ExtKeyUsage) != 2 || c.SerialNumber.BitLen() < 64 {
		t.Errorf("usage %v %v, CA %v, serial %x", c.KeyUsage, c.ExtKeyUsage, c.IsCA, c.SerialNumber)
	}
	for _, e := range c.Extensions {
		if e.Id.String() == "2.5.29.17" && !e.Critical {
			t.Error("SAN is not critical although the subject is empty (RFC 5280, section 4.2.1.6)")
		}
	}
	if again := leaf(t, p, curl); again != c {
		t.Error("second use issued another leaf")
	}
	if other := leaf(t, p, web); bytes.Equal(other.RawSubjectPublicKeyInfo, c.RawSubjectPublicKeyInfo) {
		t.Error("two identities share a key")
	}
	for _, id := range []string{"spiffe://far.test/ns/default/sa/web", "spiffe://mesh.test"} {
		if _, err := p.Leaf(t.Context(), spiffeid.RequireFromString(id)); err == nil {
			t.Errorf("leaf issued for %s", id)
		}
	}
}

func TestLeafTTL(t *testing.T) {
	clock := identitytest.NewClock()
	dir := newCA(t, clock)
	if _, err := Open(Options{Dir: dir, Clock: clock, LeafTTL: 25 * time.Hour}); err == nil || !strings.Contains(err.Error(), "at most 24h") {
		t.Errorf("longer than the CA allows: %v", err)
	}
	p, err := Open(Options{Dir: dir, Clock: clock, LeafTTL: 3 * time.Second, Backdate: -1})
	if err != nil {
		t.Fatal(err)
	}
	c := leaf(t, p, curl)
	if c.NotAfter.Sub(c.NotBefore) != 3*time.Second {
		t.Errorf("lifetime %v, want 3s", c.NotAfter.Sub(c.NotBefore))
	}
}

func TestRenewal(t *testing.T) {
	clock := identitytest.NewClock()
	p := open(t, newCA(t, clock), clock)
	first := leaf(t, p, curl)
	leaf(t, p, web)
	clock.Advance(9 * time.Hour) // half is 12 h, jitter takes off at most a fifth
	p.turn(t.Context())
	if leaf(t, p, curl) != first {
		t.Error("renewed before its time")
	}
	changed := p.Changed()
	clock.Advance(3 * time.Hour)
	p.turn(t.Context())
	second := leaf(t, p, curl)
	if second == first {
		t.Error("not renewed at half of its life")
	}
	select {
	case <-changed:
	default:
		t.Error("renewal did not notify")
	}
	clock.Advance(12 * time.Hour)
	p.turn(t.Context()) // curl was used once since; web was not
	if n := len(p.Summary().Leaves); n != 1 {
		t.Errorf("%d leaves, want the used one only", n)
	}
	clock.Advance(12 * time.Hour)
	p.turn(t.Context()) // nobody asked again
	if n := len(p.Summary().Leaves); n != 0 {
		t.Errorf("%d leaves, want none", n)
	}
	if leaf(t, p, curl) == second {
		t.Error("old leaf after it was dropped")
	}
}

// TestRunSleeps checks that a turn leaves nothing due: Run would spin.
func TestRunSleeps(t *testing.T) {
	clock := identitytest.NewClock()
	dir := newCA(t, clock)
	p := open(t, dir, clock)
	for step := range 400 {
		if step%3 == 0 {
			leaf(t, p, curl)
		}
		if step%70 == 1 {
			if _, err := Rotate(dir, RotateOptions{Clock: clock}); err != nil {
				t.Fatal(err)
			}
		}
		p.turn(t.Context())
		p.turn(t.Context()) // Prune's own changes
		if p.state.Load().prunable(clock.Now()) {
			t.Fatalf("step %d: prunable after a turn", step)
		}
		if d := p.untilNext(); d <= 0 {
			t.Fatalf("step %d: due again at once", step)
		}
		clock.Advance(17 * time.Minute)
	}
}

func TestRotationRenewsLeaves(t *testing.T) {
	clock := identitytest.NewClock()
	dir := newCA(t, clock)
	a, b := open(t, dir, clock), open(t, dir, clock)
	old := leaf(t, a, curl)
	if _, err := Rotate(dir, RotateOptions{Clock: clock}); err != nil {
		t.Fatal(err)
	}
	both := func() { a.turn(t.Context()); b.turn(t.Context()) }
	both()
	if n := len(b.Bundle().Roots(td)); n != 2 {
		t.Fatalf("%d roots after Rotate, want 2", n)
	}
	if leaf(t, a, curl) != old || !bytes.Equal(leaf(t, a, web).AuthorityKeyId, old.AuthorityKeyId) {
		t.Error("new root signs before all nodes know it")
	}
	clock.Advance(DefaultPropagation)
	both()
	c := leaf(t, a, curl)
	if bytes.Equal(c.AuthorityKeyId, old.AuthorityKeyId) {
		t.Error("leaf is still of the old root")
	}
	for _, cert := range []*x509.Certificate{old, c} {
		if _, err := identity.Verify([]*x509.Certificate{cert}, b.Bundle(), clock.Now()); err != nil {
			t.Errorf("leaf not trusted by the other node: %v", err)
		}
	}
	clock.Advance(25 * time.Hour)
	both()
	if n := len(b.Bundle().Roots(td)); n != 1 {
		t.Errorf("%d roots after the old leaves' lifetime, want 1", n)
	}
	if n := len(files(t, dir, "root-*")); n != 2 {
		t.Errorf("%d root files, want 2", n)
	}
}

// TestCopy: two nodes with a copy of the directory each; after a rotation the
// operator copies again within the propagation time.
func TestCopy(t *testing.T) {
	clock := identitytest.NewClock()
	dir := newCA(t, clock)
	replica := filepath.Join(t.TempDir(), "ca")
	copyDir(t, dir, replica)
	a, b := open(t, dir, clock), open(t, replica, clock)
	trusts := func(p *Provider, c *x509.Certificate) bool {
		_, err := identity.Verify([]*x509.Certificate{c}, p.Bundle(), clock.Now())
		return err == nil
	}
	if !trusts(a, leaf(t, b, web)) || !trusts(b, leaf(t, a, curl)) {
		t.Fatal("copies do not trust each other")
	}
	if _, err := Rotate(dir, RotateOptions{Clock: clock, Propagation: time.Hour}); err != nil {
		t.Fatal(err)
	}
	copyDir(t, dir, replica)
	clock.Advance(time.Hour)
	a.turn(t.Context())
	b.turn(t.Context())
	if !trusts(a, leaf(t, b, web)) || !trusts(b, leaf(t, a, curl)) {
		t.Error("copies do not trust each other after a rotation")
	}
}

func copyDir(t *testing.T, from, to string) {
	t.Helper()
	check(t, os.MkdirAll(to, 0o700))
	check(t, fs.WalkDir(os.DirFS(from), ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		content, err := os.ReadFile(filepath.Join(from, path))
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(to, path), content, 0o600)
	}))
}

func TestBrokenDirectoryKeepsTheLastState(t *testing.T) {
	clock := identitytest.NewClock()
	dir := newCA(t, clock)
	var log bytes.Buffer
	p, err := Open(Options{Dir: dir, Clock: clock, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	manifest := filepath.Join(dir, "ca.json")
	good, err := os.ReadFile(manifest)
	check(t, err)
	check(t, os.WriteFile(manifest, good[:len(good)/2], 0o600))
	p.turn(t.Context())
	p.turn(t.Context())
	leaf(t, p, curl)
	if n := strings.Count(log.String(), "CA directory is unusable"); n != 1 {
		t.Errorf("logged %d times, want once:\n%s", n, log.String())
	}
	if s := p.Summary(); len(s.Problems) != 1 {
		t.Errorf("problems %v, want one", s.Problems)
	}
	check(t, os.WriteFile(manifest, good, 0o600))
	p.turn(t.Context())
	if s := p.Summary(); len(s.Problems) != 0 {
		t.Errorf("problems %v after repair", s.Problems)
	}

	// Another CA in its place must not be taken over silently.
	foreign := filepath.Join(t.TempDir(), "ca")
	_, err = Init(foreign, spiffeid.RequireTrustDomainFromString("far.test"), InitOptions{Clock: clock})
	check(t, err)
	copyDir(t, foreign, dir)
	p.turn(t.Context())
	if p.TrustDomain() != td || len(p.Summary().Problems) != 1 {
		t.Errorf("trust domain is %v now, problems %v", p.TrustDomain(), p.Summary().Problems)
	}
}

func TestSummaryHasNoKeys(t *testing.T) {
	clock := identitytest.NewClock()
	dir := newCA(t, clock)
	p := open(t, dir, clock)
	leaf(t, p, web)
	c := leaf(t, p, curl)
	s := p.Summary()
	if len(s.Leaves) != 2 || s.Leaves[0].Identity != curl || s.Leaves[0].Serial != c.SerialNumber.Text(16) ||
		len(s.Roots) != 1 || s.Roots[0].State != "signing" || len(s.Roots[0].Fingerprint) != 64 {
		t.Errorf("summary %+v", s)
	}
	text, err := json.Marshal(s)
	if err != nil || strings.Contains(strings.ToLower(string(text)), "key") {
		t.Errorf("%s, %v", text, err)
	}
}

// TestRunNoticesRotation runs two nodes on the real clock and inotify.
func TestRunNoticesRotation(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ca")
	if _, err := Init(dir, td, InitOptions{}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	var nodes []*Provider
	for range 2 {
		// Poll is long: it is the event that must wake them.
		p, err := Open(Options{Dir: dir, Poll: time.Hour, Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
		if err != nil {
			t.Fatal(err)
		}
		nodes = append(nodes, p)
		wg.Go(func() {
			if err := p.Run(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	first := leaf(t, nodes[0], curl)
	if _, err := Rotate(dir, RotateOptions{Propagation: time.Second}); err != nil {
		t.Fatal(err)
	}
	deadline := time.After(time.Minute)
	for _, p := range nodes {
		await(t, p, deadline, func() bool { return len(p.Bundle().Roots(td)) == 2 })
	}
	await(t, nodes[0], deadline, func() bool {
		return !bytes.Equal(leaf(t, nodes[0], curl).AuthorityKeyId, first.AuthorityKeyId)
	})
}

// await waits for a condition that only changes when the provider says so.
func await(t *testing.T, p *Provider, deadline <-chan time.Time, ok func() bool) {
	t.Helper()
	for {
		changed := p.Changed()
		if ok() {
			return
		}
		select {
		case <-changed:
		case <-deadline:
			t.Fatal("no change in time")
		}
	}
}

func TestRootEnds(t *testing.T) {
	clock := identitytest.NewClock()
	dir := filepath.Join(t.TempDir(), "ca")
	_, err := Init(dir, td, InitOptions{RootTTL: 36 * time.Hour, Clock: clock})
	check(t, err)
	var log bytes.Buffer
	p, err := Open(Options{Dir: dir, Clock: clock, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	check(t, err)
	if !strings.Contains(log.String(), "root ends soon") {
		t.Errorf("no warning in %q", log.String())
	}
	clock.Advance(24 * time.Hour)
	if c := leaf(t, p, curl); c.NotAfter.Sub(clock.Now()) != 12*time.Hour {
		t.Errorf("leaf outlives its root: %v", c.NotAfter)
	}
	clock.Advance(12 * time.Hour)
	p.turn(t.Context())
	if _, err := p.Leaf(t.Context(), curl); !errors.Is(err, identity.ErrNoLeaf) || !strings.Contains(err.Error(), "signs no more since") {
		t.Errorf("error %v, want %v", err, identity.ErrNoLeaf)
	}
}
