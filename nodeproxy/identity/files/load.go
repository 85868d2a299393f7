// SPDX-License-Identifier: Apache-2.0

package files

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/meshproxy/meshproxy/nodeproxy/identity"
)

// maxFile is far above any real file, and bounds what a wrong path costs.
const maxFile = 1 << 20

// stamp changes when a file does, or what a symlink leads to.
type stamp struct {
	dev, ino     uint64
	size         int64
	mtime, ctime syscall.Timespec
}

func stampOf(path string) stamp {
	info, err := os.Stat(path)
	if err != nil {
		return stamp{} // reading it will say why
	}
	s, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return stamp{}
	}
	return stamp{s.Dev, s.Ino, s.Size, s.Mtim, s.Ctim}
}

func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, err
	}
	if len(text) > maxFile {
		return nil, fmt.Errorf("read %s: larger than %d bytes", path, maxFile)
	}
	return text, nil
}

// loadLeaf reads a pair that must be good for the identity; for any if that is
// zero.
func loadLeaf(want spiffeid.ID, certFile, keyFile string, bundle *identity.Bundle, now time.Time) (spiffeid.ID, *tls.Certificate, error) {
	none := func(err error) (spiffeid.ID, *tls.Certificate, error) { return spiffeid.ID{}, nil, err }
	text, err := readFile(certFile)
	if err != nil {
		return none(err)
	}
	chain, err := identity.ParseCertificates(text)
	if err != nil {
		return none(fmt.Errorf("read %s: %w", certFile, err))
	}
	got, err := identity.Verify(chain, bundle, now)
	if err != nil {
		return none(fmt.Errorf("verify %s: %w", certFile, err))
	}
	if !want.IsZero() && got != want {
		return none(fmt.Errorf("verify %s: identity is %s, want %s", certFile, got, want))
	}
	key, err := loadKey(keyFile)
	if err != nil {
		return none(err)
	}
	leaf, err := identity.NewLeaf(chain, key)
	if err != nil {
		return none(fmt.Errorf("join %s and %s: %w", certFile, keyFile, err))
	}
	return got, leaf, nil
}

func loadKey(path string) (identity.Key, error) {
	text, err := readFile(path)
	if err != nil {
		return identity.Key{}, err
	}
	defer clear(text)
	key, err := identity.ParseKey(text)
	if err != nil {
		return identity.Key{}, fmt.Errorf("read %s: %w", path, err)
	}
	return key, nil
}

// readableByAll is worth a warning, no more: it is how Kubernetes mounts
// secrets.
func readableByAll(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().Perm()&fs.FileMode(0o004) != 0
}

// loadRoots reads the roots of a trust domain.
func loadRoots(td spiffeid.TrustDomain, path string) ([]*x509.Certificate, error) {
	text, err := readFile(path)
	if err != nil {
		return nil, err
	}
	roots, err := identity.ParseCertificates(text)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	for _, c := range roots {
		if err := identity.CheckRoot(c, td); err != nil {
			return nil, fmt.Errorf("read %s: %w", path, err)
		}
	}
	return roots, nil
}
