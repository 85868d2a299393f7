// SPDX-License-Identifier: Apache-2.0

package embedded

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/sys/unix"

	"github.com/meshproxy/meshproxy/nodeproxy/identity"
)

// What is used where options say nothing.
const (
	DefaultRootTTL     = 10 * 365 * 24 * time.Hour
	DefaultLeafTTL     = 24 * time.Hour
	DefaultPropagation = 5 * time.Minute
)

// InitOptions are for a new CA; zero fields are the defaults.
type InitOptions struct {
	RootTTL time.Duration
	// MaxLeafTTL bounds the lifetime of leaves on every node. An old root
	// stays trusted for that long.
	MaxLeafTTL time.Duration
	Clock      identity.Clock
}

// Init makes a new CA for the trust domain in dir, which is created if need be.
// It never touches an existing one: ErrExists.
func Init(dir string, td spiffeid.TrustDomain, opts InitOptions) (identity.RootSummary, error) {
	opts.RootTTL = durationOr(opts.RootTTL, DefaultRootTTL)
	opts.MaxLeafTTL = durationOr(opts.MaxLeafTTL, DefaultLeafTTL)
	switch {
	case td.IsZero():
		return identity.RootSummary{}, errors.New("trust domain is empty")
	case opts.MaxLeafTTL < 0 || opts.RootTTL < opts.MaxLeafTTL:
		return identity.RootSummary{}, fmt.Errorf("root lifetime is %v, want at least that of leaves, %v", opts.RootTTL, opts.MaxLeafTTL)
	}
	now := clockOr(opts.Clock).Now()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return identity.RootSummary{}, fmt.Errorf("create CA directory: %w", err)
	}
	s, err := openStore(dir)
	if err != nil {
		return identity.RootSummary{}, err
	}
	defer s.close()
	if err := s.hold(unix.LOCK_EX); err != nil {
		return identity.RootSummary{}, err
	}
	if _, err := s.root.Lstat(manifestName); !errors.Is(err, fs.ErrNotExist) {
		return identity.RootSummary{}, errors.Join(fmt.Errorf("%w: %s", ErrExists, dir), err)
	}
	r, err := s.addRoot(td, now, opts.RootTTL)
	if err != nil {
		return identity.RootSummary{}, err
	}
	a := &authority{trustDomain: td, maxLeafTTL: opts.MaxLeafTTL}
	a.add(r)
	if err := s.writeManifest(a.manifest()); err != nil {
		return identity.RootSummary{}, err
	}
	return a.summaries(now)[0], nil
}

// RotateOptions are for a new root; zero fields are the defaults.
type RotateOptions struct {
	RootTTL time.Duration
	// Propagation is how long the new root is only trusted before it signs:
	// the time that every node needs to see it. Where nodes have copies of
	// the directory, the time to copy it.
	Propagation time.Duration
	Clock       identity.Clock
}

// Rotate adds a root that will succeed the present one. Running nodes notice.
func Rotate(dir string, opts RotateOptions) (identity.RootSummary, error) {
	now := clockOr(opts.Clock).Now()
	s, a, err := openLocked(dir, unix.LOCK_EX)
	if err != nil {
		return identity.RootSummary{}, err
	}
	defer s.close()
	r, err := s.addRoot(a.trustDomain, now, durationOr(opts.RootTTL, DefaultRootTTL))
	if err != nil {
		return identity.RootSummary{}, err
	}
	r.signsFrom = now.Add(durationOr(opts.Propagation, DefaultPropagation))
	if last := a.roots[len(a.roots)-1]; r.signsFrom.Before(last.signsFrom) {
		r.signsFrom = last.signsFrom // of a rotation that is still under way
	}
	a.add(r)
	if err := s.commit(a, now); err != nil {
		return identity.RootSummary{}, err
	}
	all := a.summaries(now)
	return all[len(all)-1], nil
}

// Prune removes roots that are trusted no more, keys that sign no more, and
// what a crash has left over. Running nodes call it after a rotation.
func Prune(dir string, clock identity.Clock) error {
	s, a, err := openLocked(dir, unix.LOCK_EX)
	if err != nil {
		return err
	}
	defer s.close()
	return s.commit(a, clockOr(clock).Now())
}

// Summary describes a CA directory without running a provider.
func Summary(dir string, clock identity.Clock) (identity.Summary, error) {
	s, a, err := openLocked(dir, unix.LOCK_SH)
	if err != nil {
		return identity.Summary{}, err
	}
	defer s.close()
	return identity.Summary{Provider: providerName, Roots: a.summaries(clockOr(clock).Now())}, nil
}

func openLocked(dir string, how int) (*store, *authority, error) {
	s, err := openStore(dir)
	if err != nil {
		return nil, nil, err
	}
	if err := s.hold(how); err != nil {
		s.close()
		return nil, nil, err
	}
	text, err := s.manifestText()
	if err != nil {
		s.close()
		return nil, nil, err
	}
	a, err := s.load(text)
	if err != nil {
		s.close()
		return nil, nil, err
	}
	return s, a, nil
}

// commit writes the manifest without the roots that have no use any more, and
// removes their files after that: a crash leaves files without a name, never
// a name without files.
func (s *store) commit(a *authority, now time.Time) error {
	a.roots = a.trusted(now)
	if err := s.writeManifest(a.manifest()); err != nil {
		return err
	}
	return s.removeOthers(a, now)
}

// removeOthers removes the roots and keys that a has no use for.
func (s *store) removeOthers(a *authority, now time.Time) error {
	keep := make(map[string]bool)
	for _, r := range a.roots {
		keep[r.name()+".crt"] = true
		keep[r.name()+".key"] = !a.keyIsSpent(r, now)
	}
	dir, err := s.root.Open(".")
	if err != nil {
		return fmt.Errorf("prune CA directory: %w", err)
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return fmt.Errorf("prune CA directory: %w", err)
	}
	for _, name := range names {
		if keep[name] || !strings.HasPrefix(name, "root-") && !strings.HasPrefix(name, ".root-") {
			continue
		}
		if err := s.root.Remove(name); err != nil {
			return fmt.Errorf("prune CA directory: %w", err)
		}
	}
	return nil
}

func clockOr(c identity.Clock) identity.Clock {
	if c == nil {
		return identity.SystemClock{}
	}
	return c
}

func durationOr(d, otherwise time.Duration) time.Duration {
	if d == 0 {
		return otherwise
	}
	return d
}
