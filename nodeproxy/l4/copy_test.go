// SPDX-License-Identifier: Apache-2.0

package l4

import (
	"encoding/binary"
	"io"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/sys/unix"

	"github.com/meshproxy/meshproxy/nodeproxy/loop"
	"github.com/meshproxy/meshproxy/nodeproxy/telemetry/reason"
	"github.com/meshproxy/meshproxy/nodeproxy/tunnel"
	"github.com/meshproxy/meshproxy/nodeproxy/tunnel/h2"
)

// The copy path, one read at a time, between a socket and HTTP/2 without TLS:
// the loop doesn't run, the test does its work. Package record has a test of its
// own.

// path is a relay whose tunnel is played by the test.
type path struct {
	set   *Relays
	relay *relay
	conn  *h2.Conn
	app   int // the application's end of the socket
	frame []byte
}

func newPath(t testing.TB) *path {
	t.Helper()
	l, err := loop.New(loop.Options{})
	if err != nil {
		t.Fatal(err)
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 4<<20)
	}
	p := &path{app: fds[1]}
	t.Cleanup(func() {
		l.Close()
		unix.Close(p.app)
	})
	p.set = New(tunnel.NewCarrier(l, tunnel.Options{}), nil, Options{})
	reg, err := l.Register(fds[0], &end{})
	if err != nil {
		t.Fatal(err)
	}
	p.conn = h2.NewClient(&h2.Config{Now: func() int64 { return 0 }, Batches: h2.NewBatchPool()}, silent{})
	p.conn.Start()
	p.relay = &relay{reg: reg, sess: silent{}}
	block, err := h2.ConnectBlock("10.0.0.1:80")
	if err != nil {
		t.Fatal(err)
	}
	if p.relay.stream, err = p.conn.Open(p.relay, block, nil); err != nil {
		t.Fatal(err)
	}
	p.feed(t, http2.FrameSettings, 0, 0, nil)
	p.feed(t, http2.FrameHeaders, http2.FlagHeadersEndHeaders, 1, []byte{0x88}) // :status 200
	p.set.establish(p.relay)
	p.relay.Resume()
	p.flush(t)
	return p
}

func (p *path) feed(t testing.TB, kind http2.FrameType, flags http2.Flags, stream uint32, payload []byte) {
	p.frame = append(p.frame[:0], byte(len(payload)>>16), byte(len(payload)>>8), byte(len(payload)), byte(kind), byte(flags))
	p.frame = binary.BigEndian.AppendUint32(p.frame, stream)
	p.frame = append(p.frame, payload...)
	p.set.gather.asked = true // the test flushes
	if err := p.conn.Feed(p.frame); err != nil {
		t.Fatal(err)
	}
	p.set.gather.Flush()
}

func (p *path) flush(t testing.TB) {
	if _, err := p.conn.WriteTo(io.Discard); err != nil {
		t.Fatal(err)
	}
}

// up sends a message from the application to the tunnel.
func (p *path) up(t testing.TB, msg, credit []byte) {
	if n, e := loop.Write(p.app, msg); n != len(msg) {
		t.Fatal(n, e)
	}
	p.relay.Ready(loop.Readable)
	p.flush(t)
	p.feed(t, http2.FrameWindowUpdate, 0, 0, credit)
	p.feed(t, http2.FrameWindowUpdate, 0, 1, credit)
	p.flush(t)
}

// down sends a frame from the tunnel to the application.
func (p *path) down(t testing.TB, msg, buf []byte) {
	p.feed(t, http2.FrameData, 0, 1, msg)
	if n, e := loop.Read(p.app, buf); n != len(msg) {
		t.Fatal(n, e)
	}
	p.flush(t)
}

// silent is a session and an owner that do nothing.
type silent struct{}

func (silent) Next(err error) (Target, error)            { return Target{}, err }
func (silent) Connected(*tunnel.Peer)                    {}
func (silent) Sent(int)                                  {}
func (silent) Received(int)                              {}
func (silent) Closed(reason.Reason, string)              {}
func (silent) OnOutput()                                 {}
func (silent) OnFull()                                   {}
func (silent) OnRequest(*h2.Stream, *h2.Request) h2.Sink { return nil }
func (silent) OnRelease(*h2.Stream)                      {}
func (silent) OnSettings()                               {}
func (silent) OnGoAway(uint32, h2.ErrCode, []byte)       {}
func (silent) OnPong(uint64)                             {}
func (silent) OnDrained()                                {}

func sizes() map[string]int { return map[string]int{"64B": 64, "16KB": 16375} }

func TestCopyDoesNotAllocate(t *testing.T) {
	for name, size := range sizes() {
		p := newPath(t)
		msg, buf := make([]byte, size), make([]byte, size)
		credit := binary.BigEndian.AppendUint32(nil, uint32(size))
		if n := testing.AllocsPerRun(500, func() { p.up(t, msg, credit) }); n != 0 {
			t.Errorf("%s from the application: %v allocations", name, n)
		}
		if n := testing.AllocsPerRun(500, func() { p.down(t, msg, buf) }); n != 0 {
			t.Errorf("%s to the application: %v allocations", name, n)
		}
	}
}

// BenchmarkRead is one read of the copy path in each direction.
func BenchmarkRead(b *testing.B) {
	for name, size := range sizes() {
		msg, buf := make([]byte, size), make([]byte, size)
		credit := binary.BigEndian.AppendUint32(nil, uint32(size))
		b.Run("up/"+name, func(b *testing.B) {
			p := newPath(b)
			b.ReportAllocs()
			b.SetBytes(int64(size))
			for b.Loop() {
				p.up(b, msg, credit)
			}
		})
		b.Run("down/"+name, func(b *testing.B) {
			p := newPath(b)
			b.ReportAllocs()
			b.SetBytes(int64(size))
			for b.Loop() {
				p.down(b, msg, buf)
			}
		})
	}
}
