// SPDX-License-Identifier: Apache-2.0

package telemetry

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/meshproxy/meshproxy/nodeproxy/telemetry/reason"
)

func TestConnections(t *testing.T) {
	now := newClock()
	m := New(Options{Now: now.Now})
	first, second := m.Shard(), m.Shard()
	var a, b, c Connection
	first.Open(&a, record("front", "web"))
	second.Open(&b, record("front", "db"))
	first.Open(&c, record("cron", "web"))
	c.Sent(5)
	c.Connected()
	ids := func(keep func(*View) bool) []uint64 {
		var ids []uint64
		for _, v := range m.Connections(keep) {
			ids = append(ids, v.ID)
		}
		return ids
	}
	if diff := cmp.Diff([]uint64{1, 2, 3}, ids(nil)); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]uint64{1, 3}, ids(func(v *View) bool { return v.Service == "web" })); diff != "" {
		t.Error(diff)
	}
	a.Close(reason.None, "")
	b.Close(reason.None, "")
	want := []View{{Record: record("cron", "web"), ID: 3, Opened: now.Now(), Connected: true, Sent: 5}}
	if diff := cmp.Diff(want, m.Connections(nil), cmpAddrs); diff != "" {
		t.Error(diff)
	}
	// The struct that carried a connection carries the next one.
	first.Open(&a, record("front", "web"))
	if diff := cmp.Diff([]uint64{3, 4}, ids(nil)); diff != "" {
		t.Error(diff)
	}
	a.Close(reason.None, "")
	c.Close(reason.None, "")
}

// TestRefuse: a connection that reached no endpoint counts as refused, once, and
// not as one that ended early.
func TestRefuse(t *testing.T) {
	m := New(Options{Now: newClock().Now})
	var c Connection
	m.Shard().Open(&c, record("front", "web"))
	if c.Reached() {
		t.Error("reached before it was connected")
	}
	c.Refuse(reason.ConnectRefused, "nobody there")
	c.Refuse(reason.ConnectRefused, "nobody there")
	want := []RefusalCount{{Outbound, reason.ConnectRefused, 1}}
	if diff := cmp.Diff(want, m.Refusals()); diff != "" {
		t.Error(diff)
	}
	if left := m.Connections(nil); len(left) > 0 {
		t.Errorf("still open: %v", left)
	}
}

func TestWatch(t *testing.T) {
	now := newClock()
	m := New(Options{Now: now.Now})
	s := m.Shard()
	events, dropped, cancel := m.Watch()
	var c Connection
	s.Open(&c, record("front", "web"))
	now.advance(time.Second)
	c.Sent(9)
	c.Close(reason.Reset, "by the client")
	m.Refused(record("front", "db"), reason.PolicyDenied, "deny-all")
	var got []string
	for range 3 {
		e := <-events
		got = append(got, string(e.Kind)+" "+e.Connection.Service+" "+e.Reason.String()+" "+e.Detail)
		if e.Kind == EventClosed && e.Connection.Sent != 9 {
			t.Errorf("sent %d", e.Connection.Sent)
		}
	}
	want := []string{"opened web none ", "closed web reset by the client", "refused db policy_denied deny-all"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	for range watchBuffer + 5 {
		m.Refused(record("front", "db"), reason.PolicyDenied, "")
	}
	if n := dropped(); n != 5 {
		t.Errorf("dropped %d", n)
	}
	cancel()
	cancel()
	for range events { // closed after what was queued
	}
	s.Open(&c, record("front", "web")) // nobody watches
	c.Close(reason.None, "")
}
