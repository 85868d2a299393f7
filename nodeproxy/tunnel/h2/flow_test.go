// SPDX-License-Identifier: Apache-2.0

package h2

import (
	"slices"
	"testing"
)

// TestOneStreamDoesNotBlockOthers: a sink that consumes nothing stops its own
// stream when that one's window is used up, and no other.
func TestOneStreamDoesNotBlockOthers(t *testing.T) {
	p := newPair(t, nil)
	p.client.relieve = true
	stalled, lively := p.open(nil), p.open(nil)
	p.pump()
	got := 0
	p.server.onData = func(s *Stream, b []byte) {
		if s.ID() == lively.ID() {
			got += len(b)
			s.Consumed(len(b))
		}
	}
	chunk := make([]byte, 1<<20)
	for range 8 {
		stalled.Write(chunk)
	}
	p.pump()
	held := p.server.streams[stalled.ID()].Unconsumed()
	if held != DefaultStreamWindow {
		t.Fatalf("stalled stream holds %d bytes", held)
	}
	for range 40 {
		if n := lively.Write(chunk); n != len(chunk) {
			t.Fatalf("lively stream: %d bytes sent", n)
		}
		p.pump()
	}
	if got != 40<<20 {
		t.Errorf("%d bytes arrived", got)
	}
	p.server.checkWindows(t, uint32(held))

	p.client.takeLog()
	p.server.streams[stalled.ID()].Consumed(held)
	p.pump()
	if want := []string{"writable 1"}; !slices.Equal(p.client.log, want) {
		t.Errorf("client was told %q", p.client.log)
	}
	p.server.checkWindows(t, 0)
}

// TestResetRefundsWhatWasHeld: a stream that is reset with data that nobody will
// consume must not take the connection's window with it.
func TestResetRefundsWhatWasHeld(t *testing.T) {
	p := newPair(t, nil)
	p.client.relieve, p.server.hold = true, true
	chunk := make([]byte, DefaultStreamWindow)
	for i := range 20 { // 80 MiB through a window of 16
		s := p.open(nil)
		p.pump()
		if n := s.Write(chunk); n != len(chunk) {
			t.Fatalf("stream %d: %d bytes sent", i, n)
		}
		p.pump()
		peer := p.server.streams[s.ID()]
		switch i % 3 {
		case 0:
			s.Reset(Cancel)
		case 1:
			peer.Reset(Cancel)
		default: // consumed after a clean end
			s.CloseWrite()
			p.pump()
			peer.CloseWrite()
			p.pump()
			if !peer.Released() {
				t.Fatal("stream is left")
			}
			peer.Consumed(len(chunk))
		}
		p.pump()
		peer.Consumed(len(chunk)) // too late or too much: no effect
		p.server.checkWindows(t, 0)
	}
}

// TestInitialWindowShrinks: a window may become negative, and nothing is sent
// until it is positive again (RFC 9113 section 6.9.2).
func TestInitialWindowShrinks(t *testing.T) {
	o := newTestClient(nil)
	feed := func(f ...[]byte) {
		t.Helper()
		if err := o.conn.Feed(cat(f...)); err != nil {
			t.Fatal(err)
		}
	}
	feed(settingsFrame(settingInitialWindowSize, 1000))
	block, _ := ConnectBlock("web:80")
	s, err := o.conn.Open(o, block, nil)
	if err != nil {
		t.Fatal(err)
	}
	if n := s.Write(make([]byte, 2000)); n != 1000 {
		t.Fatalf("%d bytes sent", n)
	}
	o.takeLog()
	feed(settingsFrame(settingInitialWindowSize, 400))
	if s.sendWindow != -600 {
		t.Fatalf("window is %d", s.sendWindow)
	}
	feed(raw(frameWindowUpdate, 0, 1, be32(600)...))
	if s.Write([]byte("x")) != 0 || len(o.log) != 0 {
		t.Fatalf("window of 0 is writable: %q", o.log)
	}
	feed(raw(frameWindowUpdate, 0, 1, be32(1)...))
	if want := []string{"writable 1"}; !slices.Equal(o.takeLog(), want) || s.Write([]byte("xy")) != 1 {
		t.Error("window of 1 is not used")
	}
	feed(settingsFrame(settingInitialWindowSize, 1000))
	if want := []string{"writable 1"}; !slices.Equal(o.takeLog(), want) || s.Write(make([]byte, 1000)) != 600 {
		t.Error("larger initial window is not used")
	}
}

// TestWaitingIsFair: streams take turns, though the socket is blocked most of the
// time and one stream's Reserve nearly fills the batch.
func TestWaitingIsFair(t *testing.T) {
	p := newPair(t, nil)
	var streams []*Stream
	for range 4 {
		streams = append(streams, p.open(nil))
	}
	p.pump()
	sent := map[*Stream]int{}
	// Writable only notes that the stream is ready, as a relay's does.
	ready := slices.Clone(streams)
	p.client.onWrite = func(s *Stream) { ready = append(ready, s) }
	for i := range 200 {
		blocked := i%5 != 0
		p.client.relieve = !blocked
		turn := ready
		ready = nil
		for _, s := range turn {
			if iov := s.Reserve(1<<20, nil); iov != nil {
				n := 0
				for _, slot := range iov {
					n += len(slot)
				}
				s.Commit(n)
				sent[s] += n
				ready = append(ready, s)
			}
		}
		if !blocked {
			p.pump()
		}
	}
	least, most := 1<<40, 0
	for _, s := range streams {
		least, most = min(least, sent[s]), max(most, sent[s])
	}
	if least == 0 || most > least*3/2 {
		t.Errorf("streams sent between %d and %d bytes", least, most)
	}
}

// TestClosedStreamsDoNotWait: a stream that waits and is reset leaves the queue.
func TestClosedStreamsDoNotWait(t *testing.T) {
	p := newPair(t, nil)
	first := p.open(nil)
	p.pump()
	for first.Write(make([]byte, 1<<20)) > 0 { // nobody flushes: the batch fills
	}
	for range 3000 {
		s := p.open(nil)
		if s.Write(make([]byte, 1<<20)) != 0 {
			t.Fatal("full batch takes data")
		}
		s.Reset(Cancel)
		if p.client.conn.waitCount != 1 {
			t.Fatalf("%d streams wait", p.client.conn.waitCount)
		}
	}
	p.client.takeLog()
	p.client.flush()
	if want := []string{"writable 1"}; !slices.Equal(p.client.log, want) {
		t.Errorf("client was told %q", p.client.log)
	}
}
