// SPDX-License-Identifier: Apache-2.0

package h2

import (
	"slices"
	"testing"
)

// TestServerDrains: the two steps of RFC 9113 section 6.8. A stream that was under
// way when the first GOAWAY was sent is served.
func TestServerDrains(t *testing.T) {
	p := newPair(t, nil)
	a := p.open(nil)
	p.pump()
	p.client.takeLog()
	p.server.takeLog()

	b := p.open(nil) // crosses the GOAWAY
	p.server.conn.Drain()
	p.pump()
	p.logs([]string{"goaway 2147483647 NO_ERROR ", "response 3 200", "goaway 3 NO_ERROR "}, []string{"request 3 web:80"})
	block, _ := ConnectBlock("web:80")
	if _, err := p.client.conn.Open(p.client, block, nil); err != ErrDraining {
		t.Errorf("open on a draining connection: %v", err)
	}
	p.server.echo = true
	a.CloseWrite()
	b.Reset(Cancel)
	p.pump()
	p.logs([]string{"release 3", "end 1", "release 1", "drained"},
		[]string{"end 1", "release 1", "reset 3 CANCEL remote", "release 3", "drained"})
}

// TestServerIgnoresStreamsBeyondItsGoAway as RFC 9113 section 6.8 asks, and keeps
// the connection's window right while it does.
func TestServerIgnoresStreamsBeyondItsGoAway(t *testing.T) {
	o := newTestServer(nil)
	feed := func(f ...[]byte) {
		t.Helper()
		if err := o.conn.Feed(cat(f...)); err != nil {
			t.Fatal(err)
		}
	}
	feed([]byte(Preface), raw(frameSettings, 0, 0), open1)
	o.conn.Drain()
	feed(raw(framePing, flagAck, 0, 0x64, 0x72, 0x61, 0x69, 0x6e, 0, 0, 1))
	o.take()
	o.takeLog()
	feed(raw(frameHeaders, endHeaders, 3, connect()...), raw(frameData, 0, 3, 'x'), raw(frameData, flagEndStream, 3, 'x'))
	if out := describe(t, o.take()); len(out) > 0 || len(o.log) > 0 {
		t.Errorf("output %q, told %q", out, o.log)
	}
	o.checkWindows(t, 0)
	feed(raw(frameReset, 0, 1, 0, 0, 0, 8))
	if want := []string{"reset 1 CANCEL remote", "release 1", "drained"}; !slices.Equal(o.log, want) {
		t.Errorf("told %q", o.log)
	}
}

func TestDrainOfIdleConnections(t *testing.T) {
	p := newPair(t, nil)
	p.client.conn.Drain()
	p.pump()
	p.logs([]string{"drained", "goaway 2147483647 NO_ERROR ", "goaway 0 NO_ERROR "}, []string{"goaway 0 NO_ERROR ", "drained"})
	p.server.conn.Drain()
	p.client.conn.Drain()
	p.pump()
	p.logs(nil, nil)
}

func TestFailTellsEverybodyOnce(t *testing.T) {
	p := newPair(t, nil)
	p.open(nil)
	p.open(nil)
	p.pump()
	p.client.takeLog()
	p.server.takeLog()
	p.server.conn.Fail(InternalError, "enough")
	p.pump()
	p.server.conn.Close()
	p.client.conn.Close()
	lost := []string{"reset 1 INTERNAL_ERROR local", "release 1", "reset 3 INTERNAL_ERROR local", "release 3"}
	p.logs([]string{
		"goaway 3 INTERNAL_ERROR enough",
		"reset 1 CONNECT_ERROR local", "release 1", "reset 3 CONNECT_ERROR local", "release 3",
	}, lost)
	if n := p.client.conn.cfg.Batches.lent; n != 0 {
		t.Errorf("%d batches are lent", n)
	}
}

// TestCloseInsideCallbacks: an owner may close from wherever it learns that the
// transport is gone.
func TestCloseInsideCallbacks(t *testing.T) {
	p := newPair(t, nil)
	s := p.open(nil)
	p.pump()
	p.server.onData = func(*Stream, []byte) { p.server.conn.Close() }
	s.Write([]byte("xyz"))
	s.CloseWrite()
	if err := p.server.conn.Feed(p.client.take()); err != ErrClosed {
		t.Errorf("feed: %v", err)
	}
	if p.server.conn.Streams() != 0 || p.server.conn.Pending() != 0 {
		t.Error("something is left")
	}
}
