// SPDX-License-Identifier: Apache-2.0

package leafcache

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
)

// Seal is what the key is sealed with, as systemd-creds(1) has it in --with-key=.
type Seal string

// The seals. Its "null" protects nothing, and is none.
const (
	Off         Seal = "off"
	Auto        Seal = "auto"
	WithHost    Seal = "host"
	WithTPM     Seal = "tpm2"
	WithHostTPM Seal = "host+tpm2"
)

const keySize = 32

// Key is what the cache is sealed with. However it is printed, it says only that
// it is a key.
type Key struct{ bytes [keySize]byte }

var (
	_ fmt.Formatter  = Key{}
	_ slog.LogValuer = Key{}
)

// Format implements fmt.Formatter.
func (Key) Format(f fmt.State, _ rune) { io.WriteString(f, "[key]") }

// LogValue implements slog.LogValuer.
func (Key) LogValue() slog.Value { return slog.StringValue("[key]") }

// MarshalText keeps it out of JSON.
func (Key) MarshalText() ([]byte, error) { return []byte("[key]"), nil }

// handed is the name of the key in the run directory.
const handed = "leaves.key"

// sealedKey is the name of the credential. Another seal makes another key.
func sealedKey(with Seal) string { return "leaves." + string(with) + ".key" }

// Unseal returns the key of a state directory, for root. The first time, it makes
// one. A key that can't be unsealed is not replaced: that may work again, as when
// a TPM comes late.
func Unseal(ctx context.Context, stateDir string, with Seal) (Key, error) {
	dir, err := os.OpenRoot(stateDir)
	if errors.Is(err, fs.ErrNotExist) {
		if err = os.MkdirAll(stateDir, 0o700); err == nil {
			dir, err = os.OpenRoot(stateDir)
		}
	}
	if err != nil {
		return Key{}, fmt.Errorf("open state directory: %w", err)
	}
	defer dir.Close()
	name := sealedKey(with)
	sealed, err := readFile(dir, name)
	if errors.Is(err, fs.ErrNotExist) {
		return newKey(ctx, dir, with)
	}
	if err != nil {
		return Key{}, fmt.Errorf("read sealed key: %w", err)
	}
	plain, err := decrypt(ctx, sealed)
	defer clear(plain)
	if err == nil && len(plain) != keySize {
		err = fmt.Errorf("it holds %d bytes, want %d", len(plain), keySize)
	}
	if err != nil {
		return Key{}, fmt.Errorf("unseal %s (remove it to have another made): %w", filepath.Join(stateDir, name), err)
	}
	return Key{[keySize]byte(plain)}, nil
}

func newKey(ctx context.Context, dir *os.Root, with Seal) (Key, error) {
	var k Key
	rand.Read(k.bytes[:])
	sealed, err := encrypt(ctx, k.bytes[:], with)
	if err != nil {
		return Key{}, fmt.Errorf("seal a key for leaves: %w", err)
	}
	if err := writeFile(dir, sealedKey(with), sealed); err != nil {
		return Key{}, fmt.Errorf("write sealed key: %w", err)
	}
	return k, nil
}

// HandOver gives a node the key that root has unsealed: in its run directory, for
// the directory's owner only.
func HandOver(k Key, runDir string) error {
	dir, err := os.OpenRoot(runDir)
	if err != nil {
		return fmt.Errorf("hand over key: %w", err)
	}
	defer dir.Close()
	if err := writeFile(dir, handed, k.bytes[:]); err != nil {
		return fmt.Errorf("hand over key: %w", err)
	}
	return nil
}

// Handed returns the key that root has handed over.
func Handed(runDir string) (Key, error) {
	dir, err := os.OpenRoot(runDir)
	if err != nil {
		return Key{}, fmt.Errorf("read key: %w", err)
	}
	defer dir.Close()
	plain, err := readFile(dir, handed)
	defer clear(plain)
	if errors.Is(err, fs.ErrNotExist) {
		return Key{}, fmt.Errorf("no key in %s: root hands it over before each start, with meshproxy unseal-leaves", filepath.Join(runDir, handed))
	}
	if err == nil && len(plain) != keySize {
		err = fmt.Errorf("%s holds %d bytes, want %d", filepath.Join(runDir, handed), len(plain), keySize)
	}
	if err != nil {
		return Key{}, fmt.Errorf("read key: %w", err)
	}
	return Key{[keySize]byte(plain)}, nil
}

// Clear removes everything, whatever it was sealed with.
func Clear(stateDir, runDir string) error {
	var failed error
	for _, d := range []string{stateDir, runDir} {
		dir, err := os.OpenRoot(d)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("remove kept leaves: %w", err)
		}
		defer dir.Close()
		entries, err := fs.ReadDir(dir.FS(), ".")
		failed = errors.Join(failed, err)
		for _, e := range entries {
			if ours(e.Name()) {
				failed = errors.Join(failed, dir.Remove(e.Name()))
			}
		}
	}
	if failed != nil {
		return fmt.Errorf("remove kept leaves: %w", failed)
	}
	return nil
}

// ours are the names of the package's files, half-written ones among them.
func ours(name string) bool {
	name = strings.TrimSuffix(name, temporary)
	if name == cacheName || name == handed {
		return true
	}
	for _, with := range []Seal{Auto, WithHost, WithTPM, WithHostTPM} {
		if name == sealedKey(with) {
			return true
		}
	}
	return false
}
