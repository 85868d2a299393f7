// SPDX-License-Identifier: Apache-2.0

package h2

import (
	"fmt"
	"io"
	"runtime"
	"testing"
	"unsafe"

	"golang.org/x/net/http2/hpack"
)

// quiet is an owner and sink that does nothing but consume.
type quiet struct {
	conn *Conn
	last *Stream
}

func (q *quiet) OnOutput() {}
func (q *quiet) OnFull()   { _, _ = q.conn.WriteTo(io.Discard) }
func (q *quiet) OnRequest(s *Stream, _ *Request) Sink {
	q.last = s
	s.Accept(nil)
	return q
}
func (q *quiet) OnRelease(*Stream)                          {}
func (q *quiet) OnSettings()                                {}
func (q *quiet) OnGoAway(uint32, ErrCode, []byte)           {}
func (q *quiet) OnPong(uint64)                              {}
func (q *quiet) OnDrained()                                 {}
func (q *quiet) Response(*Stream, int, []hpack.HeaderField) {}
func (q *quiet) Data(s *Stream, p []byte)                   { s.Consumed(len(p)) }
func (q *quiet) End(*Stream)                                {}
func (q *quiet) Reset(*Stream, StreamError)                 {}
func (q *quiet) Writable(*Stream)                           {}

func (q *quiet) Write(p []byte) (int, error) { return len(p), nil }

// conduit carries the output of one end to the other, without a copy.
type conduit struct{ to *Conn }

func (c conduit) Write(p []byte) (int, error) { return len(p), c.to.Feed(p) }

type benchPair struct {
	client, server *quiet
	up, down       io.Writer
	block          *Block
}

func newBenchPair(tb testing.TB) *benchPair { return newBenchPairOn(tb, benchConfig()) }

func benchConfig() *Config { return &Config{Now: func() int64 { return 0 }, Batches: NewBatchPool()} }

func newBenchPairOn(tb testing.TB, cfg *Config) *benchPair {
	p := &benchPair{client: &quiet{}, server: &quiet{}}
	p.client.conn = NewClient(cfg, p.client)
	p.server.conn = NewServer(cfg, p.server)
	p.client.conn.Start()
	p.server.conn.Start()
	p.up, p.down = conduit{p.server.conn}, conduit{p.client.conn}
	var err error
	if p.block, err = ConnectBlock("10.0.0.1:8080"); err != nil {
		tb.Fatal(err)
	}
	p.turn(tb)
	return p
}

func (p *benchPair) turn(tb testing.TB) {
	for p.client.conn.Pending()+p.server.conn.Pending() > 0 {
		if _, err := p.client.conn.WriteTo(p.up); err != nil {
			tb.Fatal(err)
		}
		if _, err := p.server.conn.WriteTo(p.down); err != nil {
			tb.Fatal(err)
		}
	}
}

func (p *benchPair) open(tb testing.TB) *Stream {
	s, err := p.client.conn.Open(p.client, p.block, nil)
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

// BenchmarkBulk is a relay's turn with much to send: reserve, commit, one record at
// a time through the other end, windows given back.
func BenchmarkBulk(b *testing.B) {
	p := newBenchPair(b)
	s := p.open(b)
	p.turn(b)
	iov := make([][]byte, 0, DefaultSlots)
	b.SetBytes(DefaultSlots * 16375)
	b.ReportAllocs()
	for b.Loop() {
		iov = s.Reserve(1<<20, iov[:0])
		s.Commit(DefaultSlots * 16375)
		p.turn(b)
	}
}

// BenchmarkMessage is a round trip of 64 bytes.
func BenchmarkMessage(b *testing.B) {
	p := newBenchPair(b)
	s := p.open(b)
	p.turn(b)
	back := p.server.last
	msg := make([]byte, 64)
	iov := make([][]byte, 0, DefaultSlots)
	b.ReportAllocs()
	for b.Loop() {
		iov = s.Reserve(1<<18, iov[:0])
		s.Commit(copy(iov[0], msg))
		p.turn(b)
		iov = back.Reserve(1<<18, iov[:0])
		back.Commit(copy(iov[0], msg))
		p.turn(b)
	}
}

// BenchmarkStream opens a stream and closes it from both sides.
func BenchmarkStream(b *testing.B) {
	extra := &Block{}
	_ = extra.Add("forwarded", `for="10.0.0.9:43210"`)
	for name, extra := range map[string]*Block{"plain": nil, "forwarded": extra} {
		b.Run(name, func(b *testing.B) {
			p := newBenchPair(b)
			b.ReportAllocs()
			for b.Loop() {
				s, err := p.client.conn.Open(p.client, p.block, extra)
				if err != nil {
					b.Fatal(err)
				}
				p.turn(b)
				s.CloseWrite()
				p.server.last.CloseWrite()
				p.turn(b)
			}
		})
	}
}

// TestAllocations keeps the copy path free of allocations.
func TestAllocations(t *testing.T) {
	p := newBenchPair(t)
	s := p.open(t)
	p.turn(t)
	iov := make([][]byte, 0, DefaultSlots)
	for _, n := range []int{1, 64, 16375, 16376, DefaultSlots * 16375} {
		if a := testing.AllocsPerRun(200, func() {
			iov = s.Reserve(1<<20, iov[:0])
			s.Commit(n)
			p.turn(t)
		}); a != 0 {
			t.Errorf("%d bytes: %v allocations", n, a)
		}
	}
	if a := testing.AllocsPerRun(200, func() { // the stream itself at each end
		s := p.open(t)
		p.turn(t)
		s.CloseWrite()
		p.server.last.CloseWrite()
		p.turn(t)
	}); a > 4 {
		t.Errorf("opening a stream: %v allocations for both ends", a)
	}
}

// TestIdleMemory: what an idle stream and an idle connection cost.
func TestIdleMemory(t *testing.T) {
	if size := unsafe.Sizeof(Stream{}); size > 80 {
		t.Errorf("a Stream takes %d bytes", size)
	}
	if size := unsafe.Sizeof(Conn{}); size > 512 {
		t.Errorf("a Conn takes %d bytes", size)
	}
	const streams, conns = 900, 20
	cfg := benchConfig()
	newBenchPairOn(t, cfg) // fills the pools
	var pairs []*benchPair
	start := heap()
	for range conns {
		pairs = append(pairs, newBenchPairOn(t, cfg))
	}
	idle := heap()
	for _, p := range pairs {
		for i := range streams {
			p.open(t)
			if i%50 == 0 {
				p.turn(t)
			}
		}
		p.turn(t)
	}
	full := heap()
	// The second figure is before a server has needed its HPACK decoder.
	perStream, perConn := (full-idle)/(2*conns*streams), (idle-start)/(2*conns)
	t.Logf("%d bytes per stream and end, %d per connection and end", perStream, perConn)
	if perStream > 160 || perConn > 1024 {
		t.Error("that is too much")
	}
	runtime.KeepAlive(pairs)
}

func heap() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

func BenchmarkTable(b *testing.B) {
	for _, n := range []int{10, 100, 1000} {
		streams := make([]*Stream, n)
		for i := range streams {
			streams[i] = &Stream{id: uint32(2*i + 1)}
		}
		b.Run(fmt.Sprintf("table/%d", n), func(b *testing.B) {
			before := heap()
			var t table
			for _, s := range streams {
				t.put(s)
			}
			size := heap() - before
			for i := 0; b.Loop(); i++ {
				if t.get(uint32(2*(i%n)+1)) == nil {
					b.Fatal("lost")
				}
			}
			b.ReportMetric(float64(size)/float64(n), "B/stream")
		})
		b.Run(fmt.Sprintf("map/%d", n), func(b *testing.B) {
			before := heap()
			m := map[uint32]*Stream{}
			for _, s := range streams {
				m[s.id] = s
			}
			size := heap() - before
			for i := 0; b.Loop(); i++ {
				if m[uint32(2*(i%n)+1)] == nil {
					b.Fatal("lost")
				}
			}
			b.ReportMetric(float64(size)/float64(n), "B/stream")
		})
	}
}
