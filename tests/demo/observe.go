// SPDX-License-Identifier: Apache-2.0

package demo

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/meshproxy/meshproxy/nodeproxy/admin/api"
	"github.com/meshproxy/meshproxy/nodeproxy/telemetry/reason"
)

// inspector is what the demo asks a node; the admin socket's client is one.
type inspector interface {
	Connections(context.Context, api.ConnectionFilter) (api.Connections, error)
	Status(context.Context) (api.Status, error)
	WatchConnections(context.Context, api.ConnectionFilter, func(api.ConnectionEvent) error) error
}

// sighting is what a node has said of the connections of one pair.
type sighting struct {
	paths map[string]bool
	// from and to are identities.
	from, to map[string]bool
	// ended counts connections by the reason why they were refused, here or by
	// the other node, or ended early.
	ended map[string]int
}

// observer remembers what the nodes say. It may be used from several
// goroutines.
type observer struct {
	mu   sync.Mutex
	seen map[string]*sighting
	// passed is how many connections were passed through, by node.
	passed map[string]uint64
	err    error
}

func newObserver() *observer {
	return &observer{seen: map[string]*sighting{}, passed: map[string]uint64{}}
}

// pair is the key of sightings: who calls what, from which node.
func pair(node, source, service string) string { return node + " " + source + " " + service }

// watch listens to a node until the context ends.
func (o *observer) watch(ctx context.Context, node string, i inspector) {
	err := i.WatchConnections(ctx, api.ConnectionFilter{}, func(e api.ConnectionEvent) error {
		o.add(node, e.Connection, e)
		return nil
	})
	if err != nil && ctx.Err() == nil {
		o.mu.Lock()
		o.err = errors.Join(o.err, fmt.Errorf("watch node %s: %w", node, err))
		o.mu.Unlock()
	}
}

// poll asks a node for the connections that are open, some of them longer than
// the watch.
func (o *observer) poll(ctx context.Context, node string, i inspector) error {
	answer, err := i.Connections(ctx, api.ConnectionFilter{})
	if err != nil {
		return fmt.Errorf("ask node %s: %w", node, err)
	}
	for _, c := range answer.Connections {
		o.add(node, c, api.ConnectionEvent{})
	}
	status, err := i.Status(ctx)
	if err != nil {
		return fmt.Errorf("ask node %s: %w", node, err)
	}
	o.pass(node, status.Capture.Passthrough)
	return nil
}

// pass notes how many connections a node has passed through. They go on in the
// kernel as if there were no node, which therefore only counts them.
func (o *observer) pass(node string, n uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.passed[node] = n
}

func (o *observer) add(node string, c api.Connection, e api.ConnectionEvent) {
	if c.Direction != "outbound" {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	key := pair(node, c.Source, c.Service)
	s := o.seen[key]
	if s == nil {
		s = &sighting{paths: map[string]bool{}, from: map[string]bool{}, to: map[string]bool{}, ended: map[string]int{}}
		o.seen[key] = s
	}
	if e.Reason != reason.None {
		s.ended[e.Reason.String()]++
	}
	if e.Event == api.EventRefused {
		return
	}
	for set, v := range map[*map[string]bool]string{&s.paths: c.Path, &s.from: c.SourceIdentity, &s.to: c.DestinationIdentity} {
		if v != "" {
			(*set)[v] = true
		}
	}
}

// of returns what is known of a call: a copy.
func (o *observer) of(c *call) sighting {
	o.mu.Lock()
	defer o.mu.Unlock()
	if c.service == "" && c.workload != "" && o.passed[nodeOf(c.place)] > 0 {
		return sighting{paths: map[string]bool{pathPlain: true}}
	}
	s := o.seen[pair(nodeOf(c.place), c.workload, c.service)]
	if s == nil || c.service == "" {
		return sighting{}
	}
	return sighting{maps.Clone(s.paths), maps.Clone(s.from), maps.Clone(s.to), maps.Clone(s.ended)}
}

func (o *observer) problem() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.err
}

func list(set map[string]bool) string {
	return strings.Join(slices.Sorted(maps.Keys(set)), "+")
}
