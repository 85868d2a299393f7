// SPDX-License-Identifier: Apache-2.0

package telemetry

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/meshproxy/meshproxy/nodeproxy/telemetry/reason"
)

// EventKind says what happened to a connection.
type EventKind string

// The kinds of events.
const (
	EventOpened  EventKind = "opened"
	EventClosed  EventKind = "closed"
	EventRefused EventKind = "refused"
)

// Event is something that happened to a connection. A refused one has neither
// an ID nor bytes.
type Event struct {
	Kind       EventKind
	Time       time.Time
	Connection View
	Reason     reason.Reason
	Detail     string
}

// watchBuffer is how many events a watcher may lag behind.
const watchBuffer = 256

// Watch returns events from now on until cancel is called. A watcher that
// doesn't keep up loses events (dropped says how many); the connections never
// wait for it.
func (m *Metrics) Watch() (events <-chan Event, dropped func() uint64, cancel func()) {
	w := &watcher{events: make(chan Event, watchBuffer)}
	m.watchers.add(w)
	return w.events, w.dropped.Load, func() { m.watchers.remove(w) }
}

// OnWatch has f called when somebody begins to watch, and when the last one stops.
// It is to be called once, before anybody does.
func (m *Metrics) OnWatch(f func(watched bool)) {
	m.watchers.mu.Lock()
	defer m.watchers.mu.Unlock()
	m.watchers.changed = f
}

type watcher struct {
	events  chan Event
	dropped atomic.Uint64
}

type watchers struct {
	number atomic.Int32
	mu     sync.Mutex
	set    map[*watcher]struct{}
	// changed hears whether there is any.
	changed func(watched bool)
}

// any is what the data path asks before it makes an event.
func (ws *watchers) any() bool { return ws.number.Load() != 0 }

func (ws *watchers) add(w *watcher) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	if ws.set == nil {
		ws.set = make(map[*watcher]struct{})
	}
	ws.set[w] = struct{}{}
	if ws.number.Add(1) == 1 && ws.changed != nil {
		ws.changed(true)
	}
}

func (ws *watchers) remove(w *watcher) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	if _, ok := ws.set[w]; ok {
		delete(ws.set, w)
		if ws.number.Add(-1) == 0 && ws.changed != nil {
			ws.changed(false)
		}
		close(w.events)
	}
}

func (ws *watchers) send(e Event) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	for w := range ws.set {
		select {
		case w.events <- e:
		default:
			w.dropped.Add(1)
		}
	}
}
