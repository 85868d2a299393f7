// SPDX-License-Identifier: Apache-2.0

package static

import (
	"bytes"
	"context"
	"crypto/sha256"
	"sync"
	"time"

	"github.com/meshproxy/meshproxy/discovery"
)

// Changes are read once they have settled: an editor writes several times.
const (
	settleTime = 100 * time.Millisecond
	// maxSettle is for a directory in which something happens all the time.
	maxSettle = time.Second
	// pollInterval is for what cannot be watched: network file systems, a
	// symbolic link further up in the path. The files are small.
	pollInterval = 30 * time.Second
)

// Source follows YAML files.
type Source struct {
	name   string
	reload chan struct{}

	mu   sync.Mutex
	opts Options
}

var _ discovery.Source = (*Source)(nil)

// New returns a source; the files are not read before Run.
func New(opts Options) *Source {
	opts = opts.withDefaults()
	return &Source{name: opts.Name, opts: opts, reload: make(chan struct{}, 1)}
}

// Name implements discovery.Source.
func (s *Source) Name() string { return s.name }

// Reload replaces the options, all but the name, and reads the files again,
// even when they did not change.
func (s *Source) Reload(opts Options) {
	opts = opts.withDefaults()
	s.mu.Lock()
	s.opts = opts
	s.mu.Unlock()
	select {
	case s.reload <- struct{}{}:
	default:
	}
}

func (s *Source) options() Options {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.opts
}

// Run implements discovery.Source. Files that are not valid are an update with
// an error; Run goes on and waits for better ones.
func (s *Source) Run(ctx context.Context, updates chan<- discovery.Update) error {
	opts := s.options()
	w := newWatcher(opts.Logger)
	defer w.close()
	poll := time.NewTicker(pollInterval)
	defer poll.Stop()
	settled := time.NewTimer(0) // the first read is now
	defer settled.Stop()
	var seen [sha256.Size]byte
	partial := make(map[string]content)
	var unsettled time.Time // since when; zero when settled
	for {
		force := false
		select {
		case <-ctx.Done():
			return nil
		case <-w.changed():
			if unsettled.IsZero() {
				unsettled = time.Now()
			}
			if time.Since(unsettled) < maxSettle {
				settled.Reset(settleTime)
			}
			continue
		case <-s.reload:
			force = true
		case <-poll.C:
		case <-settled.C:
		}
		unsettled = time.Time{}
		opts = s.options()
		// Watch first, then read: a change in between is seen twice, not
		// never.
		w.watch(opts.Files)
		if force {
			clear(partial)
		}
		files := readKeeping(opts.Files, partial)
		sum := digest(files)
		if sum == seen && !force {
			continue
		}
		first := seen == [sha256.Size]byte{}
		seen = sum
		var u discovery.Update
		var err error
		if len(files) > 0 { // a node without a mesh is one, too
			u, err = decode(opts, files)
		}
		if err != nil {
			u = discovery.Update{Err: err}
		} else if !first {
			opts.Logger.Info("mesh files read again", "services", len(u.Services), "workloads", len(u.Workloads), "policies", len(u.Policies))
		}
		select {
		case updates <- u:
		case <-ctx.Done():
			return nil
		}
	}
}

// readKeeping reads the files, and a partial one once only: whether what it has
// beside the mesh is valid, and so may come into force, is for the owner of the
// configuration to decide, who then calls Reload.
func readKeeping(files []File, partial map[string]content) []content {
	out := make([]content, len(files))
	for i, f := range files {
		kept, ok := partial[f.Path]
		if f.Partial && ok {
			out[i] = kept
			continue
		}
		out[i] = read(files[i : i+1])[0]
		if f.Partial {
			partial[f.Path] = out[i]
		}
	}
	return out
}

// digest tells whether anything changed since the files were last read.
func digest(files []content) [sha256.Size]byte {
	var b bytes.Buffer
	for _, f := range files {
		sum := sha256.Sum256(f.data)
		b.WriteString(f.Path)
		b.WriteByte(0)
		b.Write(sum[:])
		if f.err != nil {
			b.WriteString(f.err.Error())
		}
	}
	return sha256.Sum256(b.Bytes())
}
