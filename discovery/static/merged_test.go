// SPDX-License-Identifier: Apache-2.0

package static

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/meshproxy/meshproxy/discovery"
	"github.com/meshproxy/meshproxy/discovery/diskcache"
	"github.com/meshproxy/meshproxy/discovery/mesh"
)

// merge runs a merger over the files, with the cache, until the returned
// function is called.
func merge(t *testing.T, opts Options, cache *diskcache.Cache) (*discovery.Store, func()) {
	t.Helper()
	m, err := discovery.NewMerger(discovery.Options{
		Node: opts.Node, Domain: "mesh.internal", Sources: []discovery.Source{New(opts)},
		VirtualIPs:  []netip.Prefix{netip.MustParsePrefix("240.240.0.0/16"), netip.MustParsePrefix("2001:2::/48")},
		Assignments: cache.Assignments(), Last: cache.Load(),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	merged, cached := make(chan error), make(chan struct{})
	go func() { merged <- m.Run(ctx) }()
	go func() { cache.Run(ctx, m.Store()); close(cached) }()
	return m.Store(), func() {
		cancel()
		if err := <-merged; err != nil {
			t.Error(err)
		}
		<-cached
	}
}

// until waits for a snapshot that ok is content with.
func until(t *testing.T, store *discovery.Store, what string, ok func(*mesh.Snapshot) bool) *mesh.Snapshot {
	t.Helper()
	changed, cancel := store.Subscribe()
	defer cancel()
	timeout := time.After(deadline)
	for {
		select {
		case <-changed:
			if s := store.Load(); ok(s) {
				return s
			}
		case <-timeout:
			t.Fatalf("not %s: %+v", what, store.Load().Sources())
		}
	}
}

// TestRestartWithBrokenFile: the file is broken while the node runs, and still
// is when it starts again. The mesh stays as it was all the time.
func TestRestartWithBrokenFile(t *testing.T) {
	opts := testOptions(t, fullNodes+fullMesh)
	dir := t.TempDir()
	store, stop := merge(t, opts, diskcache.New(diskcache.Options{Dir: dir}))
	good := until(t, store, "ready", func(s *mesh.Snapshot) bool { return s.Sources()[0].Ready })
	write(t, opts.Files[0].Path, badFile)
	broken := until(t, store, "stale", func(s *mesh.Snapshot) bool { return s.Sources()[0].Stale })
	if c := mesh.Diff(good, broken); !c.Empty() {
		t.Errorf("an invalid file changed %+v", c)
	}
	if state := broken.Sources()[0]; !strings.Contains(state.Err, `"ports" is missing`) || !state.Ready {
		t.Errorf("state %+v", state)
	}
	stop()

	store, stop = merge(t, opts, diskcache.New(diskcache.Options{Dir: dir}))
	defer stop()
	again := store.Load()
	if len(again.Services()) != 2 || len(again.Workloads()) != 2 || len(again.Policies()) != 2 || again.Defaults() != good.Defaults() {
		t.Errorf("after the restart: %d services, %d workloads, %d policies, %+v",
			len(again.Services()), len(again.Workloads()), len(again.Policies()), again.Defaults())
	}
	for _, svc := range good.Services() {
		now := again.Service(svc.Name)
		if now == nil || !slices.Equal(now.VirtualIPs, svc.VirtualIPs) || len(now.Endpoints) != len(svc.Endpoints) {
			t.Errorf("%s after the restart: %+v", svc, now)
		}
	}
	write(t, opts.Files[0].Path, webFile)
	until(t, store, "fresh", func(s *mesh.Snapshot) bool { return !s.Sources()[0].Stale && len(s.Services()) == 1 })
}
