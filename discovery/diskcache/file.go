// SPDX-License-Identifier: Apache-2.0

package diskcache

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// A file is one line, "<kind> <version> <sha256 of the rest> <its length>\n",
// and the JSON that it speaks of.

var (
	errKind     = errors.New("not a file of this kind")
	errVersion  = errors.New("written by another version")
	errCorrupt  = errors.New("the content does not match its checksum")
	errTooLarge = errors.New("too large")
)

// file is one of the cache's files.
type file struct {
	path    string
	kind    string
	version int
	maxSize int64
}

// read returns the content. os.ErrNotExist means that there is none.
func (f file) read() ([]byte, error) {
	in, err := os.Open(f.path)
	if err != nil {
		return nil, err
	}
	defer in.Close()
	data, err := io.ReadAll(io.LimitReader(in, f.maxSize+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", f.path, err)
	}
	if int64(len(data)) > f.maxSize {
		return nil, fmt.Errorf("read %s: %w: more than %d bytes", f.path, errTooLarge, f.maxSize)
	}
	content, err := f.unwrap(data)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", f.path, err)
	}
	return content, nil
}

func (f file) unwrap(data []byte) ([]byte, error) {
	header, content, ok := bytes.Cut(data, []byte("\n"))
	var kind, sum string
	var version, length int
	if n, _ := fmt.Sscanf(string(header), "%s %d %s %d", &kind, &version, &sum, &length); !ok || n != 4 || kind != f.kind {
		return nil, errKind
	}
	if version != f.version {
		return nil, fmt.Errorf("%w: %d, this is %d", errVersion, version, f.version)
	}
	if want := sha256.Sum256(content); length != len(content) || sum != hex.EncodeToString(want[:]) {
		return nil, errCorrupt
	}
	return content, nil
}

// write replaces the file. On an error the old one is still there, and nothing
// else.
func (f file) write(content []byte) error {
	sum := sha256.Sum256(content)
	header := fmt.Sprintf("%s %d %x %d\n", f.kind, f.version, sum, len(content))
	if size := int64(len(header) + len(content)); size > f.maxSize {
		return fmt.Errorf("write %s: %w: %d bytes of at most %d", f.path, errTooLarge, size, f.maxSize)
	}
	// One name for the temporary file: what a crash leaves is overwritten the
	// next time, and never piles up.
	tmp := f.path + ".tmp"
	if err := writeSynced(tmp, []byte(header), content); err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", f.path, err), removeIfThere(tmp))
	}
	if err := os.Rename(tmp, f.path); err != nil {
		return errors.Join(fmt.Errorf("replace %s: %w", f.path, err), removeIfThere(tmp))
	}
	return syncDir(filepath.Dir(f.path))
}

func writeSynced(path string, parts ...[]byte) (err error) {
	out, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	for _, p := range parts {
		if _, err := out.Write(p); err != nil {
			return err
		}
	}
	return out.Sync()
}

func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// syncDir makes a rename last over a power failure (fsync(2)).
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync directory: %w", err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("sync directory: %w", err)
	}
	return nil
}
