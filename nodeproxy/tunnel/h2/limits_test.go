// SPDX-License-Identifier: Apache-2.0

package h2

import (
	"bytes"
	"errors"
	"testing"
	"time"
)

// flood feeds a server, whose output is read, with the frames that next makes until
// it has had enough, at most max times, and returns how many it took and its answer.
func flood(t *testing.T, o *owner, max int, next func(i int) []byte) (int, ErrCode) {
	t.Helper()
	for i := range max {
		if err := o.conn.Feed(next(i)); err != nil {
			var ce *ConnError
			if !errors.As(err, &ce) {
				t.Fatal(err)
			}
			return i, ce.Code
		}
		o.take()
	}
	return max, NoError
}

func startedServer(t *testing.T) *owner {
	t.Helper()
	o := newTestServer(nil)
	if err := o.conn.Feed(cat([]byte(Preface), raw(frameSettings, 0, 0), raw(frameSettings, flagAck, 0))); err != nil {
		t.Fatal(err)
	}
	return o
}

func TestFloods(t *testing.T) {
	id := func(i int) uint32 { return uint32(2*i + 1) }
	for _, tc := range []struct {
		name   string
		answer int
		before []byte
		next   func(i int) []byte
		most   int // frames taken
	}{
		{"PING, CVE-2019-9512", 200, nil, func(int) []byte { return raw(framePing, 0, 0, make([]byte, 8)...) }, 1100},
		{"SETTINGS, CVE-2019-9515", 200, nil, func(int) []byte { return raw(frameSettings, 0, 0) }, 1100},
		{"SETTINGS acknowledgements", 200, nil, func(int) []byte { return raw(frameSettings, flagAck, 0) }, 1100},
		{"PRIORITY", 200, nil, func(int) []byte { return raw(framePriority, 0, 1, 0, 0, 0, 0, 1) }, 1100},
		{"unknown frames", 200, nil, func(int) []byte { return raw(0x42, 0, 0) }, 1100},
		{"empty DATA, CVE-2019-9518", 200, open1, func(int) []byte { return raw(frameData, 0, 1) }, 1100},
		{"DATA of padding", 200, open1, func(int) []byte { return raw(frameData, flagPadded, 1, 3, 0, 0, 0) }, 1100},
		{"window updates of a byte", 200, nil, func(int) []byte { return raw(frameWindowUpdate, 0, 0, 0, 0, 0, 1) }, 1100},
		{"RST_STREAM on closed streams", 200, open1, func(int) []byte { return raw(frameReset, 0, 1, 0, 0, 0, 8) }, 1100},
		{"Rapid Reset, CVE-2023-44487", 0, nil, func(i int) []byte {
			return cat(raw(frameHeaders, endHeaders, id(i), connect()...), raw(frameReset, 0, id(i), 0, 0, 0, 8))
		}, 1100},
		{"MadeYouReset, CVE-2025-8671", 200, nil, func(i int) []byte {
			return cat(raw(frameHeaders, endHeaders, id(i), connect()...), raw(frameWindowUpdate, 0, id(i), 0, 0, 0, 0))
		}, 220},
		{"malformed requests", 200, nil, func(i int) []byte {
			return raw(frameHeaders, endHeaders, id(i), connect("A", "b")...)
		}, 220},
		{"requests that are no CONNECT", 200, nil, func(i int) []byte {
			return raw(frameHeaders, endHeaders, id(i), list(":method", "GET", ":path", "/", ":scheme", "https")...)
		}, 220},
		{"streams beyond the limit", 200, nil, func(i int) []byte {
			return raw(frameHeaders, endHeaders, id(i), connect()...)
		}, DefaultMaxStreams + 220},
		{"CONTINUATION, CVE-2024-27316", 200, raw(frameHeaders, 0, 1, connect()...), func(int) []byte {
			return raw(frameContinuation, 0, 1, list("a", "b")...)
		}, DefaultContinuations},
		{"empty CONTINUATION", 200, raw(frameHeaders, 0, 1), func(int) []byte { return raw(frameContinuation, 0, 1) }, DefaultContinuations},
	} {
		t.Run(tc.name, func(t *testing.T) {
			o := startedServer(t)
			o.answer = tc.answer
			if err := o.conn.Feed(tc.before); err != nil {
				t.Fatal(err)
			}
			n, code := flood(t, o, 10_000, tc.next)
			if code != EnhanceYourCalm || n > tc.most {
				t.Errorf("took %d frames, then %v", n, code)
			}
		})
	}
}

// TestRatesRefill: what is too much at once is fine in the long run.
func TestRatesRefill(t *testing.T) {
	o := startedServer(t)
	n, code := flood(t, o, 20_000, func(int) []byte {
		o.clock += int64(time.Second) / int64(DefaultControl.PerSecond)
		return raw(framePing, 0, 0, make([]byte, 8)...)
	})
	if code != NoError {
		t.Errorf("took %d PINGs, then %v", n, code)
	}
	if n, code = flood(t, o, 20_000, func(int) []byte {
		o.clock += int64(time.Second) / int64(2*DefaultControl.PerSecond)
		return raw(framePing, 0, 0, make([]byte, 8)...)
	}); code != EnhanceYourCalm {
		t.Errorf("took %d PINGs at twice the rate", n)
	}
}

// TestOrdinaryUseIsNoFlood: streams that are answered may be reset, and a peer may
// send two window updates for each of our DATA frames, as fast as it likes.
func TestOrdinaryUseIsNoFlood(t *testing.T) {
	p := newPair(t, nil)
	for range 5000 {
		s := p.open(nil)
		p.pump()
		s.Reset(ConnectError)
		p.pump()
	}
	o := startedServer(t)
	if err := o.conn.Feed(open1); err != nil {
		t.Fatal(err)
	}
	n, code := flood(t, o, 20_000, func(int) []byte {
		if o.streams[1].Write([]byte("x")) != 1 {
			t.Fatal("window is gone")
		}
		return cat(raw(frameWindowUpdate, 0, 0, 0, 0, 0, 1), raw(frameWindowUpdate, 0, 1, 0, 0, 0, 1))
	})
	if code != NoError {
		t.Errorf("took %d pairs of window updates, then %v", n, code)
	}
}

// TestAnswersThatAreNotRead: a peer that provokes answers and reads none of them.
func TestAnswersThatAreNotRead(t *testing.T) {
	o := newTestServer(func(c *Config) { c.Limits.Control = Rate{Burst: 1 << 30, PerSecond: 1} })
	if err := o.conn.Feed(cat([]byte(Preface), raw(frameSettings, 0, 0))); err != nil {
		t.Fatal(err)
	}
	ping := bytes.Repeat(raw(framePing, 0, 0, make([]byte, 8)...), 100)
	for range 10_000 {
		if err := o.conn.Feed(ping); err != nil {
			if n := o.conn.Pending(); n > DefaultBacklog+100 {
				t.Errorf("%d bytes wait", n)
			}
			return
		}
	}
	t.Error("output grows for ever")
}

// TestBacklogStopsNewStreams on a client whose socket is blocked.
func TestBacklogStopsNewStreams(t *testing.T) {
	p := newPair(t, nil)
	block, _ := ConnectBlock("web:80")
	for i := range 100_000 {
		s, err := p.client.conn.Open(p.client, block, nil)
		if err == ErrBacklog {
			p.client.flush()
			if _, err := p.client.conn.Open(p.client, block, nil); err != nil {
				t.Errorf("after the backlog was written: %v", err)
			}
			return
		}
		if err != nil {
			t.Fatalf("stream %d: %v", i, err)
		}
		s.Reset(Cancel)
	}
	t.Error("backlog grows for ever")
}

func TestHeaderLimits(t *testing.T) {
	long := string(bytes.Repeat([]byte("v"), 20_000))
	t.Run("list too large for a server", func(t *testing.T) {
		o := startedServer(t)
		block := connect("a", long, "b", long, "c", long, "d", long)
		if err := o.conn.Feed(raw(frameHeaders, endHeaders, 1, block...)); err != nil {
			t.Fatal(err)
		}
		if out := describe(t, o.take()); len(out) < 2 || out[len(out)-2] != "HEADERS 1 431 END" {
			t.Errorf("output %q", out)
		}
		if err := o.conn.Feed(raw(frameHeaders, endHeaders, 3, list(":method", "CONNECT", ":authority", "web:80")...)); err != nil {
			t.Errorf("HPACK state is lost: %v", err)
		}
	})
	t.Run("string longer than the list's limit", func(t *testing.T) {
		o := startedServer(t)
		block := append([]byte{0, 1, 'a'}, appendInt(nil, 7, 1<<20)...)
		if err := o.conn.Feed(raw(frameHeaders, 0, 1, append(block, make([]byte, 70_000)...)...)); err == nil {
			t.Error("taken")
		}
	})
	t.Run("block that does not end", func(t *testing.T) {
		o := startedServer(t)
		block := append(connect(), 0, 1, 'a')
		block = append(appendInt(block, 7, 60_000), make([]byte, 60_000)...)
		n, code := flood(t, o, 10, func(i int) []byte {
			if i == 0 {
				return raw(frameHeaders, 0, 1, block...)
			}
			return raw(frameContinuation, 0, 1, block[len(connect()):]...)
		})
		if code != EnhanceYourCalm || n > 2 {
			t.Errorf("took %d frames, then %v", n, code)
		}
	})
	t.Run("many references to a large entry", func(t *testing.T) {
		o := startedServer(t)
		// An entry of 4000 octets and 60 000 references to it: 240 MB, were it kept.
		block := append(connect(), 0x40, 1, 'a')
		block = appendInt(block, 7, 4000)
		block = append(block, bytes.Repeat([]byte{'x'}, 4000)...)
		block = append(block, bytes.Repeat([]byte{0xbe}, 50_000)...)
		if err := o.conn.Feed(raw(frameHeaders, endHeaders, 1, block...)); err != nil {
			t.Fatal(err)
		}
		if out := describe(t, o.take()); len(out) < 2 || out[len(out)-2] != "HEADERS 1 431 END" {
			t.Errorf("output %q", out)
		}
	})
	t.Run("response too large for a client", func(t *testing.T) {
		o := newTestClient(nil)
		block, _ := ConnectBlock("web:80")
		if _, err := o.conn.Open(o, block, nil); err != nil {
			t.Fatal(err)
		}
		o.take()
		if err := o.conn.Feed(cat(raw(frameSettings, 0, 0), resp1(0, ":status", "200", "a", long))); err != nil {
			t.Fatal(err)
		}
		if out := describe(t, o.take()); len(out) != 2 || out[1] != "RST 1 PROTOCOL_ERROR" {
			t.Errorf("output %q", out)
		}
	})
}
