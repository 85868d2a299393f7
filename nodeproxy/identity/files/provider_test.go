// SPDX-License-Identifier: Apache-2.0

package files

import (
	"crypto/x509"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/meshproxy/meshproxy/nodeproxy/identity"
	"github.com/meshproxy/meshproxy/nodeproxy/identity/internal/identitytest"
)

func TestLeafAndBundle(t *testing.T) {
	f := newFixture(t)
	p := f.open(t)
	leaf, err := p.Leaf(t.Context(), curl)
	check(t, err)
	if id, err := identity.Verify([]*x509.Certificate{leaf.Leaf}, p.Bundle(), f.clock.Now()); err != nil || id != curl {
		t.Errorf("Verify: %v, %v", id, err)
	}
	if _, err := p.Leaf(t.Context(), web); !errors.Is(err, identity.ErrNoLeaf) {
		t.Errorf("leaf of nobody: %v, want %v", err, identity.ErrNoLeaf)
	}
	s := p.Summary()
	if len(s.Leaves) != 1 || len(s.Roots) != 1 || len(s.Problems) != 0 {
		t.Errorf("summary %+v", s)
	}
}

// TestBadFiles puts something bad where a good leaf was: the good one stays,
// the log has the path, once, and a repair is taken over.
func TestBadFiles(t *testing.T) {
	for _, tt := range []struct {
		name  string
		spoil func(t *testing.T, f *fixture)
		text  string // in the log, beside the path of the certificate
	}{
		{"certificate of another key", func(t *testing.T, f *fixture) {
			write(t, f.cert, issue(t, f.ca, curlID, nil).cert)
		}, "do not belong together"},
		{"half a certificate", func(t *testing.T, f *fixture) {
			c := issue(t, f.ca, curlID, nil).cert
			write(t, f.cert, c[:len(c)/2])
		}, "PEM block damaged or incomplete"},
		{"half a key", func(t *testing.T, f *fixture) {
			i := issue(t, f.ca, curlID, nil)
			f.put(t, issued{i.cert, i.key[:len(i.key)/2]})
		}, "no private key in PEM form"},
		{"empty files", func(t *testing.T, f *fixture) { f.put(t, issued{}) }, "no certificate in PEM form"},
		{"files gone", func(t *testing.T, f *fixture) { check(t, os.Remove(f.cert)) }, "no such file"},
		{"key in the certificate file", func(t *testing.T, f *fixture) {
			i := issue(t, f.ca, curlID, nil)
			f.put(t, issued{append(i.key, i.cert...), i.key})
		}, "want CERTIFICATE"},
		{
			"other identity", func(t *testing.T, f *fixture) { f.put(t, issue(t, f.ca, webID, nil)) },
			"identity is " + webID + ", want " + curlID,
		},
		{"expired", func(t *testing.T, f *fixture) {
			f.put(t, issue(t, f.ca, curlID, func(c *x509.Certificate) { c.NotAfter = identitytest.Epoch.Add(-time.Hour) }))
		}, "certificate expired at 2026-03-01T11:00:00Z"},
		{"not yet valid", func(t *testing.T, f *fixture) {
			f.put(t, issue(t, f.ca, curlID, func(c *x509.Certificate) { c.NotBefore = identitytest.Epoch.Add(time.Hour) }))
		}, "certificate not yet valid before 2026-03-01T13:00:00Z"},
		{"other CA", func(t *testing.T, f *fixture) {
			f.put(t, issue(t, identitytest.NewRoot(t, "mesh.test"), curlID, nil))
		}, "not trusted"},
		{"no SPIFFE ID", func(t *testing.T, f *fixture) {
			f.put(t, issue(t, f.ca, curlID, func(c *x509.Certificate) { c.URIs, c.DNSNames = nil, []string{"curl"} }))
		}, "no URI SAN"},
		{"huge file", func(t *testing.T, f *fixture) { write(t, f.cert, make([]byte, maxFile+1)) }, "larger than"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFixture(t)
			p := f.open(t)
			before := serial(t, p, curl)
			f.log.Reset()
			changed := p.Changed()
			tt.spoil(t, f)
			p.turn()
			f.clock.Advance(time.Second)
			p.turn()
			if serial(t, p, curl) != before {
				t.Error("bad leaf in use")
			}
			log := f.log.String()
			if strings.Count(log, "leaf is unusable") != 1 || !strings.Contains(log, tt.text) || !strings.Contains(log, f.cert) {
				t.Errorf("log, want once %q:\n%s", tt.text, log)
			}
			if s := p.Summary(); len(s.Problems) != 1 || !strings.Contains(s.Problems[0], tt.text) {
				t.Errorf("problems %q, want %q", s.Problems, tt.text)
			}
			select {
			case <-changed:
				t.Error("notified of nothing")
			default:
			}
			f.put(t, issue(t, f.ca, curlID, nil))
			p.turn()
			if serial(t, p, curl) == before || len(p.Summary().Problems) != 0 {
				t.Errorf("repaired files not in use, problems %q", p.Summary().Problems)
			}
			<-changed
		})
	}
}

func TestLeafComesLater(t *testing.T) {
	f := newFixture(t)
	check(t, os.Remove(f.key))
	p := f.open(t)
	if _, err := p.Leaf(t.Context(), curl); !errors.Is(err, identity.ErrNoLeaf) || !strings.Contains(err.Error(), f.key) {
		t.Errorf("error %v, want %v with the path", err, identity.ErrNoLeaf)
	}
	f.put(t, issue(t, f.ca, curlID, func(c *x509.Certificate) { c.NotBefore = identitytest.Epoch.Add(time.Minute) }))
	p.turn()
	if _, err := p.Leaf(t.Context(), curl); !errors.Is(err, identity.ErrNotYetValid) {
		t.Errorf("error %v, want %v", err, identity.ErrNotYetValid)
	}
	f.clock.Advance(time.Minute)
	p.turn()
	serial(t, p, curl)
}

func TestLeafExpires(t *testing.T) {
	f := newFixture(t)
	p := f.open(t)
	f.clock.Advance(12 * time.Hour)
	if _, err := p.Leaf(t.Context(), curl); !errors.Is(err, identity.ErrNoLeaf) {
		t.Errorf("expired leaf: %v, want %v", err, identity.ErrNoLeaf)
	}
	f.log.Reset()
	f.clock.Advance(time.Second)
	p.turn()
	p.turn()
	if n := strings.Count(f.log.String(), "certificate expired"); n != 1 {
		t.Errorf("logged %d times, want once:\n%s", n, f.log)
	}
}

func TestBundle(t *testing.T) {
	f := newFixture(t)
	p := f.open(t)
	next := identitytest.NewRoot(t, "mesh.test")
	changed := p.Changed()
	write(t, f.bundle, identitytest.PEM(f.ca.Cert, next.Cert))
	p.turn()
	<-changed
	if n := len(p.Bundle().Roots(td)); n != 2 {
		t.Fatalf("%d roots, want 2", n)
	}
	// A leaf of the new root, before and after the root.
	f.put(t, issue(t, next, curlID, nil))
	p.turn()
	second := serial(t, p, curl)

	far := identitytest.NewRoot(t, "far.test")
	for name, content := range map[string][]byte{
		"empty":                     nil,
		"leaf":                      f.mustRead(t, f.cert),
		"root of another domain":    identitytest.PEM(far.Cert),
		"second root is no good":    identitytest.PEM(next.Cert, far.Cert),
		"half of the second root":   identitytest.PEM(f.ca.Cert, next.Cert)[:900],
		"key where a root belongs":  f.mustRead(t, f.key),
		"something else altogether": []byte("hello"),
	} {
		write(t, f.bundle, content)
		p.turn()
		if n := len(p.Bundle().Roots(td)); n != 2 {
			t.Errorf("%s: %d roots, want the last good 2", name, n)
		}
		if serial(t, p, curl) != second {
			t.Errorf("%s: leaf changed", name)
		}
	}
}

// TestLeafBeforeItsRoot: a CA's rotation reaches the leaf's file first.
func TestLeafBeforeItsRoot(t *testing.T) {
	f := newFixture(t)
	p := f.open(t)
	old := serial(t, p, curl)
	next := identitytest.NewRoot(t, "mesh.test")
	f.put(t, issue(t, next, curlID, nil))
	p.turn()
	if serial(t, p, curl) != old {
		t.Error("leaf in use that no peer trusts")
	}
	write(t, f.bundle, identitytest.PEM(f.ca.Cert, next.Cert))
	p.turn()
	if serial(t, p, curl) == old {
		t.Error("leaf not in use although its root has come")
	}
}

// TestRootGoesBeforeItsLeaf: that no peer will trust the leaf any more is a
// problem, but no reason to be without one.
func TestRootGoesBeforeItsLeaf(t *testing.T) {
	f := newFixture(t)
	p := f.open(t)
	old := serial(t, p, curl)
	write(t, f.bundle, identitytest.PEM(identitytest.NewRoot(t, "mesh.test").Cert))
	p.turn()
	if s := p.Summary(); serial(t, p, curl) != old || len(s.Problems) != 1 || !strings.Contains(s.Problems[0], "not trusted") {
		t.Errorf("problems %q", s.Problems)
	}
}

func TestOpenRefuses(t *testing.T) {
	for name, spoil := range map[string]func(f *fixture){
		"no bundle":      func(f *fixture) { f.opts.Bundles = nil },
		"missing bundle": func(f *fixture) { f.opts.Bundles[td] = f.dir + "/none" },
		"same identity twice": func(f *fixture) {
			f.opts.Workloads = append(f.opts.Workloads, Workload{Identity: curl, CertFile: "x", KeyFile: "y"})
		},
		"same file twice": func(f *fixture) {
			f.opts.Workloads = append(f.opts.Workloads, Workload{Identity: web, CertFile: f.cert, KeyFile: f.key})
		},
		"no identity": func(f *fixture) { f.opts.Workloads[0].Identity = spiffeid.ID{} },
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			spoil(f)
			if _, err := Open(f.opts); err == nil {
				t.Error("no error")
			}
		})
	}
}

func TestDirectory(t *testing.T) {
	f := newFixture(t)
	f.opts.Workloads = nil
	f.opts.Dir = filepath.Join(f.dir, "workloads")
	put := func(sub, id string) {
		i := issue(t, f.ca, id, nil)
		write(t, filepath.Join(f.opts.Dir, sub, "tls.crt"), i.cert)
		write(t, filepath.Join(f.opts.Dir, sub, "tls.key"), i.key)
	}
	put("a", curlID)
	put(".hidden", webID)
	p := f.open(t)
	first := serial(t, p, curl)
	if _, err := p.Leaf(t.Context(), web); err == nil {
		t.Error("hidden directory was read")
	}
	put("b", webID)
	put("c", curlID) // the same identity again
	p.turn()
	serial(t, p, web)
	if serial(t, p, curl) != first {
		t.Error("a second directory took the identity over")
	}
	if s := p.Summary(); len(s.Problems) != 1 || !strings.Contains(s.Problems[0], "another file has the leaf") {
		t.Errorf("problems %q", s.Problems)
	}
	check(t, os.RemoveAll(filepath.Join(f.opts.Dir, "b")))
	p.turn()
	if _, err := p.Leaf(t.Context(), web); !errors.Is(err, identity.ErrNoLeaf) {
		t.Errorf("workload is gone, leaf: %v", err)
	}
}

func TestReadableKeyIsReported(t *testing.T) {
	f := newFixture(t)
	check(t, os.Chmod(f.key, 0o644))
	f.open(t)
	if !strings.Contains(f.log.String(), "can read the key") {
		t.Errorf("no warning:\n%s", f.log)
	}
}

// TestKubernetesSecret updates as the kubelet does: the files are symlinks into
// ..data, itself a symlink that is replaced atomically.
func TestKubernetesSecret(t *testing.T) {
	f := newFixture(t)
	secret := filepath.Join(f.dir, "secret")
	version := func(name string) {
		i := issue(t, f.ca, curlID, nil)
		write(t, filepath.Join(secret, name, "tls.crt"), i.cert)
		write(t, filepath.Join(secret, name, "tls.key"), i.key)
		check(t, os.Symlink(name, filepath.Join(secret, "..data_tmp")))
		check(t, os.Rename(filepath.Join(secret, "..data_tmp"), filepath.Join(secret, "..data")))
	}
	version("..1")
	for _, n := range []string{"tls.crt", "tls.key"} {
		check(t, os.Symlink("..data/"+n, filepath.Join(secret, n)))
	}
	f.opts.Workloads[0].CertFile = filepath.Join(secret, "tls.crt")
	f.opts.Workloads[0].KeyFile = filepath.Join(secret, "tls.key")
	f.opts.Poll = time.Hour
	f.opts.Clock = frozenClock{}
	f.opts.Logger = nil
	p := f.open(t)
	first := serial(t, p, curl)
	run(t, p)
	version("..2")
	await(t, p, func() bool { return serial(t, p, curl) != first })
	second := serial(t, p, curl)
	check(t, os.RemoveAll(filepath.Join(secret, "..1")))
	version("..3")
	await(t, p, func() bool { return serial(t, p, curl) != second })
}

// TestRunUnderWriters renews a pair again and again, certificate and key one
// after the other and in place, while leaves are used: each is a good pair.
func TestRunUnderWriters(t *testing.T) {
	f := newFixture(t)
	f.opts.Poll, f.opts.Clock, f.opts.Logger = time.Hour, frozenClock{}, nil
	p := f.open(t)
	run(t, p)
	for range 5 {
		before := serial(t, p, curl)
		f.put(t, issue(t, f.ca, curlID, nil))
		await(t, p, func() bool {
			leaf, err := p.Leaf(t.Context(), curl)
			check(t, err)
			if key, ok := leaf.PrivateKey.(identity.Key); !ok || !key.Matches(leaf.Leaf) {
				t.Fatal("certificate and key do not belong together")
			}
			return leaf.Leaf.SerialNumber.String() != before
		})
	}
}

// TestPoll changes a symlink in a directory that nobody watches: it is neither
// where the configured name is nor where the file is.
func TestPoll(t *testing.T) {
	f := newFixture(t)
	between := filepath.Join(f.dir, "between")
	check(t, os.Mkdir(between, 0o700))
	for _, path := range []string{f.cert, f.key} {
		n := filepath.Base(path)
		write(t, filepath.Join(f.dir, "1", n), f.mustRead(t, path))
		check(t, os.Remove(path))
		check(t, os.Symlink(filepath.Join(between, "now", n), path))
	}
	check(t, os.Symlink("../1", filepath.Join(between, "now")))
	f.opts.Poll, f.opts.Clock, f.opts.Logger = 20*time.Millisecond, frozenClock{}, nil
	p := f.open(t)
	run(t, p)
	before := serial(t, p, curl)
	next := issue(t, f.ca, curlID, nil)
	write(t, filepath.Join(f.dir, "2", "tls.crt"), next.cert)
	write(t, filepath.Join(f.dir, "2", "tls.key"), next.key)
	check(t, os.Symlink("../2", filepath.Join(between, "next")))
	check(t, os.Rename(filepath.Join(between, "next"), filepath.Join(between, "now")))
	await(t, p, func() bool { return serial(t, p, curl) != before })
}
