// SPDX-License-Identifier: Apache-2.0

package diskcache

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/meshproxy/meshproxy/discovery"
	"github.com/meshproxy/meshproxy/discovery/mesh"
)

// The defaults of Options. A snapshot of 100 000 endpoints has some 30 MB.
const (
	DefaultMaxSize  = 256 << 20
	DefaultInterval = 10 * time.Second
)

// The versions of the files. Adding a field to the model does not need a new
// one; giving a field another meaning does.
const (
	snapshotVersion    = 1
	assignmentsVersion = 1
)

// Options of a Cache.
type Options struct {
	// Dir exists and belongs to the node alone.
	Dir string
	// MaxSize bounds each file; 0 means DefaultMaxSize.
	MaxSize int64
	// Interval is the least time between two writes of the snapshot; 0 means
	// DefaultInterval.
	Interval time.Duration
	Logger   *slog.Logger
}

// Cache is a directory with the last snapshot and the virtual IPs. One process
// at a time uses it.
type Cache struct {
	opts        Options
	snapshot    file
	assignments file
}

// New returns the cache in a directory. It touches no file yet.
func New(opts Options) *Cache {
	if opts.MaxSize == 0 {
		opts.MaxSize = DefaultMaxSize
	}
	if opts.Interval == 0 {
		opts.Interval = DefaultInterval
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	return &Cache{
		opts:        opts,
		snapshot:    file{filepath.Join(opts.Dir, "snapshot.json"), "meshproxy-snapshot", snapshotVersion, opts.MaxSize},
		assignments: file{filepath.Join(opts.Dir, "virtual-ips.json"), "meshproxy-virtual-ips", assignmentsVersion, opts.MaxSize},
	}
}

// Load returns the last snapshot, or nil if there is none that can be used;
// the log says why not.
func (c *Cache) Load() *mesh.BuildInput {
	content, err := c.snapshot.read()
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	var in mesh.BuildInput
	if err == nil {
		err = json.Unmarshal(content, &in)
	}
	if err != nil {
		c.opts.Logger.Warn("the last snapshot cannot be used; starting without it", "error", err)
		return nil
	}
	dropNil(&in)
	c.opts.Logger.Info("last snapshot read", "built", in.Built, "version", in.Version, "services", len(in.Services))
	return &in
}

// dropNil keeps a "null" in the file from becoming a nil pointer in the model.
func dropNil(in *mesh.BuildInput) {
	in.Services = slices.DeleteFunc(in.Services, isNil)
	in.Workloads = slices.DeleteFunc(in.Workloads, isNil)
	in.Policies = slices.DeleteFunc(in.Policies, isNil)
	for _, s := range in.Services {
		s.Endpoints = slices.DeleteFunc(s.Endpoints, isNil)
	}
}

func isNil[T any](p *T) bool { return p == nil }

// Save writes a snapshot.
func (c *Cache) Save(s *mesh.Snapshot) error {
	content, err := json.Marshal(s.Input())
	if err != nil {
		return fmt.Errorf("encode snapshot: %w", err)
	}
	return c.snapshot.write(content)
}

// Run writes the store's snapshots, at most one in each interval and the last
// one at the end, until ctx is done. Errors are logged; the next snapshot is
// another attempt.
func (c *Cache) Run(ctx context.Context, store *discovery.Store) {
	changed, cancel := store.Subscribe()
	defer cancel()
	var saved *mesh.Snapshot
	save := func() (tried bool) {
		s := store.Load()
		// What is there before any source was heard from is empty, or what
		// the disk has already.
		if s == saved || !slices.ContainsFunc(s.Sources(), heardFrom) {
			return false
		}
		if err := c.Save(s); err != nil {
			c.opts.Logger.Error("snapshot is not saved; a restart finds an older one", "error", err)
			return true
		}
		saved = s
		return true
	}
	defer save()
	for {
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
		if !save() {
			continue
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(c.opts.Interval):
		}
	}
}

func heardFrom(s mesh.SourceState) bool { return s.Ready && !s.FromDisk }

// Assignments keeps virtual IPs in the cache's directory.
func (c *Cache) Assignments() discovery.Assignments { return assignments{c.assignments} }

type assignments struct{ file file }

// Load implements discovery.Assignments.
func (a assignments) Load() ([]discovery.Assignment, error) {
	content, err := a.file.read()
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var list []discovery.Assignment
	if err := json.Unmarshal(content, &list); err != nil {
		return nil, fmt.Errorf("decode virtual IPs: %w", err)
	}
	return list, nil
}

// Save implements discovery.Assignments.
func (a assignments) Save(list []discovery.Assignment) error {
	content, err := json.Marshal(list)
	if err != nil {
		return fmt.Errorf("encode virtual IPs: %w", err)
	}
	return a.file.write(content)
}
