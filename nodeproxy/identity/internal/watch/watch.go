// SPDX-License-Identifier: Apache-2.0

// Package watch tells providers that something happened in directories that
// they read. It knows nothing of what is in them; and since inotify may be
// unavailable, miss what happens behind a symlink or on another machine, its
// users poll as well.
package watch

import (
	"log/slog"

	"github.com/fsnotify/fsnotify"
)

// Watch watches directories.
type Watch struct {
	watcher *fsnotify.Watcher // nil: not available
	log     *slog.Logger
}

// New makes a watch without directories. When the kernel gives no inotify
// instance, it says so once and never fires.
func New(log *slog.Logger) *Watch {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		log.Warn("file changes are noticed by polling only", "err", err)
		return &Watch{log: log}
	}
	return &Watch{watcher: w, log: log}
}

// Set makes these the watched directories. Those that do not exist are left
// out until the next Set.
func (w *Watch) Set(dirs []string) {
	if w.watcher == nil {
		return
	}
	want := make(map[string]bool, len(dirs))
	for _, d := range dirs {
		want[d] = true
	}
	for _, d := range w.watcher.WatchList() {
		if !want[d] {
			_ = w.watcher.Remove(d) // it is gone already
		}
		delete(want, d)
	}
	for d := range want {
		if err := w.watcher.Add(d); err != nil {
			w.log.Debug("directory not watched", "dir", d, "err", err)
		}
	}
}

// Events fires for everything that happens in the directories.
func (w *Watch) Events() <-chan fsnotify.Event {
	if w.watcher == nil {
		return nil
	}
	return w.watcher.Events
}

// Errors fires when events were lost; the reader should look for itself.
func (w *Watch) Errors() <-chan error {
	if w.watcher == nil {
		return nil
	}
	return w.watcher.Errors
}

// Close ends the watch and its goroutine.
func (w *Watch) Close() {
	if w.watcher != nil {
		_ = w.watcher.Close()
	}
}
