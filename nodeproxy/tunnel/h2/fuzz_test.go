// SPDX-License-Identifier: Apache-2.0

package h2

import (
	"math/rand/v2"
	"testing"
)

// The fuzz tests feed arbitrary bytes in arbitrary splits. The owner behind them
// sends, consumes, half-closes and resets as the bytes decide. Nothing may panic,
// windows must add up after every piece, and what is kept is bounded.

func FuzzServerFeed(f *testing.F) {
	init := cat([]byte(Preface), raw(frameSettings, 0, 0), raw(frameSettings, flagAck, 0))
	for i, tc := range serverRules {
		f.Add(cat(tc.in...), uint64(i), !tc.noInit)
	}
	f.Fuzz(func(t *testing.T, in []byte, seed uint64, begun bool) {
		if begun {
			in = cat(init, in)
		}
		newFuzzed(t, NewServer, seed).feed(in)
	})
}

func FuzzClientFeed(f *testing.F) {
	for i, tc := range clientRules {
		f.Add(cat(tc.in...), uint64(i), !tc.noInit)
	}
	f.Fuzz(func(t *testing.T, in []byte, seed uint64, begun bool) {
		if begun {
			in = cat(raw(frameSettings, 0, 0), in)
		}
		x := newFuzzed(t, NewClient, seed)
		block, _ := ConnectBlock("web:80")
		for range 3 {
			s, err := x.conn.Open(x.owner, block, nil)
			if err != nil {
				t.Fatal(err)
			}
			x.all = append(x.all, s)
		}
		x.feed(in)
	})
}

type fuzzed struct {
	*owner
	t    *testing.T
	rand *rand.Rand
	all  []*Stream // that there ever were
}

func newFuzzed(t *testing.T, mk func(*Config, Events) *Conn, seed uint64) *fuzzed {
	x := &fuzzed{owner: newOwner(), t: t, rand: rand.New(rand.NewPCG(seed, 1))}
	x.relieve = seed%2 == 0
	cfg := x.config()
	cfg.StreamWindow, cfg.ConnWindow = minWindow, 2*minWindow // run out soon
	cfg.MaxStreams = 20
	x.onData, x.onWrite, x.onRequest = x.data, x.act, x.request
	x.conn = mk(cfg, x.owner)
	x.conn.Start()
	return x
}

func (x *fuzzed) request(s *Stream, _ *Request) Sink {
	x.all = append(x.all, s)
	switch x.rand.IntN(8) {
	case 0:
		s.Refuse(503)
		return nil
	case 1: // unanswered for now
	default:
		s.Accept(nil)
	}
	return x.owner
}

func (x *fuzzed) data(s *Stream, p []byte) {
	s.Consumed(x.rand.IntN(len(p) + 1))
	x.act(s)
}

// act does something that a relay may do.
func (x *fuzzed) act(s *Stream) {
	switch x.rand.IntN(12) {
	case 0:
		s.CloseWrite()
	case 1:
		s.Reset(Cancel)
	case 2:
		s.Consumed(s.Unconsumed())
	case 3:
		s.Accept(nil)
	case 4:
		s.Refuse(401)
	case 5:
		s.Write(make([]byte, x.rand.IntN(100_000)))
	case 6:
		iov := s.Reserve(x.rand.IntN(300_000), nil)
		n := 0
		for _, b := range iov {
			n += len(b)
		}
		s.Commit(x.rand.IntN(n + 1))
	case 7:
		x.conn.Ping(1)
	case 8:
		if x.rand.IntN(20) == 0 {
			x.conn.Drain()
		}
	case 9:
		if x.rand.IntN(50) == 0 {
			x.conn.Close()
		}
	}
}

func (x *fuzzed) feed(in []byte) {
	c := x.conn
	for _, part := range split(x.rand, in) {
		err := c.Feed(part)
		x.check()
		if err != nil {
			break
		}
		if len(x.all) > 0 {
			x.act(x.all[x.rand.IntN(len(x.all))])
		}
		if x.rand.IntN(3) == 0 {
			describe(x.t, x.take())
		}
		x.clock += x.rand.Int64N(1 << 24)
	}
	x.flush()
	c.Close()
	if c.streams.count != 0 || c.waitCount != 0 || c.cfg.Batches.lent != 0 {
		x.t.Fatalf("left: %d streams, %d of them waiting, %d batches", c.streams.count, c.waitCount, c.cfg.Batches.lent)
	}
	for _, s := range x.all {
		if !s.Released() {
			x.t.Fatalf("stream %d is not released", s.ID())
		}
	}
}

func (x *fuzzed) check() {
	held := uint32(0)
	for _, s := range x.all {
		held += s.unconsumed
	}
	x.checkWindows(x.t, held)
	c := x.conn
	if c.sendWindow < 0 || c.streams.count > 20 || len(c.closed.ring) > closedMemory {
		x.t.Fatalf("send window %d, %d streams, %d closed ones", c.sendWindow, c.streams.count, len(c.closed.ring))
	}
	if n := cap(c.in.kept); n > maxSettings*settingLen*2 {
		x.t.Fatalf("%d bytes of a control frame are kept", n)
	}
	if limit := DefaultBacklog + (DefaultSlots+8)*RecordSize; c.Pending() > limit {
		x.t.Fatalf("%d bytes of output wait", c.Pending())
	}
	waits := 0
	for s := c.waitHead; s != nil; s = s.next {
		if !s.has(waiting) || s.has(released) {
			x.t.Fatalf("stream %d should not wait", s.id)
		}
		waits++
	}
	if waits != c.waitCount {
		x.t.Fatalf("%d streams wait, counted %d", waits, c.waitCount)
	}
}
