// SPDX-License-Identifier: Apache-2.0

package embedded

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.uber.org/goleak"

	"github.com/meshproxy/meshproxy/nodeproxy/identity/internal/identitytest"
)

var (
	td   = spiffeid.RequireTrustDomainFromString("mesh.test")
	curl = spiffeid.RequireFromString("spiffe://mesh.test/ns/default/sa/curl")
	web  = spiffeid.RequireFromString("spiffe://mesh.test/ns/default/sa/web")
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// newCA makes a CA whose directory does not exist yet.
func newCA(t *testing.T, clock *identitytest.Clock) (dir string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "state", "ca")
	if _, err := Init(dir, td, InitOptions{Clock: clock}); err != nil {
		t.Fatal(err)
	}
	return dir
}

func files(t *testing.T, dir, pattern string) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, pattern))
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func TestInit(t *testing.T) {
	clock := identitytest.NewClock()
	dir := newCA(t, clock)
	for path, want := range map[string]os.FileMode{
		dir:                            0o700,
		filepath.Join(dir, "ca.json"):  0o600,
		files(t, dir, "root-*.key")[0]: 0o600,
		files(t, dir, "root-*.crt")[0]: 0o600,
	} {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if got := info.Mode().Perm(); got != want {
			t.Errorf("%s has mode %#o, want %#o", path, got, want)
		}
	}
	if left := files(t, dir, ".*"); len(left) != 0 {
		t.Errorf("temporary files left: %v", left)
	}
	before, _ := os.ReadFile(filepath.Join(dir, "ca.json"))
	if _, err := Init(dir, td, InitOptions{Clock: clock}); !errors.Is(err, ErrExists) {
		t.Errorf("second Init: %v, want %v", err, ErrExists)
	}
	if after, _ := os.ReadFile(filepath.Join(dir, "ca.json")); string(after) != string(before) {
		t.Error("second Init changed the CA")
	}
	if n := len(files(t, dir, "root-*")); n != 2 {
		t.Errorf("%d root files after a refused Init, want 2", n)
	}
}

func TestInitRefusesBadCertificateLifetimes(t *testing.T) {
	for name, opts := range map[string]InitOptions{
		"root":            {RootTTL: -time.Hour},
		"leaf":            {MaxLeafTTL: -time.Hour},
		"leaf below root": {RootTTL: time.Hour, MaxLeafTTL: 2 * time.Hour},
	} {
		dir := filepath.Join(t.TempDir(), "ca")
		if _, err := Init(dir, td, opts); err == nil {
			t.Errorf("%s: no error", name)
		}
		if _, err := os.Stat(dir); err == nil {
			t.Errorf("%s: directory made", name)
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	for _, tt := range []struct {
		name  string
		spoil func(t *testing.T, dir string)
		want  error
		text  string
	}{
		{"no directory", func(t *testing.T, dir string) { check(t, os.RemoveAll(dir)) }, ErrNoCA, ""},
		{"empty directory", func(t *testing.T, dir string) {
			check(t, os.RemoveAll(dir))
			check(t, os.Mkdir(dir, 0o700))
		}, ErrNoCA, ""},
		{"directory that others may write", func(t *testing.T, dir string) { check(t, os.Chmod(dir, 0o777)) }, ErrPermissions, "has mode 0777, want 0755"},
		{"key that others may read", func(t *testing.T, dir string) {
			check(t, os.Chmod(files(t, dir, "root-*.key")[0], 0o644))
		}, ErrPermissions, ".key has mode 0644, want 0600"},
		{"key of the group", func(t *testing.T, dir string) {
			check(t, os.Chmod(files(t, dir, "root-*.key")[0], 0o640))
		}, ErrPermissions, ""},
		{"half a manifest", func(t *testing.T, dir string) {
			check(t, os.WriteFile(filepath.Join(dir, "ca.json"), []byte(`{"version":1,`), 0o600))
		}, nil, "parse " + "/"},
		{"unknown field", func(t *testing.T, dir string) {
			check(t, os.WriteFile(filepath.Join(dir, "ca.json"), []byte(`{"version":1,"x":1}`), 0o600))
		}, nil, `unknown field "x"`},
		{"path in the manifest", func(t *testing.T, dir string) {
			check(t, os.WriteFile(filepath.Join(dir, "ca.json"),
				[]byte(`{"version":1,"trustDomain":"mesh.test","maxLeafTTL":"24h","roots":[{"name":"../root-0123456789abcdef"}]}`), 0o600))
		}, nil, "root name is"},
		{"other key", func(t *testing.T, dir string) {
			other := newCA(t, identitytest.NewClock())
			key, err := os.ReadFile(files(t, other, "root-*.key")[0])
			check(t, err)
			check(t, os.WriteFile(files(t, dir, "root-*.key")[0], key, 0o600))
		}, nil, "key is not the certificate's"},
		{"other certificate", func(t *testing.T, dir string) {
			other := newCA(t, identitytest.NewClock())
			crt, err := os.ReadFile(files(t, other, "root-*.crt")[0])
			check(t, err)
			check(t, os.WriteFile(files(t, dir, "root-*.crt")[0], crt, 0o600))
		}, nil, "fingerprint is that of"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := newCA(t, identitytest.NewClock())
			tt.spoil(t, dir)
			_, err := Open(Options{Dir: dir})
			if err == nil || tt.want != nil && !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("error %v, want %v with %q", err, tt.want, tt.text)
			}
		})
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestRotateTogether rotates from many processes at once: none of the roots is
// lost.
func TestRotateTogether(t *testing.T) {
	clock := identitytest.NewClock()
	dir := newCA(t, clock)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if _, err := Rotate(dir, RotateOptions{Clock: clock}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	s, err := Summary(dir, clock)
	if err != nil {
		t.Fatal(err)
	}
	if len(s.Roots) != 9 || s.Roots[0].State != "signing" || s.Roots[8].State != "next" {
		t.Errorf("roots %+v", s.Roots)
	}
}

func TestRotationTimeline(t *testing.T) {
	clock := identitytest.NewClock()
	dir := newCA(t, clock)
	if _, err := Rotate(dir, RotateOptions{Clock: clock, Propagation: time.Hour}); err != nil {
		t.Fatal(err)
	}
	for _, at := range []struct {
		after  time.Duration
		states string
		keys   int
	}{
		{0, "signing next", 2},
		{59 * time.Minute, "signing next", 2},
		{time.Hour, "retiring signing", 2}, // the late clocks of other nodes
		{time.Hour + 11*time.Minute, "retiring signing", 1},
		{24 * time.Hour, "retiring signing", 1},
		{25 * time.Hour, "signing", 1},
	} {
		clock.Advance(at.after - clock.Now().Sub(identitytest.Epoch))
		if err := Prune(dir, clock); err != nil {
			t.Fatal(err)
		}
		s, err := Summary(dir, clock)
		if err != nil {
			t.Fatal(err)
		}
		var states []string
		for _, r := range s.Roots {
			states = append(states, r.State)
		}
		if got := strings.Join(states, " "); got != at.states {
			t.Errorf("after %v: %s, want %s", at.after, got, at.states)
		}
		if n := len(files(t, dir, "root-*.key")); n != at.keys {
			t.Errorf("after %v: %d keys, want %d", at.after, n, at.keys)
		}
		if n := len(files(t, dir, "root-*.crt")); n != len(states) {
			t.Errorf("after %v: %d certificates, want %d", at.after, n, len(states))
		}
	}
}

// TestPruneAfterCrash: what a crash leaves behind goes, foreign files stay.
func TestPruneAfterCrash(t *testing.T) {
	clock := identitytest.NewClock()
	dir := newCA(t, clock)
	for _, name := range []string{"root-0123456789abcdef.key", ".root-0123456789abcdef.key.1", "README"} {
		check(t, os.WriteFile(filepath.Join(dir, name), nil, 0o600))
	}
	check(t, Prune(dir, clock))
	if got := len(files(t, dir, "*")); got != 4 { // ca.json, root, its key, README
		t.Errorf("%d files, want 4", got)
	}
	if got := files(t, dir, ".*"); len(got) != 0 {
		t.Errorf("%v left", got)
	}
}
