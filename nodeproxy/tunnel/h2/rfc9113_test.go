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

// ruleCase is a rule of RFC 9113: what a peer sends after its preface and SETTINGS,
// and what it gets for it. Everything is fed whole, by bytes, and cut at random.
type ruleCase struct {
	name   string
	noInit bool     // in begins the connection
	in     [][]byte // frames
	out    []string // without what a connection begins with
	log    []string // what the owner was told; nil: not compared
}

func frames(f ...[]byte) [][]byte { return f }

func cat(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

const endHeaders = flagEndHeaders

var (
	open1    = raw(frameHeaders, endHeaders, 1, connect()...)
	openEnd1 = raw(frameHeaders, endHeaders|flagEndStream, 1, connect()...)
	ok1      = "HEADERS 1 200"
)

func be32(v uint32) []byte { return []byte{byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)} }

func settingsFrame(id setting, v uint32) []byte {
	return raw(frameSettings, 0, 0, append([]byte{byte(id >> 8), byte(id)}, be32(v)...)...)
}

func fatal(code ErrCode, before ...string) []string {
	return append(slices.Clone(before), "GOAWAY "+code.String())
}

var serverRules = []ruleCase{
	{name: "3.4 preface is wrong", noInit: true, in: frames([]byte("PRI * HTTP/1.1\r\n")), out: fatal(ProtocolError)},
	{name: "3.4 first frame is not SETTINGS", noInit: true, in: frames([]byte(Preface), raw(framePing, 0, 0, make([]byte, 8)...)), out: fatal(ProtocolError)},
	{name: "3.4 first frame is an acknowledgement", noInit: true, in: frames([]byte(Preface), raw(frameSettings, flagAck, 0)), out: fatal(ProtocolError)},

	{name: "4.1 unknown type is ignored", in: frames(raw(0x16, 0xff, 0, 1, 2, 3), raw(0xff, 0, 77), open1), out: []string{ok1}},
	{name: "4.1 reserved bit is ignored", in: frames(raw(framePing, 0, 1<<31, make([]byte, 8)...)), out: []string{"PONG"}},
	{name: "4.1 unknown flags are ignored", in: frames(raw(framePing, 0xf0, 0, make([]byte, 8)...)), out: []string{"PONG"}},
	{name: "4.2 frame too large", in: frames([]byte{0x10, 0, 1, 0, 0, 0, 0, 0, 1}), out: fatal(FrameSizeError)},
	{name: "4.3 header block does not decode", in: frames(raw(frameHeaders, endHeaders, 1, 0x80)), out: fatal(CompressionError)},
	{name: "4.3 header block is truncated", in: frames(raw(frameHeaders, endHeaders, 1, 0x00, 0x7f)), out: fatal(CompressionError)},
	{name: "4.3 block interrupted by another type", in: frames(raw(frameHeaders, 0, 1, connect()...), raw(framePing, 0, 0, make([]byte, 8)...)), out: fatal(ProtocolError)},
	{name: "4.3 block interrupted by an unknown type", in: frames(raw(frameHeaders, 0, 1, connect()...), raw(0x20, 0, 1)), out: fatal(ProtocolError)},
	{name: "4.3 block interrupted by another stream", in: frames(raw(frameHeaders, 0, 1, connect()...), raw(frameContinuation, endHeaders, 3)), out: fatal(ProtocolError)},
	{name: "4.3 block in pieces", in: frames(raw(frameHeaders, 0, 1, connect()[:3]...), raw(frameContinuation, 0, 1), raw(frameContinuation, endHeaders, 1, connect()[3:]...)), out: []string{ok1}},

	{name: "5.1 idle: DATA", in: frames(raw(frameData, 0, 1, 'x')), out: fatal(ProtocolError)},
	{name: "5.1 idle: DATA on an even stream", in: frames(open1, raw(frameData, 0, 2, 'x')), out: fatal(ProtocolError, ok1)},
	{name: "5.1 idle: RST_STREAM", in: frames(raw(frameReset, 0, 1, 0, 0, 0, 8)), out: fatal(ProtocolError)},
	{name: "5.1 idle: WINDOW_UPDATE", in: frames(raw(frameWindowUpdate, 0, 1, 0, 0, 0, 1)), out: fatal(ProtocolError)},
	{name: "5.1 idle: CONTINUATION", in: frames(raw(frameContinuation, endHeaders, 1, connect()...)), out: fatal(ProtocolError)},
	{name: "5.1 idle: PRIORITY", in: frames(raw(framePriority, 0, 1, 0, 0, 0, 0, 1)), out: nil},
	{name: "5.1 half-closed (remote): DATA", in: frames(openEnd1, raw(frameData, 0, 1, 'x')), out: []string{ok1, "RST 1 STREAM_CLOSED"}, log: []string{"request 1 web:80", "end 1", "reset 1 STREAM_CLOSED local", "release 1"}},
	{name: "5.1 half-closed (remote): HEADERS", in: frames(openEnd1, openEnd1), out: []string{ok1, "RST 1 STREAM_CLOSED"}},
	{name: "5.1 half-closed (remote): WINDOW_UPDATE and PRIORITY", in: frames(openEnd1, raw(frameWindowUpdate, 0, 1, 0, 0, 0, 9), raw(framePriority, 0, 1, 0, 0, 0, 0, 1)), out: []string{ok1}},
	{name: "5.1 half-closed (remote): RST_STREAM", in: frames(openEnd1, raw(frameReset, 0, 1, 0, 0, 0, 8)), out: []string{ok1}, log: []string{"request 1 web:80", "end 1", "reset 1 CANCEL remote", "release 1"}},
	{name: "5.1 closed by the peer's RST_STREAM: DATA", in: frames(open1, raw(frameReset, 0, 1, 0, 0, 0, 8), raw(frameData, 0, 1, 'x')), out: []string{ok1, "RST 1 STREAM_CLOSED"}},
	{name: "5.1 closed by the peer's RST_STREAM: HEADERS", in: frames(open1, raw(frameReset, 0, 1, 0, 0, 0, 8), openEnd1), out: fatal(StreamClosed, ok1)},
	{name: "5.1 closed by the peer's RST_STREAM: WINDOW_UPDATE, RST_STREAM, PRIORITY", in: frames(open1, raw(frameReset, 0, 1, 0, 0, 0, 8), raw(frameWindowUpdate, 0, 1, 0, 0, 0, 1), raw(frameReset, 0, 1, 0, 0, 0, 8), raw(framePriority, 0, 1, 0, 0, 0, 0, 1)), out: []string{ok1}},
	{name: "5.1 closed by us: what was under way is ignored", in: frames(open1, raw(frameWindowUpdate, 0, 1, 0, 0, 0, 0), raw(frameData, 0, 1, 'x'), raw(frameWindowUpdate, 0, 1, 0, 0, 0, 1), raw(frameHeaders, endHeaders|flagEndStream, 1, list("x-t", "1")...)), out: []string{ok1, "RST 1 PROTOCOL_ERROR"}},
	{name: "5.1.1 even stream id", in: frames(raw(frameHeaders, endHeaders, 2, connect()...)), out: fatal(ProtocolError)},
	{name: "5.1.1 smaller stream id", in: frames(raw(frameHeaders, endHeaders, 5, connect()...), raw(frameHeaders, endHeaders, 3, connect()...)), out: fatal(ProtocolError, "HEADERS 5 200")},
	{name: "5.5 unknown frame of the largest size", in: frames(raw(0x21, 0, 5, make([]byte, DefaultMaxFrameSize)...), open1), out: []string{ok1}},

	{name: "6.1 DATA on stream 0", in: frames(raw(frameData, 0, 0, 'x')), out: fatal(ProtocolError)},
	{name: "6.1 DATA: padding as long as the frame", in: frames(open1, raw(frameData, flagPadded, 1, 4, 'x', 0, 0)), out: fatal(ProtocolError, ok1)},
	{name: "6.1 DATA: padded without pad length", in: frames(open1, raw(frameData, flagPadded, 1)), out: fatal(FrameSizeError, ok1)},
	{name: "6.1 DATA: padding", in: frames(open1, raw(frameData, flagPadded|flagEndStream, 1, 3, 'x', 0, 0, 0)), out: []string{ok1}, log: []string{"request 1 web:80", "end 1"}},
	{name: "6.1 DATA: padding alone", in: frames(open1, raw(frameData, flagPadded, 1, 2, 0, 0)), out: []string{ok1}},
	{name: "6.2 HEADERS on stream 0", in: frames(raw(frameHeaders, endHeaders, 0, connect()...)), out: fatal(ProtocolError)},
	{name: "6.2 HEADERS: padding exceeds the frame", in: frames(raw(frameHeaders, endHeaders|flagPadded, 1, append([]byte{200}, connect()...)...)), out: fatal(ProtocolError)},
	{name: "6.2 HEADERS: padding and priority", in: frames(raw(frameHeaders, endHeaders|flagPadded|flagPriority, 1, cat([]byte{2, 0, 0, 0, 0, 9}, connect(), []byte{0, 0})...)), out: []string{ok1}},
	{name: "6.2 HEADERS: shorter than its priority", in: frames(raw(frameHeaders, endHeaders|flagPriority, 1, 0, 0)), out: fatal(FrameSizeError)},
	{name: "6.3 PRIORITY on stream 0", in: frames(raw(framePriority, 0, 0, 0, 0, 0, 0, 1)), out: fatal(ProtocolError)},
	{name: "6.3 PRIORITY of a wrong length", in: frames(raw(framePriority, 0, 1, 0, 0, 0, 0)), out: fatal(FrameSizeError)},
	{name: "6.4 RST_STREAM on stream 0", in: frames(raw(frameReset, 0, 0, 0, 0, 0, 8)), out: fatal(ProtocolError)},
	{name: "6.4 RST_STREAM of a wrong length", in: frames(open1, raw(frameReset, 0, 1, 0, 0, 0)), out: fatal(FrameSizeError, ok1)},
	{name: "6.4 RST_STREAM keeps its code", in: frames(open1, raw(frameReset, 0, 1, 0, 0, 0, 0xa)), out: []string{ok1}, log: []string{"request 1 web:80", "reset 1 CONNECT_ERROR remote", "release 1"}},
	{name: "6.4 RST_STREAM with an unknown code", in: frames(open1, raw(frameReset, 0, 1, 0, 0, 1, 0)), out: []string{ok1}, log: []string{"request 1 web:80", "reset 1 error code 0x100 remote", "release 1"}},
	{name: "6.5 SETTINGS acknowledgement with a payload", in: frames(raw(frameSettings, flagAck, 0, 0, 4, 0, 0, 0, 0)), out: fatal(FrameSizeError)},
	{name: "6.5 SETTINGS on a stream", in: frames(raw(frameSettings, 0, 1)), out: fatal(ProtocolError)},
	{name: "6.5 SETTINGS of a wrong length", in: frames(raw(frameSettings, 0, 0, 1, 2, 3)), out: fatal(FrameSizeError)},
	{name: "6.5.2 ENABLE_PUSH", in: frames(settingsFrame(settingEnablePush, 2)), out: fatal(ProtocolError)},
	{name: "6.5.2 INITIAL_WINDOW_SIZE", in: frames(settingsFrame(settingInitialWindowSize, 1<<31)), out: fatal(FlowControlError)},
	{name: "6.5.2 MAX_FRAME_SIZE too small", in: frames(settingsFrame(settingMaxFrameSize, 1<<14-1)), out: fatal(ProtocolError)},
	{name: "6.5.2 MAX_FRAME_SIZE too large", in: frames(settingsFrame(settingMaxFrameSize, 1<<24)), out: fatal(ProtocolError)},
	{name: "6.5.2 unknown setting", in: frames(settingsFrame(0xff00, 1)), out: []string{"ACK"}},
	{name: "6.5.3 SETTINGS are acknowledged", in: frames(settingsFrame(settingMaxFrameSize, 1<<20), raw(frameSettings, 0, 0)), out: []string{"ACK", "ACK"}},
	{name: "6.6 PUSH_PROMISE", in: frames(open1, raw(framePushPromise, endHeaders, 1, append(be32(2), connect()...)...)), out: fatal(ProtocolError, ok1)},
	{name: "6.7 PING is answered", in: frames(raw(framePing, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8)), out: []string{"PONG"}},
	{name: "6.7 answer to a PING is not answered", in: frames(raw(framePing, flagAck, 0, 0, 0, 0, 0, 0, 0, 0, 7)), log: []string{"pong 7"}},
	{name: "6.7 PING on a stream", in: frames(raw(framePing, 0, 1, make([]byte, 8)...)), out: fatal(ProtocolError)},
	{name: "6.7 PING of a wrong length", in: frames(raw(framePing, 0, 0, 1, 2, 3)), out: fatal(FrameSizeError)},
	{name: "6.8 GOAWAY on a stream", in: frames(raw(frameGoAway, 0, 1, make([]byte, 8)...)), out: fatal(ProtocolError)},
	{name: "6.8 GOAWAY of a wrong length", in: frames(raw(frameGoAway, 0, 0, 0, 0, 0, 0)), out: fatal(FrameSizeError)},
	{name: "6.8 GOAWAY with long debug data", in: frames(raw(frameGoAway, 0, 0, cat(make([]byte, 8), bytes.Repeat([]byte("x"), 1000))...), open1), out: []string{"GOAWAY 2147483647 NO_ERROR", "PING", ok1}},
	{name: "6.9 WINDOW_UPDATE of 0 on the connection", in: frames(raw(frameWindowUpdate, 0, 0, 0, 0, 0, 0)), out: fatal(ProtocolError)},
	{name: "6.9 WINDOW_UPDATE of 0 on a stream", in: frames(open1, raw(frameWindowUpdate, 0, 1, 0, 0, 0, 0)), out: []string{ok1, "RST 1 PROTOCOL_ERROR"}},
	{name: "6.9 WINDOW_UPDATE of a wrong length", in: frames(raw(frameWindowUpdate, 0, 0, 0, 0, 1)), out: fatal(FrameSizeError)},
	{name: "6.9.1 connection window overflows", in: frames(raw(frameWindowUpdate, 0, 0, be32(maxWindow)...)), out: fatal(FlowControlError)},
	{name: "6.9.1 stream window overflows", in: frames(open1, raw(frameWindowUpdate, 0, 1, be32(maxWindow)...)), out: []string{ok1, "RST 1 FLOW_CONTROL_ERROR"}},
	{name: "6.9.2 initial window makes a stream's overflow", in: frames(open1, raw(frameWindowUpdate, 0, 1, be32(maxWindow-minWindow)...), settingsFrame(settingInitialWindowSize, minWindow+1)), out: fatal(FlowControlError, ok1, "ACK")},
	{name: "6.10 CONTINUATION after END_HEADERS", in: frames(open1, raw(frameContinuation, endHeaders, 1, list("a", "b")...)), out: fatal(ProtocolError, ok1)},
	{name: "6.10 CONTINUATION on stream 0", in: frames(raw(frameContinuation, endHeaders, 0)), out: fatal(ProtocolError)},

	{name: "8.1 trailers end the stream", in: frames(open1, raw(frameHeaders, endHeaders|flagEndStream, 1, list("x-t", "1")...)), out: []string{ok1}, log: []string{"request 1 web:80", "end 1"}},
	{name: "8.1 trailers without END_STREAM", in: frames(open1, raw(frameHeaders, endHeaders, 1, list("x-t", "1")...)), out: []string{ok1, "RST 1 PROTOCOL_ERROR"}},
	{name: "8.1 trailers with a pseudo-field", in: frames(open1, raw(frameHeaders, endHeaders|flagEndStream, 1, list(":method", "CONNECT")...)), out: []string{ok1, "RST 1 PROTOCOL_ERROR"}},
	{name: "8.2.1 upper case", in: malformed(connect("X-Up", "1")), out: []string{"RST 1 PROTOCOL_ERROR"}},
	{name: "8.2.1 space in a name", in: malformed(connect("x up", "1")), out: []string{"RST 1 PROTOCOL_ERROR"}},
	{name: "8.2.1 empty name", in: malformed(connect("", "1")), out: []string{"RST 1 PROTOCOL_ERROR"}},
	{name: "8.2.1 line feed in a value", in: malformed(connect("x", "a\nb")), out: []string{"RST 1 PROTOCOL_ERROR"}},
	{name: "8.2.1 space around a value", in: malformed(connect("x", " a")), out: []string{"RST 1 PROTOCOL_ERROR"}},
	{name: "8.2.2 connection", in: malformed(connect("connection", "close")), out: []string{"RST 1 PROTOCOL_ERROR"}},
	{name: "8.2.2 te", in: malformed(connect("te", "gzip")), out: []string{"RST 1 PROTOCOL_ERROR"}},
	{name: "8.2.2 te: trailers", in: malformed(connect("te", "trailers")), out: []string{ok1}},
	{name: "8.3 unknown pseudo-field", in: malformed(connect(":foo", "x")), out: []string{"RST 1 PROTOCOL_ERROR"}},
	{name: "8.3 response pseudo-field", in: malformed(connect(":status", "200")), out: []string{"RST 1 PROTOCOL_ERROR"}},
	{name: "8.3 pseudo-field after a regular one", in: malformed(list(":method", "CONNECT", "a", "b", ":authority", "x:1")), out: []string{"RST 1 PROTOCOL_ERROR"}},
	{name: "8.3 pseudo-field twice", in: malformed(connect(":authority", "x:1")), out: []string{"RST 1 PROTOCOL_ERROR"}},
	{name: "8.3.1 request without :path", in: malformed(list(":method", "GET", ":scheme", "https")), out: []string{"RST 1 PROTOCOL_ERROR"}},
	{name: "8.3.1 request with an empty :path", in: malformed(list(":method", "GET", ":scheme", "https", ":path", "")), out: []string{"RST 1 PROTOCOL_ERROR"}},
	{name: "8.3.1 no pseudo-field at all", in: malformed(list("a", "b")), out: []string{"RST 1 PROTOCOL_ERROR"}},
	{name: "8.5 CONNECT with :path", in: malformed(connect(":path", "/", ":scheme", "https")), out: []string{"RST 1 PROTOCOL_ERROR"}},
	{name: "8.5 CONNECT without :authority", in: malformed(list(":method", "CONNECT")), out: []string{"RST 1 PROTOCOL_ERROR"}},
	{name: "RFC 8441 extended CONNECT was not offered", in: malformed(connect(":protocol", "websocket", ":scheme", "https", ":path", "/")), out: []string{"RST 1 PROTOCOL_ERROR"}},
	{name: "HBONE: not CONNECT", in: malformed(list(":method", "GET", ":scheme", "https", ":path", "/", ":authority", "x")), out: []string{"HEADERS 1 400 END", "RST 1 NO_ERROR"}, log: []string{}},
	{name: "HBONE: not CONNECT, complete", in: frames(raw(frameHeaders, endHeaders|flagEndStream, 1, list(":method", "GET", ":scheme", "https", ":path", "/")...)), out: []string{"HEADERS 1 400 END"}},
	{name: "fields are handed over", in: malformed(connect("baggage", "k=v", "forwarded", "for=x")), out: []string{ok1}, log: []string{"request 1 web:80 baggage=k=v forwarded=for=x"}},
}

func malformed(block []byte) [][]byte { return frames(raw(frameHeaders, endHeaders, 1, block...)) }

var clientRules = []ruleCase{
	{name: "3.4 first frame is not SETTINGS", noInit: true, in: frames(raw(framePing, 0, 0, make([]byte, 8)...)), out: fatal(ProtocolError)},
	{name: "tunnel", in: frames(resp1(0, ":status", "200", "baggage", "x"), raw(frameData, 0, 1, 'h', 'i'), raw(frameData, flagEndStream, 1)), log: []string{"response 1 200 baggage=x", "end 1"}},
	{name: "8.1 1xx are skipped", in: frames(resp1(0, ":status", "103"), resp1(0, ":status", "200")), log: []string{"response 1 200"}},
	{name: "8.1 1xx with END_STREAM", in: frames(resp1(flagEndStream, ":status", "103")), out: []string{"RST 1 PROTOCOL_ERROR"}},
	{name: "8.6 101", in: frames(resp1(0, ":status", "101")), out: []string{"RST 1 PROTOCOL_ERROR"}},
	{name: "8.3.2 no :status", in: frames(resp1(0, "a", "b")), out: []string{"RST 1 PROTOCOL_ERROR"}},
	{name: "8.3.2 :status is no number", in: frames(resp1(0, ":status", "2x0")), out: []string{"RST 1 PROTOCOL_ERROR"}},
	{name: "8.3 request pseudo-field", in: frames(resp1(0, ":status", "200", ":path", "/")), out: []string{"RST 1 PROTOCOL_ERROR"}},
	{name: "8.1 DATA before HEADERS", in: frames(raw(frameData, 0, 1, 'x')), out: []string{"RST 1 PROTOCOL_ERROR"}, log: []string{"reset 1 PROTOCOL_ERROR local", "release 1"}},
	{name: "8.1 trailers", in: frames(resp1(0, ":status", "200"), resp1(flagEndStream, "x", "y")), log: []string{"response 1 200", "end 1"}},
	{name: "refused", in: frames(resp1(flagEndStream, ":status", "503")), out: []string{"RST 1 CANCEL"}, log: []string{"response 1 503", "end 1", "release 1"}},
	{name: "refused, and told to stop", in: frames(resp1(flagEndStream, ":status", "401"), raw(frameReset, 0, 1, 0, 0, 0, 0)), out: []string{"RST 1 CANCEL"}, log: []string{"response 1 401", "end 1", "release 1"}},
	{name: "refused with a body", in: frames(resp1(0, ":status", "503"), raw(frameData, flagEndStream, 1, 'x')), out: []string{"RST 1 CANCEL"}, log: []string{"response 1 503", "end 1", "release 1"}},
	{name: "8.7 REFUSED_STREAM may be tried elsewhere", in: frames(raw(frameReset, 0, 1, 0, 0, 0, 7)), log: []string{"reset 1 REFUSED_STREAM remote unprocessed", "release 1"}},
	{name: "8.4 PUSH_PROMISE", in: frames(raw(framePushPromise, endHeaders, 1, append(be32(2), connect()...)...)), out: fatal(ProtocolError)},
	{name: "6.5.2 server enables push", in: frames(settingsFrame(settingEnablePush, 1)), out: fatal(ProtocolError)},
	{name: "5.1 HEADERS on an even stream", in: frames(raw(frameHeaders, endHeaders, 2, list(":status", "200")...)), out: fatal(ProtocolError)},
	{name: "5.1 HEADERS on a stream never opened", in: frames(raw(frameHeaders, endHeaders, 3, list(":status", "200")...)), out: fatal(ProtocolError)},
	{name: "5.1 DATA on a stream never opened", in: frames(raw(frameData, 0, 3, 'x')), out: fatal(ProtocolError)},
	{name: "6.8 GOAWAY spares what the server will process", in: frames(raw(frameGoAway, 0, 0, cat(be32(1), be32(0), []byte("bye"))...), resp1(0, ":status", "200")), log: []string{"goaway 1 NO_ERROR bye", "response 1 200"}},
	{name: "6.8 GOAWAY below the stream", in: frames(raw(frameGoAway, 0, 0, cat(be32(0), be32(11))...), resp1(0, ":status", "200"), raw(frameData, 0, 1, 'x')), log: []string{"reset 1 REFUSED_STREAM remote unprocessed", "release 1", "goaway 0 ENHANCE_YOUR_CALM ", "drained"}},
	{name: "a full table of the peer is allowed until it has seen our SETTINGS", in: frames(raw(frameHeaders, endHeaders, 1, cat([]byte{0x3f, 0xe1, 0x1f}, list(":status", "200"))...)), log: []string{"response 1 200"}},
}

func resp1(fl flags, fields ...string) []byte {
	return raw(frameHeaders, endHeaders|fl, 1, list(fields...)...)
}

func TestServerRules(t *testing.T) {
	for _, tc := range serverRules {
		t.Run(tc.name, func(t *testing.T) {
			tc.run(t, func() *owner { return newTestServer(nil) }, cat([]byte(Preface), raw(frameSettings, 0, 0), raw(frameSettings, flagAck, 0)))
		})
	}
}

func TestClientRules(t *testing.T) {
	block, err := ConnectBlock("web:80")
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range clientRules {
		t.Run(tc.name, func(t *testing.T) {
			tc.run(t, func() *owner {
				o := newTestClient(nil)
				if _, err := o.conn.Open(o, block, nil); err != nil {
					t.Fatal(err)
				}
				return o
			}, cat(raw(frameSettings, 0, 0), raw(frameSettings, flagAck, 0)))
		})
	}
}

func (tc *ruleCase) run(t *testing.T, mk func() *owner, init []byte) {
	in := cat(tc.in...)
	seed := rand.New(rand.NewPCG(1, uint64(len(in))))
	splits := [][][]byte{{in}, tc.in, split(seed, in), split(seed, in)}
	if len(in) < 1<<16 {
		splits = append(splits, each(in))
	}
	for i, parts := range splits {
		o := mk()
		if !tc.noInit {
			if err := o.conn.Feed(init); err != nil {
				t.Fatal(err)
			}
		}
		o.take()
		o.takeLog()
		for _, p := range parts {
			// A copy that is spoiled afterwards: nothing may be kept of it.
			p = bytes.Clone(p)
			_ = o.conn.Feed(p)
			for j := range p {
				p[j] = 0xfe
			}
		}
		out := describe(t, o.take())
		if diff := cmp.Diff(tc.out, out, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("split %d: output (-want +got):\n%s", i, diff)
		}
		if diff := cmp.Diff(tc.log, o.takeLog(), cmpopts.EquateEmpty()); tc.log != nil && diff != "" {
			t.Errorf("split %d: told (-want +got):\n%s", i, diff)
		}
		o.checkWindows(t, 0)
	}
}
