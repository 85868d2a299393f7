// SPDX-License-Identifier: Apache-2.0

package node

import (
	"errors"
	"sync"
	"time"

	"github.com/meshproxy/meshproxy/nodeproxy/config"
	"github.com/meshproxy/meshproxy/nodeproxy/telemetry"
	"github.com/meshproxy/meshproxy/nodeproxy/telemetry/reason"
	"github.com/meshproxy/meshproxy/sockmap"
)

// locals tells of the direct connections as of those that the node carries.
type locals struct {
	// logged says that the access log has all.
	logged bool

	mu sync.Mutex
	// reported says that the kernel tells of each that opens and closes: for the
	// log, or while somebody watches.
	reported bool
	// denied is why those were closed that policy no longer allowed, by
	// cookie, until the kernel says that they are.
	denied map[uint64]string
}

func (n *Node) startLocals() error {
	n.locals.denied = make(map[uint64]string)
	n.locals.logged = n.access != nil && n.settingsFile().Log.AccessEntries == config.EntriesAll
	n.metrics.OnWatch(func(watched bool) {
		if err := n.reportLocals(watched); err != nil && !errors.Is(err, sockmap.ErrClosed) {
			n.log.Error("report direct connections", "error", err)
		}
	})
	return n.reportLocals(false)
}

func (n *Node) reportLocals(watched bool) error {
	n.locals.mu.Lock()
	defer n.locals.mu.Unlock()
	n.locals.reported = n.locals.logged || watched
	return n.capture.ReportDirect(n.locals.reported)
}

func (n *Node) directViews() []telemetry.View {
	list, err := n.capture.DirectConnections()
	if err != nil {
		n.log.Error("list direct connections", "error", err)
		return nil
	}
	views := make([]telemetry.View, 0, len(list))
	for i := range list {
		views = append(views, n.directView(&list[i]))
	}
	return views
}

// openDirectly counts them, which the counters don't tell: they begin anew with
// another layout, and what was open before goes on.
func (n *Node) openDirectly() (open uint64) {
	for _, v := range n.directViews() {
		if v.Connected {
			open++
		}
	}
	return open
}

func (n *Node) directView(d *sockmap.DirectConnection) telemetry.View {
	path := telemetry.PathLocal
	if d.Spliced {
		path = telemetry.PathSplice
	}
	v := telemetry.View{
		Record: telemetry.Record{
			Direction: telemetry.Outbound, Path: path,
			Source: display(d.Source), Destination: display(d.Endpoint.Workload), Service: display(d.Service),
			Client: d.Client, Dialled: d.Dialled, Endpoint: d.Endpoint.Addr,
		},
		ID: d.Cookie, Opened: time.Now().Add(-d.Age), Connected: d.Established, Sent: d.Sent, Received: d.Received,
	}
	s := n.views.load().snapshot
	if w := s.Workload(d.Source); w != nil {
		v.SourceIdentity = idString(w.Identity)
	}
	if w := s.Workload(d.Endpoint.Workload); w != nil {
		v.DestinationIdentity = idString(w.Identity)
	}
	return v
}

// directDenied notes that a connection was closed for policy's sake.
func (n *Node) directDenied(d *sockmap.DirectConnection, why string) {
	n.locals.mu.Lock()
	reported := n.locals.reported
	if reported {
		n.locals.denied[d.Cookie] = why
	}
	n.locals.mu.Unlock()
	if !reported {
		n.metrics.KernelClosed(n.directView(d), reason.PolicyDenied, why)
	}
}

func (n *Node) directClosed(d *sockmap.DirectConnection) {
	n.locals.mu.Lock()
	why, denied := n.locals.denied[d.Cookie]
	delete(n.locals.denied, d.Cookie)
	n.locals.mu.Unlock()
	r := reason.None
	if denied {
		r = reason.PolicyDenied
	}
	n.metrics.KernelClosed(n.directView(d), r, why)
}
