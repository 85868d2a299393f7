// SPDX-License-Identifier: Apache-2.0

package telemetry

import (
	"time"

	"github.com/meshproxy/meshproxy/nodeproxy/telemetry/reason"
)

// Connections that the node does not carry: the kernel counts them (see
// DirectReading), and tells of them.

// kernelIDs keeps their numbers apart from the node's own.
const kernelIDs = 1 << 63

// FromKernel says where the connections come from that the kernel carries. It
// is called before anybody asks for Connections.
func (m *Metrics) FromKernel(list func() []View) { m.kernel = list }

func (m *Metrics) kernelConnections(keep func(*View) bool) (views []View) {
	if m.kernel == nil {
		return nil
	}
	for _, v := range m.kernel() {
		v.ID |= kernelIDs
		if keep == nil || keep(&v) {
			views = append(views, v)
		}
	}
	return views
}

// KernelOpened tells who watches.
func (m *Metrics) KernelOpened(v View) {
	if m.watchers.any() {
		v.ID |= kernelIDs
		m.watchers.send(Event{Kind: EventOpened, Time: m.now(), Connection: v})
	}
}

// KernelClosed writes the access log of a connection that the kernel carried,
// and tells who watches.
func (m *Metrics) KernelClosed(v View, r reason.Reason, detail string) {
	now := m.now()
	v.ID |= kernelIDs
	if m.watchers.any() {
		m.watchers.send(Event{Kind: EventClosed, Time: now, Connection: v, Reason: r, Detail: detail})
	}
	if m.accessLog != nil && m.accessLog.wants(r) {
		m.accessLog.closed(&Entry{
			Record: v.Record, Time: now, Reason: r, Detail: detail,
			Sent: v.Sent, Received: v.Received, Duration: max(now.Sub(v.Opened), time.Microsecond),
		})
	}
}
