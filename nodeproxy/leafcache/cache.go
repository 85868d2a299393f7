// SPDX-License-Identifier: Apache-2.0

package leafcache

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Cache is the sealed file. It is not for concurrent use.
type Cache struct {
	dir   string
	seals cipher.AEAD
}

const (
	cacheName = "leaves.sealed"
	// header begins the file, and is authenticated with it.
	header = "meshproxy leaves 1\n"
)

var (
	// ErrNone: nothing was kept yet.
	ErrNone    = errors.New("no leaves are kept")
	errForeign = errors.New("not a file of leaves that this version can read")
	errSeal    = errors.New("damaged, or sealed with another key, as on another machine")
)

// Open makes a cache in a state directory. It reads nothing.
func Open(stateDir string, key Key) (*Cache, error) {
	defer clear(key.bytes[:]) // the copy
	block, err := aes.NewCipher(key.bytes[:])
	if err != nil {
		return nil, fmt.Errorf("open leaf cache: %w", err)
	}
	sealed, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return nil, fmt.Errorf("open leaf cache: %w", err)
	}
	return &Cache{dir: stateDir, seals: sealed}, nil
}

// Path is that of the file.
func (c *Cache) Path() string { return filepath.Join(c.dir, cacheName) }

// Write replaces what is kept. After an error that is there still.
func (c *Cache) Write(text []byte) error {
	dir, err := os.OpenRoot(c.dir)
	if err != nil {
		return fmt.Errorf("keep leaves: %w", err)
	}
	defer dir.Close()
	if err := writeFile(dir, cacheName, c.seals.Seal([]byte(header), nil, text, []byte(header))); err != nil {
		return fmt.Errorf("keep leaves: %w", err)
	}
	return nil
}

// Read returns what was kept; the caller overwrites it.
func (c *Cache) Read() ([]byte, error) {
	dir, err := os.OpenRoot(c.dir)
	if err != nil {
		return nil, fmt.Errorf("read kept leaves: %w", err)
	}
	defer dir.Close()
	whole, err := readFile(dir, cacheName)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNone
	}
	if err != nil {
		return nil, fmt.Errorf("read kept leaves: %w", err)
	}
	sealed, ok := bytes.CutPrefix(whole, []byte(header))
	if !ok {
		return nil, fmt.Errorf("read %s: %w", c.Path(), errForeign)
	}
	text, err := c.seals.Open(nil, nil, sealed, []byte(header))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", c.Path(), errSeal)
	}
	return text, nil
}
