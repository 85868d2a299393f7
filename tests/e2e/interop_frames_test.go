// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"testing"

	"golang.org/x/net/http2"

	"github.com/meshproxy/meshproxy/tests/meshnode"
	"github.com/meshproxy/meshproxy/tests/peers/rawh2"
	"github.com/meshproxy/meshproxy/tests/testnet"
)

const (
	webAuthority = "10.77.0.1:7001"
	nodeTunnels  = "10.77.0.1:15008"
)

// frames is a client of a node that sends what it likes, and the application
// that its streams go to.
type frames struct {
	*lab
	app *net.TCPListener
}

// connect opens a tunnel.
func (f *frames) connect(t *testing.T, settings ...http2.Setting) *rawh2.Conn {
	t.Helper()
	c := f.in(t).tls(f.net.Host("b"), f.credentials("peer").Client("", meshnode.Identity("web")))
	h, err := rawh2.Client(c, settings...)
	must(t, err)
	// What is acknowledged without being asked to comes between no frames now.
	must(t, h.Settle(f.ctx()))
	return h
}

// tls shakes hands with the node.
func (l *lab) tls(from *testnet.Host, config *tls.Config) *tls.Conn {
	l.Helper()
	raw, err := from.DialContext(l.ctx(), "tcp", nodeTunnels)
	if err != nil {
		l.Fatal(err)
	}
	l.Cleanup(func() { raw.Close() })
	c := tls.Client(raw, config)
	if err := c.HandshakeContext(l.ctx()); err != nil {
		l.Fatal(err)
	}
	return c
}

// open opens a stream with Connect.
func (f *frames) open(t *testing.T, c *rawh2.Conn, id uint32) *net.TCPConn {
	t.Helper()
	must(t, c.Connect(id, webAuthority))
	return f.opened(t, c, id)
}

// opened waits until a stream is one.
func (f *frames) opened(t *testing.T, c *rawh2.Conn, id uint32) *net.TCPConn {
	t.Helper()
	wantStatus(t, f.lab, c, id, "200")
	s, err := f.app.Accept()
	must(t, err)
	t.Cleanup(func() { s.Close() })
	return s.(*net.TCPConn)
}

func wantStatus(t *testing.T, l *lab, c *rawh2.Conn, id uint32, want string) *rawh2.Frame {
	t.Helper()
	h := await(t, l, c, rawh2.Of(http2.FrameHeaders, id))
	if got := h.Field(":status"); got != want {
		t.Fatalf("stream %d was answered %q, want %q", id, got, want)
	}
	return h
}

func await(t *testing.T, l *lab, c *rawh2.Conn, match func(*rawh2.Frame) bool) *rawh2.Frame {
	t.Helper()
	f, err := c.Await(l.ctx(), match)
	must(t, err)
	return f
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// payload expects data on a stream.
func payload(t *testing.T, l *lab, c *rawh2.Conn, id uint32, want string) {
	t.Helper()
	got, _, err := c.Payload(l.ctx(), id, len(want))
	if err != nil || string(got) != want {
		t.Fatalf("stream %d carried %.100q, want %.100q: %v", id, got, want, err)
	}
}

// received expects data at an application.
func received(t *testing.T, s net.Conn, want string) {
	t.Helper()
	got := make([]byte, len(want))
	if _, err := io.ReadFull(s, got); err != nil || string(got) != want {
		t.Fatalf("the application received %.100q, want %.100q: %v", got, want, err)
	}
}

// ended expects the node to end the connection for that reason.
func ended(t *testing.T, l *lab, c *rawh2.Conn, code http2.ErrCode) {
	t.Helper()
	g := await(t, l, c, func(f *rawh2.Frame) bool { return f.Type == http2.FrameGoAway })
	if g.Code != code {
		t.Errorf("got %v, want %v", g, code)
	}
	must(t, c.Ended(l.ctx()))
}

// TestFramesToNode: what HTTP/2 allows a client and common ones don't do.
func TestFramesToNode(t *testing.T) {
	l := foreignLab(t)
	f := &frames{l, l.listener(l.net.Host("a"), "web", webAuthority)}

	t.Run("announces", func(t *testing.T) {
		c := f.connect(t)
		s := await(t, l, c, rawh2.Of(http2.FrameSettings, 0))
		got := map[http2.SettingID]uint32{}
		for _, s := range s.Settings {
			got[s.ID] = s.Val
		}
		for id, want := range map[http2.SettingID]uint32{
			http2.SettingInitialWindowSize: 4 << 20, http2.SettingMaxFrameSize: 1 << 20, http2.SettingMaxHeaderListSize: 64 << 10,
		} {
			if got[id] != want {
				t.Errorf("%v is %d, want %d", id, got[id], want)
			}
		}
		if w := await(t, l, c, rawh2.Of(http2.FrameWindowUpdate, 0)); w.Add+65535 < 16<<20 {
			t.Errorf("the connection's window is %d, want 16 MiB at least: one stalled stream must not block the others", w.Add+65535)
		}
	})
	t.Run("padding and priority", func(t *testing.T) { f.padding(t) })
	t.Run("CONTINUATION", func(t *testing.T) {
		c := f.connect(t)
		block := c.Block(":method", "CONNECT", ":authority", webAuthority, "baggage", "service.name=frames")
		must(t, c.Send(func(fr *http2.Framer) error {
			return errors.Join(
				fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block[:1]}),
				fr.WriteContinuation(1, false, block[1:2]),
				fr.WriteContinuation(1, false, nil),
				fr.WriteContinuation(1, false, block[2:20]),
				fr.WriteContinuation(1, true, block[20:]),
			)
		}))
		s := f.opened(t, c, 1)
		must(t, c.Data(1, false, []byte("hello")))
		received(t, s, "hello")
	})
	t.Run("unknown frames and trailers", func(t *testing.T) {
		c := f.connect(t)
		s := f.open(t, c, 1)
		must(t, c.Send(func(fr *http2.Framer) error {
			return errors.Join(
				fr.WriteRawFrame(0xfa, 0xff, 1, []byte("grease")),
				fr.WritePriority(1, http2.PriorityParam{Weight: 3}),
				fr.WriteSettings(http2.Setting{ID: 0xfafa, Val: 1}),
			)
		}))
		must(t, c.Data(1, false, []byte("hello")))
		received(t, s, "hello")
		must(t, c.Headers(1, true, "trailer", "end"))
		expectEnd(t, s)
		must(t, s.Close())
		if _, end, err := c.Payload(l.ctx(), 1, 1); err != nil || !end {
			t.Errorf("end %v, %v", end, err)
		}
	})
	t.Run("half-close", func(t *testing.T) { f.halfClose(t) })
	t.Run("reset", func(t *testing.T) { f.reset(t) })
	t.Run("data before the answer", func(t *testing.T) {
		c := f.connect(t)
		must(t, c.Connect(1, webAuthority))
		must(t, c.Data(1, true, []byte("early")))
		s := f.opened(t, c, 1)
		received(t, s, "early")
		expectEnd(t, s)
	})
	t.Run("shrinking windows", func(t *testing.T) { f.windows(t) })
	t.Run("GOAWAY of the client", func(t *testing.T) {
		c := f.connect(t)
		s := f.open(t, c, 1)
		must(t, c.Send(func(fr *http2.Framer) error { return fr.WriteGoAway(0, http2.ErrCodeNo, nil) }))
		must(t, c.Settle(l.ctx()))
		must(t, c.Data(1, true, []byte("last words")))
		received(t, s, "last words")
		must(t, s.Close())
		if _, end, err := c.Payload(l.ctx(), 1, 1); err != nil || !end {
			t.Errorf("end %v, %v", end, err)
		}
		must(t, c.Ended(l.ctx()))
	})
	t.Run("not CONNECT", func(t *testing.T) {
		c := f.connect(t)
		must(t, c.Headers(1, true, ":method", "GET", ":scheme", "https", ":authority", webAuthority, ":path", "/"))
		wantStatus(t, l, c, 1, "400")
	})
	t.Run("stream limit", func(t *testing.T) { f.streamLimit(t) })
}

// padding: it counts for the windows, and is given back. HEADERS has some and a
// priority as well.
func (f *frames) padding(t *testing.T) {
	c := f.connect(t)
	block := c.Block(":method", "CONNECT", ":authority", webAuthority)
	must(t, c.Send(func(fr *http2.Framer) error {
		return fr.WriteHeaders(http2.HeadersFrameParam{
			StreamID: 1, BlockFragment: block, EndHeaders: true, PadLength: 200,
			Priority: http2.PriorityParam{Weight: 200, Exclusive: true},
		})
	}))
	s := f.opened(t, c, 1)
	const pieces, each = 40_000, 1 + 1 + 255 // payload, length of the padding, padding
	arrived := make(chan error, 1)
	go func() {
		got, err := io.ReadAll(io.LimitReader(s, pieces))
		if err == nil && !bytes.Equal(got, bytes.Repeat([]byte{'x'}, pieces)) {
			err = fmt.Errorf("%d other bytes", len(got))
		}
		arrived <- err
	}()
	window, pad := 4<<20, make([]byte, 255)
	for range pieces {
		for window < each {
			window += int(await(t, f.lab, c, rawh2.Of(http2.FrameWindowUpdate, 1)).Add)
		}
		window -= each
		must(t, c.Send(func(fr *http2.Framer) error { return fr.WriteDataPadded(1, false, []byte{'x'}, pad) }))
	}
	must(t, <-arrived)
}

// halfClose: each end may finish first.
func (f *frames) halfClose(t *testing.T) {
	c := f.connect(t)
	s := f.open(t, c, 1)
	must(t, c.Data(1, true, []byte("last words")))
	received(t, s, "last words")
	expectEnd(t, s)
	_, err := s.Write([]byte("answer"))
	must(t, err)
	payload(t, f.lab, c, 1, "answer")
	must(t, s.Close())
	if _, end, err := c.Payload(f.ctx(), 1, 1); err != nil || !end {
		t.Errorf("end %v, %v", end, err)
	}

	s = f.open(t, c, 3)
	must(t, s.CloseWrite())
	if _, end, err := c.Payload(f.ctx(), 3, 1); err != nil || !end {
		t.Errorf("end %v, %v", end, err)
	}
	must(t, c.Data(3, false, []byte("still")))
	received(t, s, "still")
	must(t, c.Data(3, true, []byte(" here")))
	received(t, s, " here")
	expectEnd(t, s)
}

// reset goes both ways, with the codes of RFC 9113.
func (f *frames) reset(t *testing.T) {
	c := f.connect(t)
	s := f.open(t, c, 1)
	must(t, c.Reset(1, http2.ErrCodeCancel))
	if _, err := s.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the application got %v, want a reset", err)
	}
	s = f.open(t, c, 3)
	must(t, errors.Join(s.SetLinger(0), s.Close()))
	if r := await(t, f.lab, c, rawh2.Of(http2.FrameRSTStream, 3)); r.Code != http2.ErrCodeConnect {
		t.Errorf("got %v, want CONNECT_ERROR (section 8.5)", r)
	}
}

// windows that shrink while data is on its way: RFC 9113, section 6.9.2.
func (f *frames) windows(t *testing.T) {
	c := f.connect(t) // 65535 bytes for each stream
	must(t, c.Window(0, 1<<30))
	s := f.open(t, c, 1)
	text := bytes.Repeat([]byte("0123456789abcdef"), 16<<10)
	sent := make(chan error, 1)
	go func() {
		_, err := s.Write(text)
		sent <- err
	}()
	got := 0
	expect := func(what string, n int) {
		t.Helper()
		payload(t, f.lab, c, 1, string(text[got:got+n]))
		got += n
		// Whatever comes is before the answer to a PING.
		must(t, c.Settle(f.ctx()))
		if more := dataSoFar(c); more > 0 {
			t.Fatalf("%s: %d bytes more than the window allows", what, more)
		}
	}
	initial := func(size uint32) {
		t.Helper()
		must(t, c.Send(func(fr *http2.Framer) error {
			return fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: size})
		}))
	}
	expect("default window", 65535)
	initial(0) // the window is -65535
	expect("negative window", 0)
	must(t, c.Window(1, 65535))
	expect("window of 0", 0)
	initial(1000)
	expect("new initial window", 1000)
	initial(100)
	must(t, c.Window(1, 901))
	expect("window of one byte", 1)
	initial(1 << 20)
	expect("all", len(text)-got)
	must(t, <-sent)
}

// dataSoFar is the payload that was received and not taken.
func dataSoFar(c *rawh2.Conn) (n int) {
	for _, f := range c.Received() {
		n += len(f.Data)
	}
	return n
}

// streamLimit: one stream more than is allowed is refused, and nothing happens
// to the others.
func (f *frames) streamLimit(t *testing.T) {
	c := f.connect(t)
	limit := uint32(0)
	for _, s := range await(t, f.lab, c, rawh2.Of(http2.FrameSettings, 0)).Settings {
		if s.ID == http2.SettingMaxConcurrentStreams {
			limit = s.Val
		}
	}
	if limit < 200 || limit > 10_000 {
		t.Fatalf("limit of %d streams", limit)
	}
	first := f.open(t, c, 1)
	for i := range limit - 1 {
		f.open(t, c, 3+2*i)
	}
	over := 1 + 2*limit
	must(t, c.Connect(over, webAuthority))
	if r := await(t, f.lab, c, rawh2.Of(http2.FrameRSTStream, over)); r.Code != http2.ErrCodeRefusedStream {
		t.Errorf("got %v, want REFUSED_STREAM", r)
	}
	must(t, c.Data(1, true, []byte("hello")))
	received(t, first, "hello")
	must(t, first.Close())
	await(t, f.lab, c, func(fr *rawh2.Frame) bool { return fr.StreamID == 1 && fr.StreamEnded() })
	f.open(t, c, over+2)
}
