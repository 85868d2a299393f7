// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"crypto/tls"
	"errors"
	"net"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/meshproxy/meshproxy/tests/meshnode"
	"github.com/meshproxy/meshproxy/tests/peers/handover"
	"github.com/meshproxy/meshproxy/tests/peers/rawh2"
)

// framesServer is a server of tunnels that does what the test says.
type framesServer struct {
	*lab
	ln     net.Listener
	config *tls.Config
	front  *handover.Opener // the workload that connects to it
}

// newFramesServer starts a node of its own for each test: pools would keep the
// tunnels of the one before.
func newFramesServer(t *testing.T) *framesServer {
	t.Helper()
	l := foreignLab(t)
	ln, err := l.net.Host("b").Listen("tcp", on(15008).String())
	must(t, err)
	t.Cleanup(func() { ln.Close() })
	return &framesServer{
		lab: l, ln: ln, config: l.credentials("peer").Server(meshnode.Identity("front")),
		front: l.opener(l.net.Host("a"), "front"),
	}
}

// accept takes the node's next tunnel.
func (f *framesServer) accept(t *testing.T, settings ...http2.Setting) *rawh2.Conn {
	t.Helper()
	must(t, f.ln.(*net.TCPListener).SetDeadline(time.Now().Add(patience)))
	raw, err := f.ln.Accept()
	must(t, err)
	f.Cleanup(func() { raw.Close() }) // others may go on with it
	c := tls.Server(raw, f.config)
	must(t, c.HandshakeContext(f.ctx()))
	h, err := rawh2.Server(c, settings...)
	must(t, err)
	return h
}

// dial makes a connection of the workload.
func (f *framesServer) dial(t *testing.T) *net.TCPConn {
	t.Helper()
	c, err := f.front.Dial(on(7001).String())
	must(t, err)
	f.Cleanup(func() { c.Close() })
	must(t, c.SetDeadline(time.Now().Add(patience)))
	return c
}

// requested takes the node's next CONNECT.
func (f *framesServer) requested(t *testing.T, c *rawh2.Conn) *rawh2.Frame {
	t.Helper()
	return await(t, f.lab, c, func(fr *rawh2.Frame) bool { return fr.Type == http2.FrameHeaders })
}

// open takes the node's next CONNECT and accepts it.
func (f *framesServer) open(t *testing.T, c *rawh2.Conn) (id uint32) {
	t.Helper()
	id = f.requested(t, c).StreamID
	must(t, c.Headers(id, false, ":status", "200"))
	return id
}

// use passes something both ways.
func (f *framesServer) use(t *testing.T, client *net.TCPConn, c *rawh2.Conn, id uint32) {
	t.Helper()
	_, err := client.Write([]byte("question"))
	must(t, err)
	payload(t, f.lab, c, id, "question")
	must(t, c.Data(id, false, []byte("answer")))
	received(t, client, "answer")
}

// TestNodeToFrames: what HTTP/2 allows a server and common ones don't do.
func TestNodeToFrames(t *testing.T) {
	f := newFramesServer(t)
	client := f.dial(t)
	c := f.accept(t)

	t.Run("request", func(t *testing.T) {
		r := f.requested(t, c)
		for field, want := range map[string]string{
			":method": "CONNECT", ":authority": on(7001).String(), ":scheme": "", ":path": "",
			"forwarded": `for="10.77.0.1:` + port(client) + `";host=back`,
		} {
			if got := r.Field(field); got != want {
				t.Errorf("%s is %q, want %q", field, got, want)
			}
		}
		s := await(t, f.lab, c, rawh2.Of(http2.FrameSettings, 0))
		got := map[http2.SettingID]uint32{}
		for _, s := range s.Settings {
			got[s.ID] = s.Val
		}
		for id, want := range map[http2.SettingID]uint32{
			http2.SettingEnablePush: 0, http2.SettingInitialWindowSize: 4 << 20,
			http2.SettingMaxFrameSize: 1 << 20, http2.SettingMaxHeaderListSize: 16 << 10,
		} {
			if v, ok := got[id]; !ok || v != want {
				t.Errorf("%v is %d, want %d", id, v, want)
			}
		}
		// An interim response, then the final one in several frames, padded.
		must(t, c.Headers(r.StreamID, false, ":status", "103", "link", "none"))
		block := c.Block(":status", "200", "baggage", "service.name=peer")
		must(t, c.Send(func(fr *http2.Framer) error {
			return errors.Join(
				fr.WriteHeaders(http2.HeadersFrameParam{StreamID: r.StreamID, BlockFragment: block[:1], PadLength: 100}),
				fr.WriteContinuation(r.StreamID, false, block[1:5]),
				fr.WriteContinuation(r.StreamID, true, block[5:]),
			)
		}))
		f.use(t, client, c, r.StreamID)
	})
	t.Run("padding", func(t *testing.T) {
		must(t, c.Send(func(fr *http2.Framer) error { return fr.WriteDataPadded(1, false, []byte("padded"), make([]byte, 255)) }))
		received(t, client, "padded")
	})
	t.Run("half-close", func(t *testing.T) {
		client := f.dial(t)
		id := f.open(t, c)
		must(t, client.CloseWrite())
		if _, end, err := c.Payload(f.ctx(), id, 1); err != nil || !end {
			t.Errorf("end %v, %v", end, err)
		}
		must(t, c.Data(id, true, []byte("answer")))
		received(t, client, "answer")
		expectEnd(t, client)

		client = f.dial(t)
		id = f.open(t, c)
		must(t, c.Data(id, true, []byte("last words")))
		received(t, client, "last words")
		expectEnd(t, client)
		_, err := client.Write([]byte("still"))
		must(t, err)
		payload(t, f.lab, c, id, "still")
		must(t, client.Close())
		if _, end, err := c.Payload(f.ctx(), id, 1); err != nil || !end {
			t.Errorf("end %v, %v", end, err)
		}
	})
	t.Run("reset", func(t *testing.T) {
		client := f.dial(t)
		id := f.open(t, c)
		must(t, c.Reset(id, http2.ErrCodeConnect))
		wantReset(t, client)

		client = f.dial(t)
		id = f.open(t, c)
		f.use(t, client, c, id)
		must(t, errors.Join(client.SetLinger(0), client.Close()))
		if r := await(t, f.lab, c, rawh2.Of(http2.FrameRSTStream, id)); r.Code != http2.ErrCodeConnect {
			t.Errorf("got %v, want CONNECT_ERROR (section 8.5)", r)
		}
	})
	t.Run("shrinking windows", func(t *testing.T) { f.windows(t, c) })
	t.Run("refused stream", func(t *testing.T) {
		client := f.dial(t)
		must(t, c.Reset(f.requested(t, c).StreamID, http2.ErrCodeRefusedStream))
		f.use(t, client, c, f.open(t, c)) // it was safe to ask again
	})
	t.Run("others are unaffected", func(t *testing.T) { f.use(t, client, c, 1) })
}

func port(c net.Conn) string {
	_, port, _ := net.SplitHostPort(c.LocalAddr().String())
	return port
}

func wantReset(t *testing.T, c net.Conn) {
	t.Helper()
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("got %v, want a reset", err)
	}
}

// windows that shrink while the client sends: RFC 9113, section 6.9.2.
func (f *framesServer) windows(t *testing.T, c *rawh2.Conn) {
	must(t, c.Window(0, 1<<24))
	client := f.dial(t)
	id := f.open(t, c)
	text := bytes.Repeat([]byte("0123456789abcdef"), 16<<10)
	sent := make(chan error, 1)
	go func() {
		_, err := client.Write(text)
		sent <- errors.Join(err, client.CloseWrite())
	}()
	payload(t, f.lab, c, id, string(text[:65535]))
	initial := func(size uint32) {
		must(t, c.Send(func(fr *http2.Framer) error {
			return fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: size})
		}))
		must(t, c.Settle(f.ctx()))
	}
	initial(10) // the window is 10 - 65535
	must(t, c.Window(id, 65535-10))
	must(t, c.Settle(f.ctx()))
	if n := dataSoFar(c); n > 0 {
		t.Fatalf("%d bytes without a window", n)
	}
	must(t, c.Window(id, 1))
	payload(t, f.lab, c, id, string(text[65535:65536]))
	must(t, c.Settle(f.ctx()))
	if n := dataSoFar(c); n > 0 {
		t.Fatalf("%d bytes more than the window of 1", n)
	}
	initial(1 << 20)
	payload(t, f.lab, c, id, string(text[65536:]))
	must(t, <-sent)
	if _, end, err := c.Payload(f.ctx(), id, 1); err != nil || !end {
		t.Errorf("end %v, %v", end, err)
	}
	must(t, c.Data(id, true, nil))
	expectEnd(t, client)
}

// TestNodeLeavesServer: a tunnel whose server goes away or misbehaves is
// replaced by another.
func TestNodeLeavesServer(t *testing.T) {
	f := newFramesServer(t)
	client := f.dial(t)
	c := f.accept(t)
	id := f.open(t, c)

	t.Run("GOAWAY before the answer", func(t *testing.T) {
		late := f.dial(t)
		lost := f.requested(t, c).StreamID
		must(t, c.Send(func(fr *http2.Framer) error { return fr.WriteGoAway(id, http2.ErrCodeNo, nil) }))
		next := f.accept(t)
		f.use(t, late, next, f.open(t, next))
		f.use(t, client, c, id) // the first tunnel serves until its stream ends
		if lost == id {
			t.Errorf("both streams are %d", id)
		}
		must(t, errors.Join(client.CloseWrite(), c.Data(id, true, nil)))
		expectEnd(t, client)
		must(t, c.Ended(f.ctx()))
		c = next
	})
	t.Run("fewer streams", func(t *testing.T) {
		must(t, c.Send(func(fr *http2.Framer) error {
			return fr.WriteSettings(http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 1})
		}))
		must(t, c.Settle(f.ctx()))
		second := f.dial(t)
		next := f.accept(t)
		f.use(t, second, next, f.open(t, next))
		must(t, next.Send(func(fr *http2.Framer) error {
			return fr.WriteSettings(http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 1})
		}))
		must(t, next.Settle(f.ctx()))
	})
	t.Run("PING flood", func(t *testing.T) {
		victim := f.dial(t)
		bad := f.accept(t) // the tunnels before are full
		f.use(t, victim, bad, f.open(t, bad))
		flood(bad, func(fr *http2.Framer, i int) error { return fr.WritePing(false, [8]byte{byte(i)}) })
		ended(t, f.lab, bad, http2.ErrCodeEnhanceYourCalm)
		wantReset(t, victim)
		client := f.dial(t)
		good := f.accept(t)
		f.use(t, client, good, f.open(t, good))
	})
}
