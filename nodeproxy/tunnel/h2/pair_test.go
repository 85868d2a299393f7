// SPDX-License-Identifier: Apache-2.0

package h2

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// pair is two ends that are wired to each other.
type pair struct {
	t              testing.TB
	client, server *owner
	rand           *rand.Rand
}

func newPair(t testing.TB, change func(*Config)) *pair {
	p := &pair{t: t, client: newTestClient(change), server: newTestServer(change), rand: rand.New(rand.NewPCG(7, 7))}
	p.pump()
	p.client.takeLog()
	p.server.takeLog()
	return p
}

// pump carries bytes, cut at random, until neither end has anything to say.
func (p *pair) pump() {
	p.t.Helper()
	for p.pass(p.client, p.server)+p.pass(p.server, p.client) > 0 {
	}
}

func (p *pair) pass(from, to *owner) int {
	p.t.Helper()
	b := from.take()
	for _, part := range split(p.rand, b) {
		if err := to.conn.Feed(part); err != nil && from.conn.Err() == nil {
			p.t.Fatal(err)
		}
	}
	return len(b)
}

func (p *pair) open(extra *Block) *Stream {
	p.t.Helper()
	block, err := ConnectBlock("web:80")
	if err != nil {
		p.t.Fatal(err)
	}
	s, err := p.client.conn.Open(p.client, block, extra)
	if err != nil {
		p.t.Fatal(err)
	}
	return s
}

func (p *pair) logs(client, server []string) {
	p.t.Helper()
	if diff := cmp.Diff(client, p.client.takeLog(), cmpopts.EquateEmpty()); diff != "" {
		p.t.Errorf("client was told (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(server, p.server.takeLog(), cmpopts.EquateEmpty()); diff != "" {
		p.t.Errorf("server was told (-want +got):\n%s", diff)
	}
}

func TestHalfClose(t *testing.T) {
	p := newPair(t, nil)
	extra := &Block{}
	if err := extra.Add("forwarded", `for="10.0.0.1:1"`); err != nil {
		t.Fatal(err)
	}
	s := p.open(extra)
	p.pump()
	p.logs([]string{"response 1 200"}, []string{`request 1 web:80 forwarded=for="10.0.0.1:1"`})

	s.Write([]byte("question"))
	s.CloseWrite()
	p.pump()
	p.logs(nil, []string{"end 1"})
	if s.Released() || !s.WriteClosed() || s.Write([]byte("x")) != 0 {
		t.Error("half-closed stream may send")
	}

	peer := p.server.streams[1]
	peer.Write([]byte("answer"))
	p.pump()
	peer.CloseWrite()
	p.pump()
	p.logs([]string{"end 1", "release 1"}, []string{"release 1"})
	if q, a := p.server.got[1].String(), p.client.got[1].String(); q != "question" || a != "answer" {
		t.Errorf("got %q and %q", q, a)
	}
	peer.CloseWrite()
	peer.Reset(Cancel)
	s.CloseWrite()
	p.pump()
	p.logs(nil, nil)
}

func TestResetKeepsItsCodeBothWays(t *testing.T) {
	p := newPair(t, nil)
	a, b := p.open(nil), p.open(nil)
	p.pump()
	p.client.takeLog()
	p.server.takeLog()
	a.Write([]byte("lost or not"))
	a.Reset(ConnectError)
	p.server.streams[b.ID()].Reset(Cancel)
	p.pump()
	p.logs([]string{"release 1", "reset 3 CANCEL remote", "release 3"},
		[]string{"release 3", "reset 1 CONNECT_ERROR remote", "release 1"})
	p.client.checkWindows(t, 0)
	p.server.checkWindows(t, 0)
}

func TestRefuse(t *testing.T) {
	for _, status := range []int{400, 401, 503} {
		p := newPair(t, nil)
		p.server.answer = status
		s := p.open(nil)
		p.pump()
		if want := []string{"response 1 " + string(appendStatusText(status)), "end 1", "release 1"}; !slices.Equal(p.client.log, want) {
			t.Errorf("%d: client was told %q", status, p.client.log)
		}
		if !s.Released() || p.server.conn.Streams() != 0 {
			t.Errorf("%d: stream is left", status)
		}
	}
}

func appendStatusText(status int) []byte {
	return []byte{byte('0' + status/100), byte('0' + status/10%10), byte('0' + status%10)}
}

// TestBulkBothWays sends different bytes over several streams in both directions,
// with windows that are small enough to run out all the time.
func TestBulkBothWays(t *testing.T) {
	small := func(c *Config) { c.StreamWindow, c.ConnWindow = 1<<16, 1<<17 }
	for name, change := range map[string]func(*Config){"default windows": nil, "small windows": small} {
		t.Run(name, func(t *testing.T) {
			p := newPair(t, change)
			p.client.relieve, p.server.relieve = true, true
			var senders []*sender
			for i := range 5 {
				s := p.open(nil)
				p.pump()
				senders = append(senders, newSender(p.rand, s, 300_000+i*7), newSender(p.rand, p.server.streams[s.ID()], 700_000-i))
			}
			wire(p.client, senders)
			wire(p.server, senders)
			for _, s := range senders {
				s.send()
			}
			p.pump()
			for _, s := range senders {
				to := p.server
				if !s.s.conn.client {
					to = p.client
				}
				if len(s.left) > 0 || !bytes.Equal(to.got[s.s.ID()].Bytes(), s.all) {
					t.Fatalf("stream %d: %d bytes left, %d of %d arrived", s.s.ID(), len(s.left), to.got[s.s.ID()].Len(), len(s.all))
				}
			}
			p.client.checkWindows(t, 0)
			p.server.checkWindows(t, 0)
		})
	}
}

// sender sends through Reserve and Commit as a relay does with readv.
type sender struct {
	s         *Stream
	rand      *rand.Rand
	all, left []byte
}

func newSender(r *rand.Rand, s *Stream, n int) *sender {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return &sender{s: s, rand: r, all: b, left: b}
}

func wire(o *owner, senders []*sender) {
	o.onWrite = func(s *Stream) {
		for _, x := range senders {
			if x.s == s {
				x.send()
			}
		}
	}
}

func (x *sender) send() {
	for len(x.left) > 0 {
		iov := x.s.Reserve(1+x.rand.IntN(len(x.left)+1000), nil)
		if iov == nil {
			return
		}
		n := 0
		for _, slot := range iov {
			n += copy(slot, x.left[n:])
		}
		n -= x.rand.IntN(min(n, 100)) // readv gives less than there is room for
		x.s.Commit(n)
		x.left = x.left[n:]
	}
}

func TestOpenLimits(t *testing.T) {
	p := newPair(t, func(c *Config) { c.MaxStreams = 2 })
	block, _ := ConnectBlock("web:80")
	if r := p.client.conn.Room(); r != 2 {
		t.Fatalf("room for %d", r)
	}
	s := p.open(nil)
	p.open(nil)
	if _, err := p.client.conn.Open(p.client, block, nil); err != ErrStreamLimit {
		t.Errorf("third stream: %v", err)
	}
	s.Reset(Cancel)
	if r := p.client.conn.Room(); r != 1 {
		t.Errorf("room for %d after a reset", r)
	}
	huge := &Block{}
	if err := huge.Add("x", string(bytes.Repeat([]byte("y"), DefaultServerHeaders))); err != nil {
		t.Fatal(err)
	}
	if _, err := p.client.conn.Open(p.client, block, huge); err != ErrHeaderList {
		t.Errorf("huge fields: %v", err)
	}
	p.client.conn.Close()
	if _, err := p.client.conn.Open(p.client, block, nil); err != ErrClosed {
		t.Errorf("closed: %v", err)
	}
}

// TestLargeBlock: a header block that needs CONTINUATION.
func TestLargeBlock(t *testing.T) {
	p := newPair(t, nil)
	extra := &Block{}
	if err := extra.Add("baggage", string(bytes.Repeat([]byte("b"), 40_000))); err != nil {
		t.Fatal(err)
	}
	p.open(extra)
	p.pump()
	if len(p.server.log) != 1 || len(p.server.log[0]) < 40_000 {
		t.Errorf("server was told %.60q", p.server.log)
	}
}
