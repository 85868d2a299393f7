// SPDX-License-Identifier: Apache-2.0

package config

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/fsnotify/fsnotify"
	"github.com/spf13/pflag"
)

// settle is how long a file must stay as it is before it is read: editors
// write in several steps.
const settle = 100 * time.Millisecond

// Origins are where a configuration comes from.
type Origins struct {
	Path  string
	Env   []string
	Flags *pflag.FlagSet
}

// Load loads from the origins.
func (o Origins) Load() (*Config, error) { return Load(o.Path, o.Env, o.Flags) }

// Reload is the outcome of reading the configuration again.
type Reload struct {
	// Config is complete and valid; nil when Err is set.
	Config *Config
	// Err is why the old configuration stays.
	Err error
	// Asked: somebody asked for it, rather than that the file changed.
	Asked bool
}

// Watch reads the configuration again when its file changes and when ask
// delivers (SIGHUP, an admin's request), and hands the outcome to each, one at
// a time, until ctx is done. loaded is what is in force; what changed since it
// was read is noticed. A change of the file that changes nothing of its
// contents is not reported; what was asked for always is.
//
// The directory is watched, not the file: editors and ConfigMaps put a new
// file in the old one's place.
func Watch(ctx context.Context, o Origins, loaded *Config, ask <-chan struct{}, each func(Reload)) error {
	w := &watch{origins: o, ask: ask, each: each, last: loaded.digest}
	if o.Path != "" {
		watcher, err := fsnotify.NewWatcher()
		if err != nil {
			return fmt.Errorf("watch configuration: %w", err)
		}
		defer watcher.Close()
		if err := watcher.Add(filepath.Dir(o.Path)); err != nil {
			return fmt.Errorf("watch %s: %w", filepath.Dir(o.Path), err)
		}
		w.events, w.errors = watcher.Events, watcher.Errors
	}
	w.run(ctx)
	return nil
}

type watch struct {
	origins Origins
	ask     <-chan struct{}
	each    func(Reload)
	events  <-chan fsnotify.Event
	errors  <-chan error
	last    digest // of the file as it was read last
}

func (w *watch) run(ctx context.Context) {
	settled := time.NewTimer(0) // for what changed since the start
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.ask:
			settled.Stop()
			w.changed()
			w.reload(true)
		case <-w.events:
			// Any event of the directory: a symbolic link's target may be
			// what changed.
			settled.Reset(settle)
		case err := <-w.errors:
			w.each(Reload{Err: fmt.Errorf("watch configuration: %w", err)})
			if errors.Is(err, fsnotify.ErrEventOverflow) {
				settled.Reset(settle) // what was lost may have been ours
			}
		case <-settled.C:
			if w.changed() {
				w.reload(false)
			}
		}
	}
}

// changed reports whether the file has other contents than last time. It is
// asked before the file is loaded: a change in between is one more event.
func (w *watch) changed() bool {
	if w.origins.Path == "" {
		return false
	}
	text, _ := readBounded(w.origins.Path) // Load says what is wrong with it
	before := w.last
	w.last = sha256.Sum256(text)
	return w.last != before
}

func (w *watch) reload(asked bool) {
	c, err := w.origins.Load()
	w.each(Reload{Config: c, Err: err, Asked: asked})
}
