// SPDX-License-Identifier: Apache-2.0

package leafcache

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// unsealed is the key of a state directory, sealed with this machine's secret by
// the real systemd-creds.
func unsealed(t *testing.T, dir string) Key {
	t.Helper()
	k, err := Unseal(t.Context(), dir, WithHost)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func opened(t *testing.T, dir string, k Key) *Cache {
	t.Helper()
	c, err := Open(dir, k)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestReboot: what a process has kept another one reads, with nothing but the
// state directory; nothing plain is in it, and nobody else may read it.
func TestReboot(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "lib")
	k := unsealed(t, dir)
	c := opened(t, dir, k)
	if _, err := c.Read(); !errors.Is(err, ErrNone) {
		t.Errorf("before anything was kept: %v", err)
	}
	for _, text := range []string{"a long secret that is replaced", "secret", ""} {
		if err := c.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
		got, err := opened(t, dir, unsealed(t, dir)).Read()
		if err != nil || string(got) != text {
			t.Errorf("read %q, %v, want %q", got, err, text)
		}
	}
	if err := c.Write([]byte("secret")); err != nil {
		t.Fatal(err)
	}
	for name, text := range filesOf(t, dir) {
		if bytes.Contains(text, []byte("secret")) || bytes.Contains(text, k.bytes[:]) {
			t.Errorf("%s holds plain text", name)
		}
		if st, err := os.Stat(filepath.Join(dir, name)); err != nil || st.Mode() != 0o600 {
			t.Errorf("%s: mode %v, %v", name, st.Mode(), err)
		}
	}
	if names := namesOf(t, dir); !slices.Equal(names, []string{"leaves.host.key", "leaves.sealed"}) {
		t.Errorf("files %q", names)
	}
}

// TestSpoiled: what is damaged or of another machine is no cache, the error says
// why, and the next write mends it.
func TestSpoiled(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name  string
		spoil func([]byte) []byte
		says  error
	}{
		{"empty", func([]byte) []byte { return nil }, errForeign},
		{"another file", func([]byte) []byte { return []byte("meshproxy snapshot 1\n{}") }, errForeign},
		{"another version", func(b []byte) []byte { return append([]byte("meshproxy leaves 2\n"), b[len(header):]...) }, errForeign},
		{"header alone", func([]byte) []byte { return []byte(header) }, errSeal},
		{"cut", func(b []byte) []byte { return b[:len(b)-1] }, errSeal},
		{"longer", func(b []byte) []byte { return append(b, 0) }, errSeal},
		{"a bit", func(b []byte) []byte { b[len(header)+15] ^= 1; return b }, errSeal},
		{"nonce", func(b []byte) []byte { b[len(header)] ^= 1; return b }, errSeal},
		{"of another machine", func([]byte) []byte {
			dir := t.TempDir()
			if err := opened(t, dir, Key{}).Write([]byte("secret")); err != nil {
				t.Error(err)
			}
			b, _ := os.ReadFile(filepath.Join(dir, cacheName))
			return b
		}, errSeal},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			c := opened(t, dir, Key{[keySize]byte{1}})
			if err := c.Write([]byte("secret")); err != nil {
				t.Fatal(err)
			}
			whole, err := os.ReadFile(c.Path())
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(c.Path(), tt.spoil(whole), 0o600); err != nil {
				t.Fatal(err)
			}
			if text, err := c.Read(); !errors.Is(err, tt.says) || text != nil || !strings.Contains(err.Error(), c.Path()) {
				t.Errorf("read %q, %v, want %v", text, err, tt.says)
			}
			if err := c.Write([]byte("new")); err != nil {
				t.Fatal(err)
			}
			if text, err := c.Read(); err != nil || string(text) != "new" {
				t.Errorf("after another write %q, %v", text, err)
			}
		})
	}
}

// TestForeignKey: a key that this machine can't unseal is not replaced; who
// removes it gets another one.
func TestForeignKey(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	before := unsealed(t, dir)
	path := filepath.Join(dir, sealedKey(WithHost))
	sealed, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	i := len(sealed) / 2
	sealed[i] ^= 'A' ^ 'B'
	if err := os.WriteFile(path, sealed, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Unseal(t.Context(), dir, WithHost); err == nil || !strings.Contains(err.Error(), "unseal "+path+" (remove it") {
		t.Errorf("a damaged key: %v", err)
	}
	if now, _ := os.ReadFile(path); !bytes.Equal(now, sealed) {
		t.Error("it was replaced")
	}
	must(t, os.Remove(path))
	if after := unsealed(t, dir); after == before {
		t.Error("the same key once more")
	}
	if _, err := Unseal(t.Context(), dir, Seal("nonsense")); err == nil || !strings.Contains(err.Error(), "systemd-creds encrypt") {
		t.Errorf("a seal that is none: %v", err)
	}
}

// TestHandOver: root hands the key to whom the run directory belongs to, and to
// nobody else; a link that this user leaves there leads nowhere.
func TestHandOver(t *testing.T) {
	t.Parallel()
	run, roots := t.TempDir(), filepath.Join(t.TempDir(), "roots")
	must(t, os.WriteFile(roots, []byte("root's"), 0o600))
	must(t, os.Chown(run, 12345, 12345))
	if _, err := Handed(run); err == nil || !strings.Contains(err.Error(), "unseal-leaves") {
		t.Errorf("without a key: %v", err)
	}
	must(t, os.Symlink(roots, filepath.Join(run, handed+temporary)))
	must(t, os.Link(roots, filepath.Join(run, handed)))
	k := Key{[keySize]byte{7}}
	must(t, HandOver(k, run))
	if got, err := Handed(run); err != nil || got != k {
		t.Errorf("handed over: %v", err)
	}
	var st unix.Stat_t
	must(t, unix.Stat(filepath.Join(run, handed), &st))
	if st.Uid != 12345 || st.Gid != 12345 || st.Mode&0o777 != 0o600 {
		t.Errorf("owner %d, group %d, mode %o", st.Uid, st.Gid, st.Mode)
	}
	if text, _ := os.ReadFile(roots); string(text) != "root's" {
		t.Errorf("a file of root's holds %q", text)
	}
	must(t, os.Remove(filepath.Join(run, handed)))
	must(t, unix.Mkfifo(filepath.Join(run, handed), 0o600))
	if _, err := Handed(run); err == nil {
		t.Error("a pipe was read")
	}
}

// TestClear: nothing of the package stays, and nothing else goes.
func TestClear(t *testing.T) {
	t.Parallel()
	state, run := t.TempDir(), t.TempDir()
	k := unsealed(t, state)
	must(t, opened(t, state, k).Write([]byte("secret")))
	must(t, HandOver(k, run))
	for _, other := range []string{"snapshot", "leaves.key.txt", cacheName + temporary} {
		must(t, os.WriteFile(filepath.Join(state, other), nil, 0o600))
	}
	must(t, Clear(state, run))
	must(t, Clear(state, filepath.Join(run, "gone")))
	if names := append(namesOf(t, state), namesOf(t, run)...); !slices.Equal(names, []string{"leaves.key.txt", "snapshot"}) {
		t.Errorf("left: %q", names)
	}
}

// TestUnwritable: without a directory to write to the error says so, and nothing
// plain is left anywhere.
func TestUnwritable(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	c := opened(t, dir, Key{})
	must(t, os.Mkdir(filepath.Join(dir, cacheName), 0o700))
	must(t, os.WriteFile(filepath.Join(dir, cacheName, "x"), nil, 0o600))
	if err := c.Write([]byte("secret")); err == nil {
		t.Error("a directory was replaced")
	}
	if names := namesOf(t, dir); !slices.Equal(names, []string{cacheName}) {
		t.Errorf("left: %q", names)
	}
	if _, err := c.Read(); err == nil {
		t.Error("a directory was read")
	}
}

func TestKeyIsNotShown(t *testing.T) {
	k := Key{[keySize]byte{0xab, 0xcd}}
	text, err := json.Marshal(k)
	must(t, err)
	for _, shown := range []string{fmt.Sprint(k), fmt.Sprintf("%x %#v %+v", k, k, struct{ K Key }{k}), string(text), k.LogValue().String()} {
		if strings.Contains(strings.ToLower(shown), "abcd") || strings.Contains(shown, "171") || !strings.Contains(shown, "[key]") {
			t.Errorf("shown as %s", shown)
		}
	}
}

func filesOf(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	files := make(map[string][]byte)
	for _, name := range namesOf(t, dir) {
		text, err := os.ReadFile(filepath.Join(dir, name))
		must(t, err)
		files[name] = text
	}
	return files
}

func namesOf(t *testing.T, dir string) (names []string) {
	t.Helper()
	entries, err := fs.ReadDir(os.DirFS(dir), ".")
	must(t, err)
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
