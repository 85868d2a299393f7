// SPDX-License-Identifier: Apache-2.0

package files

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/meshproxy/meshproxy/nodeproxy/identity"
)

// pair is a certificate file and its key file.
type pair struct {
	want      spiffeid.ID // zero: found in the directory
	cert, key string

	id     spiffeid.ID      // of leaf
	leaf   *tls.Certificate // the last good one
	err    error            // why the files are not in use now
	stamps [2]stamp         // of the files as last read
}

// rootFile is the bundle file of a trust domain.
type rootFile struct {
	trustDomain spiffeid.TrustDomain
	path        string

	roots []*x509.Certificate // the last good ones
	err   error
	stamp stamp
}

// turn reads what has changed and shows it to the readers.
func (p *Provider) turn() {
	p.discover()
	old := p.view.Load()
	next := &view{
		leaves:   make(map[spiffeid.ID]*tls.Certificate),
		bundle:   p.readRoots(old),
		problems: make(map[string]error),
		byID:     make(map[spiffeid.ID]error),
	}
	if p.dirErr != nil {
		next.problems[p.opts.Dir] = p.dirErr
	}
	for _, f := range p.roots {
		if f.err != nil {
			next.problems[f.path] = f.err
		}
	}
	rootsChanged := old == nil || old.bundle != next.bundle
	for _, path := range sortedKeys(p.pairs) {
		pr := p.pairs[path]
		p.readPair(pr, next, rootsChanged)
		if pr.err != nil {
			next.problems[path] = pr.err
			next.byID[cmp.Or(pr.want, pr.id)] = pr.err
		}
		if pr.leaf != nil {
			next.leaves[pr.id] = pr.leaf
		}
	}
	p.view.Store(next)
	if old != nil && (rootsChanged || !maps.Equal(old.leaves, next.leaves)) {
		p.Notify()
	}
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

// discover finds the pairs below Dir, and drops those that are gone.
func (p *Provider) discover() {
	if p.opts.Dir == "" {
		return
	}
	entries, err := os.ReadDir(p.opts.Dir)
	if err != nil && p.dirErr == nil {
		p.log.Error("workload directory is unusable, its leaves stay", "dir", p.opts.Dir, "err", err)
	}
	if p.dirErr = err; err != nil {
		return
	}
	found := make(map[string]bool)
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") {
			continue
		}
		cert := filepath.Join(p.opts.Dir, e.Name(), "tls.crt")
		if _, err := os.Stat(cert); err != nil {
			continue
		}
		found[cert] = true
		if p.pairs[cert] == nil {
			p.pairs[cert] = &pair{cert: cert, key: filepath.Join(p.opts.Dir, e.Name(), "tls.key")}
		}
	}
	for path, pr := range p.pairs {
		if pr.want.IsZero() && !found[path] {
			delete(p.pairs, path)
		}
	}
}

// readRoots returns the old bundle when no bundle file has changed.
func (p *Provider) readRoots(old *view) *identity.Bundle {
	all := make(map[spiffeid.TrustDomain][]*x509.Certificate)
	changed := old == nil
	for td, f := range p.roots {
		if now := stampOf(f.path); now != f.stamp || f.err != nil || f.roots == nil {
			changed = f.read(p, now) || changed
		}
		if f.roots != nil {
			all[td] = f.roots
		}
	}
	if !changed {
		return old.bundle
	}
	b := identity.NewBundle(all)
	if old != nil && b.Equal(old.bundle) {
		return old.bundle
	}
	return b
}

// read takes over the file's roots if they are good.
func (f *rootFile) read(p *Provider, now stamp) bool {
	news := now != f.stamp
	f.stamp = now
	roots, err := loadRoots(f.trustDomain, f.path)
	first := f.err == nil || news
	if f.err = err; err != nil {
		if first {
			p.log.Error("bundle is unusable, the last good one stays", "trustDomain", f.trustDomain.Name(), "path", f.path, "err", err)
		}
		return false
	}
	f.roots = roots
	p.log.Info("bundle read", "trustDomain", f.trustDomain.Name(), "path", f.path, "roots", len(roots))
	return true
}

// readPair takes over the pair's files if they have changed and are good. A
// pair that was not good is tried again each time: its root, or its hour, may
// have come.
func (p *Provider) readPair(pr *pair, next *view, rootsChanged bool) {
	now := p.opts.Clock.Now()
	stamps := [2]stamp{stampOf(pr.cert), stampOf(pr.key)}
	news := stamps != pr.stamps
	good := pr.err == nil && pr.leaf != nil && now.Before(pr.leaf.Leaf.NotAfter)
	if good && !news && !rootsChanged {
		return
	}
	pr.stamps = stamps
	id, leaf, err := loadLeaf(pr.want, pr.cert, pr.key, next.bundle, now)
	if err == nil && next.leaves[id] != nil {
		err = fmt.Errorf("read %s: another file has the leaf of %s already", pr.cert, id)
	}
	first := pr.err == nil || news
	if pr.err = err; err != nil {
		if first {
			p.log.Error("leaf is unusable, the last good one stays", "identity", cmp.Or(pr.want, pr.id).String(),
				"cert", pr.cert, "key", pr.key, "err", err)
		}
		return
	}
	if pr.leaf != nil && slices.EqualFunc(pr.leaf.Certificate, leaf.Certificate, slices.Equal) {
		return // only the roots are new, or the file's date
	}
	pr.id, pr.leaf = id, leaf
	p.log.Info("leaf read", "identity", id.String(), "cert", pr.cert, "notAfter", leaf.Leaf.NotAfter)
	if readableByAll(pr.key) {
		p.log.Warn("every user of this machine can read the key", "identity", id.String(), "key", pr.key)
	}
}

// dirs are the directories in which a change of any file shows: that of its
// name, and that of what a symlink leads to.
func (p *Provider) dirs() []string {
	set := make(map[string]bool)
	add := func(path string) {
		set[filepath.Dir(path)] = true
		if real, err := filepath.EvalSymlinks(path); err == nil {
			set[filepath.Dir(real)] = true
		}
	}
	for _, pr := range p.pairs {
		add(pr.cert)
		add(pr.key)
	}
	for _, f := range p.roots {
		add(f.path)
	}
	if p.opts.Dir != "" {
		set[p.opts.Dir] = true
		entries, _ := os.ReadDir(p.opts.Dir) // turn reports the error
		for _, e := range entries {
			if e.IsDir() {
				set[filepath.Join(p.opts.Dir, e.Name())] = true
			}
		}
	}
	return sortedKeys(set)
}
