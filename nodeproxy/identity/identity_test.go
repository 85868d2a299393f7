// SPDX-License-Identifier: Apache-2.0

package identity_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.uber.org/goleak"

	"github.com/meshproxy/meshproxy/nodeproxy/identity"
	"github.com/meshproxy/meshproxy/nodeproxy/identity/internal/identitytest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestKeyCannotBeShown(t *testing.T) {
	raw, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := raw.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	leaf := &tls.Certificate{PrivateKey: identity.NewKey(raw)}
	var shown bytes.Buffer
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%d", "%q"} {
		fmt.Fprintf(&shown, verb+"\n", leaf.PrivateKey)
		fmt.Fprintf(&shown, verb+"\n", *leaf)
	}
	fmt.Fprintln(&shown, leaf.PrivateKey)
	log := slog.New(slog.NewJSONHandler(&shown, nil))
	log.Info("leaf", "key", leaf.PrivateKey, "leaf", leaf)
	text := slog.New(slog.NewTextHandler(&shown, nil))
	text.Info("leaf", "key", leaf.PrivateKey, "leaf", leaf)
	if err := json.NewEncoder(&shown).Encode(leaf); err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{new(big.Int).SetBytes(secret).String(), fmt.Sprintf("%x", secret), fmt.Sprintf("%X", secret), fmt.Sprint(secret)} {
		if strings.Contains(shown.String(), s) {
			t.Errorf("key shown in\n%s", shown.String())
		}
	}
	if n := strings.Count(shown.String(), "[private key]"); n < 18 {
		t.Errorf("%d redactions in\n%s", n, shown.String())
	}
}

func TestParseKey(t *testing.T) {
	raw, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	sec1, _ := x509.MarshalECPrivateKey(raw)
	pkcs8, _ := x509.MarshalPKCS8PrivateKey(raw)
	block := func(kind string, der []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
	}
	for _, tt := range []struct{ name, text, err string }{
		{"PKCS#8", block("PRIVATE KEY", pkcs8), ""},
		{"SEC 1", block("EC PRIVATE KEY", sec1), ""},
		{"SEC 1 after parameters", block("EC PARAMETERS", []byte{6, 0}) + block("EC PRIVATE KEY", sec1), ""},
		{"certificate", block("CERTIFICATE", pkcs8), `PEM block is "CERTIFICATE", want a private key`},
		{"empty", "", "no private key in PEM form"},
		{"half written", block("PRIVATE KEY", pkcs8)[:100], "no private key in PEM form"},
		{"damaged", block("PRIVATE KEY", pkcs8[:50]), "parse private key"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			key, err := identity.ParseKey([]byte(tt.text))
			if tt.err == "" {
				if err != nil || !raw.PublicKey.Equal(key.Public()) {
					t.Errorf("ParseKey: %v", err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tt.err) {
				t.Errorf("error %v, want %q in it", err, tt.err)
			}
		})
	}
}

func TestCheckRoot(t *testing.T) {
	td := spiffeid.RequireTrustDomainFromString("mesh.test")
	root := identitytest.NewRoot(t, "mesh.test")
	if err := identity.CheckRoot(root.Cert, td); err != nil {
		t.Error(err)
	}
	if err := identity.CheckRoot(identitytest.NewRoot(t, "far.test").Cert, td); err == nil {
		t.Error("root of another trust domain accepted")
	}
	if err := identity.CheckRoot(root.Leaf(t, clientID, nil).Leaf, td); err == nil {
		t.Error("leaf accepted as root")
	}
}

func TestNotifier(t *testing.T) {
	var n identity.Notifier
	n.Notify() // nobody waits
	a, b := n.Changed(), n.Changed()
	select {
	case <-a:
		t.Fatal("fired before the change")
	default:
	}
	n.Notify()
	n.Notify()
	<-a
	<-b
	select {
	case <-n.Changed():
		t.Fatal("an old change fires again")
	default:
	}
}

func TestLeavesShareOneFetch(t *testing.T) {
	root := identitytest.NewRoot(t, "mesh.test")
	clock := identitytest.NewClock()
	var fetches int // without a lock: the race detector sees two at once
	leaves := identity.NewLeaves(func(context.Context, spiffeid.ID) (*tls.Certificate, error) {
		fetches++
		return root.Leaf(t, clientID, nil), nil
	}, clock)
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			if _, err := leaves.Get(t.Context(), client); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if fetches != 1 {
		t.Errorf("%d fetches, want 1", fetches)
	}
	clock.Advance(13 * time.Hour) // the leaf has expired
	if _, err := leaves.Get(t.Context(), client); err != nil || fetches != 2 {
		t.Errorf("%v, %d fetches, want 2", err, fetches)
	}
}

func TestLeavesAfterFailure(t *testing.T) {
	root := identitytest.NewRoot(t, "mesh.test")
	clock := identitytest.NewClock()
	refused := errors.New("CA refuses")
	var fetches int
	failing := true
	leaves := identity.NewLeaves(func(ctx context.Context, _ spiffeid.ID) (*tls.Certificate, error) {
		fetches++
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if failing {
			return nil, refused
		}
		return root.Leaf(t, clientID, nil), nil
	}, clock)

	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := leaves.Get(gone, client); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
	fetches = 0
	for range 3 {
		if _, err := leaves.Get(t.Context(), client); !errors.Is(err, refused) || !errors.Is(err, identity.ErrNoLeaf) {
			t.Errorf("error %v, want %v", err, refused)
		}
	}
	if fetches != 1 {
		t.Errorf("%d fetches within a second of a failure, want 1", fetches)
	}
	clock.Advance(2 * time.Second)
	failing = false
	old, err := leaves.Get(t.Context(), client)
	if err != nil {
		t.Fatal(err)
	}
	failing = true
	if err := leaves.Renew(t.Context(), client); !errors.Is(err, refused) {
		t.Errorf("renew: %v, want %v", err, refused)
	}
	if leaf, err := leaves.Get(t.Context(), client); err != nil || leaf != old {
		t.Errorf("after a failed renewal: %v, want the old leaf", err)
	}
}

func TestLeavesWaitIsBounded(t *testing.T) {
	started, release := make(chan struct{}), make(chan struct{})
	leaves := identity.NewLeaves(func(context.Context, spiffeid.ID) (*tls.Certificate, error) {
		close(started)
		<-release
		return nil, errors.New("late")
	}, identitytest.NewClock())
	var wg sync.WaitGroup
	wg.Go(func() { _, _ = leaves.Get(context.Background(), client) })
	<-started
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := leaves.Get(ctx, client); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want %v", err, context.Canceled)
	}
	close(release)
	wg.Wait()
}

// FuzzVerify feeds certificates that parse, from a peer who can write anything
// into them but cannot have them signed.
func FuzzVerify(f *testing.F) {
	root := identitytest.NewRoot(f, "mesh.test")
	good := root.Leaf(f, clientID, nil)
	intermediate := root.Intermediate(f, "mesh.test")
	f.Add(good.Certificate[0], root.Cert.Raw)
	f.Add(intermediate.Leaf(f, serverID, nil).Certificate[0], intermediate.Cert.Raw)
	f.Add(identitytest.SelfSigned(f, serverID).Certificate[0], []byte{})
	bundle := identitytest.Bundle(map[string][]*identitytest.Authority{"mesh.test": {root}})
	signed := map[string]bool{string(good.Certificate[0]): true}
	f.Fuzz(func(t *testing.T, leaf, above []byte) {
		var chain []*x509.Certificate
		for _, der := range [][]byte{leaf, above} {
			if c, err := x509.ParseCertificate(der); err == nil {
				chain = append(chain, c)
			}
		}
		id, err := identity.Verify(chain, bundle, identitytest.Epoch)
		var pe *identity.PeerError
		if err != nil && (!errors.As(err, &pe) || len(err.Error()) > 2600 || !id.IsZero()) {
			t.Fatalf("identity %v, error %v", id, err)
		}
		if err == nil && !signed[string(chain[0].Raw)] && chain[0].CheckSignatureFrom(root.Cert) != nil &&
			chain[0].CheckSignatureFrom(intermediate.Cert) != nil {
			t.Fatalf("forged certificate of %v accepted", id)
		}
	})
}

func BenchmarkHandshake(b *testing.B) {
	p := newPair(b)
	cc, sc := p.configs()
	b.ReportAllocs()
	for b.Loop() {
		if c, s := identitytest.Handshake(b, cc, sc); c.Err != nil || s.Err != nil {
			b.Fatal(c.Err, s.Err)
		}
	}
}

func BenchmarkLeaf(b *testing.B) {
	root := identitytest.NewRoot(b, "mesh.test")
	leaves := identity.NewLeaves(func(context.Context, spiffeid.ID) (*tls.Certificate, error) {
		return root.Leaf(b, clientID, nil), nil
	}, identitytest.NewClock())
	ctx := b.Context()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := leaves.Get(ctx, client); err != nil {
			b.Fatal(err)
		}
	}
}
