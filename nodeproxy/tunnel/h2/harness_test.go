// SPDX-License-Identifier: Apache-2.0

package h2

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// owner is a Conn's owner and the sink of all of its streams. It writes down what
// it is told.
type owner struct {
	conn    *Conn
	clock   int64
	log     []string
	streams map[uint32]*Stream
	got     map[uint32]*bytes.Buffer

	hold    bool // does not consume what it is delivered
	answer  int  // status for requests; 0 leaves them unanswered
	echo    bool // ends its side when the peer does
	relieve bool // OnFull writes to out
	fulls   int
	out     bytes.Buffer
	records []int
	onData  func(s *Stream, p []byte)
	onWrite func(s *Stream)

	onRequest func(s *Stream, r *Request) Sink
}

func newOwner() *owner {
	return &owner{streams: map[uint32]*Stream{}, got: map[uint32]*bytes.Buffer{}, answer: 200}
}

func (o *owner) config() *Config {
	return &Config{Now: func() int64 { return o.clock }, Batches: NewBatchPool()}
}

func newTestClient(change func(*Config)) *owner { return startOwner(NewClient, change) }
func newTestServer(change func(*Config)) *owner { return startOwner(NewServer, change) }

func startOwner(mk func(*Config, Events) *Conn, change func(*Config)) *owner {
	o := newOwner()
	cfg := o.config()
	if change != nil {
		change(cfg)
	}
	o.conn = mk(cfg, o)
	o.conn.Start()
	return o
}

func (o *owner) note(format string, args ...any) { o.log = append(o.log, fmt.Sprintf(format, args...)) }

func (o *owner) OnOutput() {}
func (o *owner) OnFull() {
	o.fulls++
	if o.relieve {
		o.flush()
	}
}
func (o *owner) OnSettings() {}
func (o *owner) OnDrained()  { o.note("drained") }
func (o *owner) OnPong(d uint64) {
	o.note("pong %d", d)
}

func (o *owner) OnRelease(s *Stream) {
	delete(o.streams, s.ID())
	o.note("release %d", s.ID())
}

func (o *owner) OnGoAway(last uint32, code ErrCode, debug []byte) {
	o.note("goaway %d %v %s", last, code, debug)
}

func (o *owner) OnRequest(s *Stream, r *Request) Sink {
	if o.onRequest != nil {
		return o.onRequest(s, r)
	}
	o.streams[s.ID()] = s
	o.note("request %d %s%s", s.ID(), r.Authority, fieldsText(r.Fields))
	switch {
	case o.answer == 200:
		s.Accept(nil)
	case o.answer != 0:
		s.Refuse(o.answer)
		return nil
	}
	return o
}

func (o *owner) Response(s *Stream, status int, fields []hpack.HeaderField) {
	o.note("response %d %d%s", s.ID(), status, fieldsText(fields))
}

func (o *owner) Data(s *Stream, p []byte) {
	if o.onData != nil {
		o.onData(s, p)
		return
	}
	if o.got[s.ID()] == nil {
		o.got[s.ID()] = &bytes.Buffer{}
	}
	o.got[s.ID()].Write(p)
	if !o.hold {
		s.Consumed(len(p))
	}
}

func (o *owner) End(s *Stream) {
	o.note("end %d", s.ID())
	if o.echo {
		s.CloseWrite()
	}
}

func (o *owner) Reset(s *Stream, err StreamError) {
	text := "local"
	if err.Remote {
		text = "remote"
	}
	if err.Unprocessed {
		text += " unprocessed"
	}
	o.note("reset %d %v %s", s.ID(), err.Code, text)
}

func (o *owner) Writable(s *Stream) {
	if o.onWrite != nil {
		o.onWrite(s)
		return
	}
	o.note("writable %d", s.ID())
}

func fieldsText(fields []hpack.HeaderField) (s string) {
	for _, f := range fields {
		s += " " + f.Name + "=" + f.Value
	}
	return s
}

// Write takes one record.
func (o *owner) Write(p []byte) (int, error) {
	o.records = append(o.records, len(p))
	return o.out.Write(p)
}

func (o *owner) flush() {
	if _, err := o.conn.WriteTo(o); err != nil {
		panic(err)
	}
}

// take returns what the connection has to say.
func (o *owner) take() []byte {
	o.flush()
	p := bytes.Clone(o.out.Bytes())
	o.out.Reset()
	return p
}

func (o *owner) takeLog() []string {
	l := o.log
	o.log = nil
	return l
}

// split cuts p at random places.
func split(r *rand.Rand, p []byte) (parts [][]byte) {
	for len(p) > 0 {
		n := min(len(p), 1+r.IntN(1<<r.IntN(16)))
		parts = append(parts, p[:n])
		p = p[n:]
	}
	return parts
}

func each(p []byte) (parts [][]byte) {
	for i := range p {
		parts = append(parts, p[i:i+1])
	}
	return parts
}

// raw makes a frame.
func raw(kind frameType, fl flags, stream uint32, payload ...byte) []byte {
	b := make([]byte, frameHeaderLen, frameHeaderLen+len(payload))
	putFrame(b, kind, fl, stream, len(payload))
	return append(b, payload...)
}

// list encodes fields, name and value in turn, with x/net's encoder.
func list(fields ...string) []byte {
	var b bytes.Buffer
	e := hpack.NewEncoder(&b)
	for i := 0; i < len(fields); i += 2 {
		_ = e.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
	}
	return b.Bytes()
}

func connect(more ...string) []byte {
	return list(append([]string{":method", "CONNECT", ":authority", "web:80"}, more...)...)
}

// describe reads output with x/net's Framer and says what is in it, except for
// what a connection begins with.
func describe(t testing.TB, out []byte) (lines []string) {
	t.Helper()
	out = bytes.TrimPrefix(out, []byte(Preface))
	fr := http2.NewFramer(nil, bytes.NewReader(out))
	fr.SetMaxReadFrameSize(maxMaxFrame)
	fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	for {
		f, err := fr.ReadFrame()
		if err != nil {
			if fr.ErrorDetail() != nil {
				t.Fatalf("read our own output: %v: %v", err, fr.ErrorDetail())
			}
			return lines
		}
		if s := describeFrame(f); s != "" {
			lines = append(lines, s)
		}
	}
}

func describeFrame(f http2.Frame) string {
	id := f.Header().StreamID
	end := ""
	if f.Header().Flags.Has(http2.FlagDataEndStream) {
		end = " END"
	}
	switch f := f.(type) {
	case *http2.RSTStreamFrame:
		return fmt.Sprintf("RST %d %v", id, ErrCode(f.ErrCode))
	case *http2.GoAwayFrame:
		if f.ErrCode == 0 {
			return fmt.Sprintf("GOAWAY %d NO_ERROR", f.LastStreamID)
		}
		return fmt.Sprintf("GOAWAY %v", ErrCode(f.ErrCode))
	case *http2.MetaHeadersFrame:
		var s []string
		for _, h := range f.Fields {
			s = append(s, h.Value)
		}
		return fmt.Sprintf("HEADERS %d %s%s", id, strings.Join(s, " "), end)
	case *http2.DataFrame:
		return fmt.Sprintf("DATA %d %d%s", id, len(f.Data()), end)
	case *http2.PingFrame:
		if f.IsAck() {
			return "PONG"
		}
		return "PING"
	case *http2.SettingsFrame:
		if f.IsAck() {
			return "ACK"
		}
		return ""
	case *http2.WindowUpdateFrame:
		if id == 0 && f.Increment == DefaultConnWindow-minWindow {
			return ""
		}
		return fmt.Sprintf("WINDOW %d %d", id, f.Increment)
	}
	return fmt.Sprint(f)
}

// checkWindows checks that no part of a window was lost or made up: what the peer
// may send, what is owed to it and what sinks hold add up.
func (o *owner) checkWindows(t testing.TB, held uint32) {
	t.Helper()
	c := o.conn
	if c.err != nil {
		return
	}
	pending := uint32(0)
	if s := c.in.cur; s != nil {
		pending = c.in.rem
	}
	if sum := uint32(c.recvWindow) + c.owed + held + pending; sum != c.cfg.ConnWindow {
		t.Fatalf("connection window: %d may come + %d owed + %d held + %d under way = %d, want %d",
			c.recvWindow, c.owed, held, pending, sum, c.cfg.ConnWindow)
	}
	for _, s := range c.streams.all() {
		if s.has(gotEnd) {
			continue
		}
		pending := uint32(0)
		if s == c.in.cur {
			pending = c.in.rem
		}
		if sum := uint32(s.recvWindow) + s.owed + s.unconsumed + pending; sum != c.cfg.StreamWindow {
			t.Fatalf("window of stream %d: %d + %d + %d + %d = %d, want %d",
				s.id, s.recvWindow, s.owed, s.unconsumed, pending, sum, c.cfg.StreamWindow)
		}
	}
}
