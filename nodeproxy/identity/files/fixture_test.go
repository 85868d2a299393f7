// SPDX-License-Identifier: Apache-2.0

package files

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.uber.org/goleak"

	"github.com/meshproxy/meshproxy/nodeproxy/identity"
	"github.com/meshproxy/meshproxy/nodeproxy/identity/internal/identitytest"
)

const (
	curlID = "spiffe://mesh.test/ns/default/sa/curl"
	webID  = "spiffe://mesh.test/ns/default/sa/web"
)

var (
	td   = spiffeid.RequireTrustDomainFromString("mesh.test")
	curl = spiffeid.RequireFromString(curlID)
	web  = spiffeid.RequireFromString(webID)
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// issued is the content of a pair of files.
type issued struct{ cert, key []byte }

// issue makes a pair, valid for a day around Epoch; edit may spoil the
// template.
func issue(t *testing.T, ca *identitytest.Authority, id string, edit func(*x509.Certificate)) issued {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	template := &x509.Certificate{
		NotBefore: identitytest.Epoch.Add(-12 * time.Hour),
		NotAfter:  identitytest.Epoch.Add(12 * time.Hour),
		KeyUsage:  x509.KeyUsageDigitalSignature,
		URIs:      []*url.URL{identitytest.URL(t, id)},
	}
	if edit != nil {
		edit(template)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.Cert, key.Public(), ca.Key)
	check(t, err)
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	check(t, err)
	return issued{
		cert: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		key:  pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}),
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, path string, content []byte) {
	t.Helper()
	check(t, os.MkdirAll(filepath.Dir(path), 0o700))
	check(t, os.WriteFile(path, content, 0o600))
}

// fixture is a provider with one configured workload.
type fixture struct {
	dir               string
	cert, key, bundle string
	ca                *identitytest.Authority
	clock             *identitytest.Clock
	log               *bytes.Buffer
	opts              Options
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	f := &fixture{
		dir:   t.TempDir(),
		ca:    identitytest.NewRoot(t, "mesh.test"),
		clock: identitytest.NewClock(),
		log:   &bytes.Buffer{},
	}
	f.cert, f.key, f.bundle = filepath.Join(f.dir, "c", "tls.crt"), filepath.Join(f.dir, "k", "tls.key"), filepath.Join(f.dir, "b", "ca.crt")
	f.put(t, issue(t, f.ca, curlID, nil))
	write(t, f.bundle, identitytest.PEM(f.ca.Cert))
	f.opts = Options{
		Workloads: []Workload{{Identity: curl, CertFile: f.cert, KeyFile: f.key}},
		Bundles:   map[spiffeid.TrustDomain]string{td: f.bundle},
		Clock:     f.clock,
		Logger:    slog.New(slog.NewTextHandler(f.log, nil)),
	}
	return f
}

func (f *fixture) put(t *testing.T, i issued) {
	t.Helper()
	write(t, f.cert, i.cert)
	write(t, f.key, i.key)
}

func (f *fixture) open(t *testing.T) *Provider {
	t.Helper()
	p, err := Open(f.opts)
	check(t, err)
	return p
}

func serial(t *testing.T, p *Provider, id spiffeid.ID) string {
	t.Helper()
	leaf, err := p.Leaf(t.Context(), id)
	check(t, err)
	return leaf.Leaf.SerialNumber.String()
}

// frozenClock shows Epoch, at which test certificates are valid; its timers
// are real.
type frozenClock struct{ identity.SystemClock }

func (frozenClock) Now() time.Time { return identitytest.Epoch }

func run(t *testing.T, p *Provider) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := p.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
}

// await waits for a condition that only changes when the provider says so.
func await(t *testing.T, p *Provider, ok func() bool) {
	t.Helper()
	deadline := time.After(time.Minute)
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

func (f *fixture) mustRead(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	check(t, err)
	return b
}
