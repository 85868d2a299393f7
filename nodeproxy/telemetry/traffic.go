// SPDX-License-Identifier: Apache-2.0

package telemetry

// Traffic is what the node carried since it started, over all label sets that
// are still kept.
type Traffic struct {
	Opened, Active uint64
	// Sent is from sources to destinations, Received back, in bytes.
	Sent, Received uint64
}

// Traffic adds up all connections.
func (m *Metrics) Traffic() Traffic {
	var t Traffic
	sums, _ := m.sums()
	for _, s := range sums {
		t.Opened += s.opened
		t.Active += s.opened - s.closed
		t.Sent += s.sent
		t.Received += s.received
	}
	return t
}
