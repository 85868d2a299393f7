// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"

	"golang.org/x/net/http2"

	"github.com/meshproxy/meshproxy/tests/meshnode"
	"github.com/meshproxy/meshproxy/tests/peers/rawh2"
)

// TestFloods: a client that costs more than it brings is cut off, and another
// one notices nothing.
func TestFloods(t *testing.T) {
	l := foreignLab(t)
	f := &frames{l, l.listener(l.net.Host("a"), "web", webAuthority)}
	bystander := newBystander(t, f)

	for _, tc := range []struct {
		name string
		// opened: on a stream, 1, that is open.
		opened bool
		send   func(c *rawh2.Conn, fr *http2.Framer, i int) error
	}{
		{"PING", false, func(_ *rawh2.Conn, fr *http2.Framer, i int) error { return fr.WritePing(false, [8]byte{byte(i)}) }},
		{"SETTINGS", false, func(_ *rawh2.Conn, fr *http2.Framer, i int) error { return fr.WriteSettings() }},
		{"PRIORITY", true, func(_ *rawh2.Conn, fr *http2.Framer, i int) error {
			return fr.WritePriority(1, http2.PriorityParam{Weight: byte(i)})
		}},
		{"unknown frames", true, func(_ *rawh2.Conn, fr *http2.Framer, i int) error { return fr.WriteRawFrame(0xfa, 0, 1, nil) }},
		{"empty DATA", true, func(_ *rawh2.Conn, fr *http2.Framer, i int) error { return fr.WriteData(1, false, nil) }},
		{"DATA of padding alone", true, func(_ *rawh2.Conn, fr *http2.Framer, i int) error {
			return fr.WriteDataPadded(1, false, nil, []byte{0})
		}},
		{"WINDOW_UPDATE", true, func(_ *rawh2.Conn, fr *http2.Framer, i int) error { return fr.WriteWindowUpdate(1, 1) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := f.connect(t)
			var app net.Conn
			if tc.opened {
				app = f.open(t, c, 1)
			}
			flood(c, func(fr *http2.Framer, i int) error { return tc.send(c, fr, i) })
			ended(t, l, c, http2.ErrCodeEnhanceYourCalm)
			if app != nil {
				wantGone(t, app)
			}
			bystander.check(t)
		})
	}
	t.Run("rapid reset", func(t *testing.T) {
		c := f.connect(t)
		block := c.Block(":method", "CONNECT", ":authority", webAuthority)
		flood(c, func(fr *http2.Framer, i int) error {
			id := uint32(1 + 2*i)
			return errors.Join(
				fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block, EndHeaders: true}),
				fr.WriteRSTStream(id, http2.ErrCodeCancel),
			)
		})
		ended(t, l, c, http2.ErrCodeEnhanceYourCalm)
		bystander.check(t)
		f.discard(t)
	})
	t.Run("made you reset", func(t *testing.T) {
		c := f.connect(t)
		// Each of these requests is answered by a reset of the server's own.
		block := c.Block(":method", "CONNECT", ":authority", webAuthority)
		flood(c, func(fr *http2.Framer, i int) error {
			id := uint32(1 + 2*i)
			return errors.Join(
				fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block, EndHeaders: true}),
				fr.WriteWindowUpdate(id, 0),
			)
		})
		ended(t, l, c, http2.ErrCodeEnhanceYourCalm)
		bystander.check(t)
		f.discard(t)
	})
	t.Run("CONTINUATION", func(t *testing.T) {
		c := f.connect(t)
		must(t, c.Send(func(fr *http2.Framer) error {
			return fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: c.Block(":method", "CONNECT")})
		}))
		flood(c, func(fr *http2.Framer, i int) error { return fr.WriteContinuation(1, false, nil) })
		ended(t, l, c, http2.ErrCodeEnhanceYourCalm)
		bystander.check(t)
	})
	t.Run("headers", func(t *testing.T) {
		c := f.connect(t)
		// 64 KiB are allowed: what is not far beyond is refused, and only that.
		must(t, f.fat(c, 1, 5))
		wantStatus(t, l, c, 1, "431")
		f.open(t, c, 3)
		_ = f.fat(c, 5, 50)
		ended(t, l, c, http2.ErrCodeEnhanceYourCalm)
		bystander.check(t)
	})
	t.Run("more than the window", func(t *testing.T) {
		c := f.connect(t)
		f.open(t, c, 1) // and nobody reads
		chunk := make([]byte, 16<<10)
		flood(c, func(fr *http2.Framer, i int) error { return fr.WriteData(1, false, chunk) })
		await(t, l, c, func(fr *rawh2.Frame) bool {
			return fr.Code == http2.ErrCodeFlowControl && (fr.Type == http2.FrameRSTStream || fr.Type == http2.FrameGoAway)
		})
		bystander.check(t)
	})
	t.Run("the log names the culprit", func(t *testing.T) {
		l.in(t).logged(l.nodes["a"], "close tunnel", meshnode.Identity("peer"), "ENHANCE_YOUR_CALM", "too many PING")
	})
}

// fat asks for a tunnel with so many fields of 15 KiB.
func (f *frames) fat(c *rawh2.Conn, id uint32, n int) error {
	fields := []string{":method", "CONNECT", ":authority", webAuthority}
	for i := range n {
		fields = append(fields, fmt.Sprintf("x-%d", i), strings.Repeat("~", 15<<10))
	}
	block := c.Block(fields...)
	half := len(block) / 2
	return c.Send(func(fr *http2.Framer) error {
		return errors.Join(
			fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block[:half]}),
			fr.WriteContinuation(id, true, block[half:]),
		)
	})
}

// flood sends until the node has had enough, or far more than it should bear.
func flood(c *rawh2.Conn, send func(*http2.Framer, int) error) {
	for i := range 5_000 {
		if c.Send(func(fr *http2.Framer) error { return send(fr, i) }) != nil {
			return
		}
	}
}

// wantGone expects the end of an application's connection, however hard.
func wantGone(t *testing.T, c net.Conn) {
	t.Helper()
	n, err := c.Read(make([]byte, 1))
	var timeout net.Error
	if n > 0 || err == nil || errors.As(err, &timeout) && timeout.Timeout() {
		t.Errorf("the application's connection still stands: %v", err)
	}
}

// discard takes connections that the floods have made.
func (f *frames) discard(t *testing.T) {
	t.Helper()
	fence := f.connect(t)
	must(t, fence.Connect(1, webAuthority))
	wantStatus(t, f.lab, fence, 1, "200")
	const mark = "fence"
	must(t, fence.Data(1, false, []byte(mark)))
	for {
		s, err := f.app.Accept()
		must(t, err)
		got := make([]byte, len(mark))
		n, _ := s.Read(got)
		_ = s.Close()
		if string(got[:n]) == mark {
			return
		}
	}
}

// bystander is another client, whose stream goes on.
type bystander struct {
	frames *frames
	conn   *rawh2.Conn
	app    net.Conn
	rounds int
}

func newBystander(t *testing.T, f *frames) *bystander {
	t.Helper()
	c := f.connect(t)
	return &bystander{frames: f, conn: c, app: f.open(t, c, 1)}
}

func (b *bystander) check(t *testing.T) {
	t.Helper()
	b.rounds++
	text := fmt.Sprintf("round %d", b.rounds)
	must(t, b.conn.Data(1, false, []byte(text)))
	received(t, b.app, text)
	_, err := b.app.Write([]byte(text))
	must(t, err)
	payload(t, b.frames.lab, b.conn, 1, text)
}
