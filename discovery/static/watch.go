// SPDX-License-Identifier: Apache-2.0

package static

import (
	"log/slog"
	"path/filepath"

	"github.com/fsnotify/fsnotify"
)

// watcher tells when something happens in the directories of files. It watches
// directories and not files, because editors and configuration management
// replace a file by renaming another one over it, and Kubernetes swaps a
// symbolic link beside it; a watch on the file itself would die with it.
type watcher struct {
	notify  *fsnotify.Watcher // nil: only polling is left
	watched map[string]bool
	log     *slog.Logger
	events  chan struct{}
	done    chan struct{}
}

func newWatcher(log *slog.Logger) *watcher {
	w := &watcher{watched: make(map[string]bool), log: log, events: make(chan struct{}, 1), done: make(chan struct{})}
	n, err := fsnotify.NewWatcher()
	if err != nil {
		log.Warn("files cannot be watched; looking at them from time to time", "interval", pollInterval, "error", err)
		close(w.done)
		return w
	}
	w.notify = n
	go w.forward()
	return w
}

// forward makes one event of many, until it is seen.
func (w *watcher) forward() {
	defer close(w.done)
	for {
		select {
		case _, ok := <-w.notify.Events:
			if !ok {
				return
			}
		case err, ok := <-w.notify.Errors:
			if !ok {
				return
			}
			// Most likely an overflow of the queue: look at everything.
			w.log.Warn("file events were lost", "error", err)
		}
		select {
		case w.events <- struct{}{}:
		default:
		}
	}
}

func (w *watcher) changed() <-chan struct{} { return w.events }

// watch makes the watched directories those of the files: where their names
// are, and where symbolic links lead.
func (w *watcher) watch(files []File) {
	if w.notify == nil {
		return
	}
	want := make(map[string]bool)
	for _, f := range files {
		want[filepath.Dir(f.Path)] = true
		if real, err := filepath.EvalSymlinks(f.Path); err == nil {
			want[filepath.Dir(real)] = true
		}
	}
	for dir := range w.watched {
		if !want[dir] {
			// The error means that the directory is gone, and its watch too.
			_ = w.notify.Remove(dir)
			delete(w.watched, dir)
		}
	}
	for dir := range want {
		// Again each time: a directory that was replaced has lost its watch.
		if err := w.notify.Add(dir); err != nil {
			w.log.Warn("directory cannot be watched; looking at it from time to time", "dir", dir, "interval", pollInterval, "error", err)
			continue
		}
		w.watched[dir] = true
	}
}

func (w *watcher) close() {
	if w.notify != nil {
		// Closing cannot fail in a way that matters: the descriptor is gone.
		_ = w.notify.Close()
	}
	<-w.done
}
