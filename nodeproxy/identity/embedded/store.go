// SPDX-License-Identifier: Apache-2.0

package embedded

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/sys/unix"

	"github.com/meshproxy/meshproxy/nodeproxy/identity"
)

// What a CA directory can be wrong with.
var (
	ErrExists      = errors.New("directory already has a CA")
	ErrNoCA        = errors.New("directory has no CA")
	ErrPermissions = errors.New("permissions are too wide")
)

const (
	manifestName    = "ca.json"
	manifestVersion = 1
)

// manifest is ca.json.
type manifest struct {
	Version     int            `json:"version"`
	TrustDomain string         `json:"trustDomain"`
	MaxLeafTTL  string         `json:"maxLeafTTL"` // a time.Duration
	Roots       []manifestRoot `json:"roots"`      // by SignsFrom
}

type manifestRoot struct {
	Name      string    `json:"name"`
	SignsFrom time.Time `json:"signsFrom"`
}

var rootName = regexp.MustCompile(`^root-[0-9a-f]{16}$`)

// store is an open CA directory.
type store struct {
	dir  string
	root *os.Root // confines the names that the manifest holds
	lock *os.File
}

// openStore opens the directory, which must be closed to others.
func openStore(dir string) (*store, error) {
	r, err := os.OpenRoot(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %s", ErrNoCA, dir)
	}
	if err != nil {
		return nil, fmt.Errorf("open CA directory: %w", err)
	}
	s := &store{dir: dir, root: r}
	if err := s.checkMode(".", 0o022); err != nil {
		r.Close()
		return nil, err
	}
	return s, nil
}

func (s *store) close() {
	if s.lock != nil {
		s.lock.Close() // gives the flock back
	}
	s.root.Close()
}

// hold takes a flock until close: LOCK_EX to write, LOCK_SH to read what
// belongs together.
func (s *store) hold(how int) error {
	f, err := s.root.Open(".")
	if err != nil {
		return fmt.Errorf("open CA directory: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), how); err != nil {
		f.Close()
		return fmt.Errorf("lock CA directory %s: %w", s.dir, err)
	}
	s.lock = f
	return nil
}

// checkMode refuses a file that has any of the forbidden permissions.
func (s *store) checkMode(name string, forbidden fs.FileMode) error {
	info, err := s.root.Stat(name)
	if err != nil {
		return fmt.Errorf("read CA: %w", err)
	}
	if m := info.Mode().Perm(); m&forbidden != 0 {
		return fmt.Errorf("%w: %s has mode %#o, want %#o", ErrPermissions, filepath.Join(s.dir, name), m, m&^forbidden)
	}
	return nil
}

// write creates or replaces a file in one step.
func (s *store) write(name string, content []byte) (err error) {
	temp := fmt.Sprintf(".%s.%d", name, os.Getpid())
	defer func() {
		if err != nil {
			_ = s.root.Remove(temp)
			err = fmt.Errorf("write %s: %w", filepath.Join(s.dir, name), err)
		}
	}()
	_ = s.root.Remove(temp) // of a crashed process with this pid
	f, err := s.root.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := s.root.Rename(temp, name); err != nil {
		return err
	}
	return s.sync()
}

// sync makes renames outlive a power cut.
func (s *store) sync() error {
	d, err := s.root.Open(".")
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func (s *store) writeManifest(m manifest) error {
	text, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return fmt.Errorf("encode %s: %w", manifestName, err)
	}
	text = append(text, '\n')
	if old, err := s.root.ReadFile(manifestName); err == nil && bytes.Equal(old, text) {
		return nil // nor wake those who watch
	}
	return s.write(manifestName, text)
}

// addRoot writes the files of a new root, of which no manifest speaks yet.
func (s *store) addRoot(td spiffeid.TrustDomain, now time.Time, ttl time.Duration) (*root, error) {
	r, key, err := newRoot(td, now, ttl)
	if err != nil {
		return nil, err
	}
	text, err := encodeKey(key)
	if err != nil {
		return nil, err
	}
	defer clear(text)
	if err := s.write(r.name()+".key", text); err != nil {
		return nil, err
	}
	if err := s.write(r.name()+".crt", encodeCertificate(r.cert)); err != nil {
		return nil, err
	}
	return r, nil
}

// manifestText returns ca.json as it stands, for comparison.
func (s *store) manifestText() ([]byte, error) {
	text, err := s.root.ReadFile(manifestName)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %s", ErrNoCA, s.dir)
	}
	if err != nil {
		return nil, fmt.Errorf("read CA: %w", err)
	}
	return text, nil
}

func (s *store) parseManifest(text []byte) (manifest, error) {
	var m manifest
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	err := dec.Decode(&m)
	switch {
	case err != nil:
	case m.Version != manifestVersion:
		err = fmt.Errorf("version is %d, want %d", m.Version, manifestVersion)
	case len(m.Roots) == 0:
		err = errors.New("names no root")
	}
	for i, r := range m.Roots {
		if !rootName.MatchString(r.Name) {
			err = errors.Join(err, fmt.Errorf("root name is %q, want root-<16 hexadecimal digits>", r.Name))
		}
		if i > 0 && r.SignsFrom.Before(m.Roots[i-1].SignsFrom) {
			err = errors.Join(err, errors.New("roots are not in the order of signsFrom"))
		}
	}
	if err != nil {
		return manifest{}, fmt.Errorf("parse %s: %w", filepath.Join(s.dir, manifestName), err)
	}
	return m, nil
}

// loadRoot reads a root; its key may be gone once it signs no more.
func (s *store) loadRoot(m manifestRoot, td spiffeid.TrustDomain) (*root, error) {
	path := filepath.Join(s.dir, m.Name)
	text, err := s.root.ReadFile(m.Name + ".crt")
	if err != nil {
		return nil, fmt.Errorf("read root: %w", err)
	}
	certs, err := identity.ParseCertificates(text)
	if err != nil {
		return nil, fmt.Errorf("read %s.crt: %w", path, err)
	}
	r := &root{cert: certs[0], signsFrom: m.SignsFrom}
	if r.name() != m.Name {
		return nil, fmt.Errorf("read %s.crt: fingerprint is that of %s", path, r.name())
	}
	if err := identity.CheckRoot(r.cert, td); err != nil {
		return nil, fmt.Errorf("read %s.crt: %w", path, err)
	}
	return r, s.loadKey(r)
}

func (s *store) loadKey(r *root) error {
	name := r.name() + ".key"
	err := s.checkMode(name, 0o077)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	text, err := s.root.ReadFile(name)
	if err != nil {
		return fmt.Errorf("read root key: %w", err)
	}
	defer clear(text)
	if r.key, err = identity.ParseKey(text); err != nil {
		return fmt.Errorf("read %s: %w", filepath.Join(s.dir, name), err)
	}
	if !r.key.Matches(r.cert) {
		return fmt.Errorf("read %s: key is not the certificate's", filepath.Join(s.dir, name))
	}
	r.canSign = true
	return nil
}
