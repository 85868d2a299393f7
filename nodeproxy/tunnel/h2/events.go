// SPDX-License-Identifier: Apache-2.0

package h2

import "golang.org/x/net/http2/hpack"

// Events is how a connection talks to its owner.
type Events interface {
	// OnOutput says that there is output now where there was none: the owner puts
	// the connection on the list of those to write at the end of the turn.
	OnOutput()
	// OnFull says that a stream wants to send and the batch has no room. The owner
	// may call WriteTo before it returns; if it does not (the socket is blocked),
	// the stream waits for Sink.Writable.
	OnFull()
	// OnRequest hands a well-formed CONNECT to a server. It returns the stream's
	// sink, or nil after it has called s.Refuse or s.Reset. s.Accept or s.Refuse
	// may be called now or later. r is valid during the call only.
	OnRequest(s *Stream, r *Request) Sink
	// OnRelease is called once for each stream, after the sink's last callback, when
	// the stream no longer counts against the limits.
	OnRelease(s *Stream)
	// OnSettings is called when the peer's SETTINGS took effect; Conn.Room may have
	// changed.
	OnSettings()
	// OnGoAway reports the peer's GOAWAY. Streams that the peer will not process have
	// been reset with StreamError.Unprocessed by then. debug is valid during the call.
	OnGoAway(last uint32, code ErrCode, debug []byte)
	// OnPong reports the answer to Conn.Ping.
	OnPong(data uint64)
	// OnDrained is called once, when a connection that drains (either side sent
	// GOAWAY) has no streams left: the owner writes what is pending and closes.
	OnDrained()
}

// Sink is what a stream delivers to: the relay that owns the other end.
type Sink interface {
	// Response (client only) is the final answer to the CONNECT; 1xx are skipped.
	// Anything but 2xx means there is no tunnel; End follows. fields is valid during
	// the call only, its strings for ever.
	Response(s *Stream, status int, fields []hpack.HeaderField)
	// Data delivers payload. p is a part of the slice that was given to Feed, and is
	// neither kept nor written to by the Conn: it is valid as long as the owner
	// leaves that buffer alone, at least during the call. Every byte has to be given
	// back by s.Consumed, sooner or later, unless the stream is reset.
	Data(s *Stream, p []byte)
	// End says that the peer has finished sending: a half-close.
	End(s *Stream)
	// Reset ends the stream in both directions. Not called for the owner's own
	// s.Reset.
	Reset(s *Stream, err StreamError)
	// Writable says that a Reserve or Write that gave less than wanted may be tried
	// again.
	Writable(s *Stream)
}

// Request is a CONNECT as a server received it.
type Request struct {
	Authority string // host:port as sent, not parsed
	// Fields are the other fields in their order (baggage, forwarded, traceparent…).
	Fields []hpack.HeaderField
}

// Field returns the first value of the field with that lower-case name.
func (r *Request) Field(name string) string {
	for i := range r.Fields {
		if r.Fields[i].Name == name {
			return r.Fields[i].Value
		}
	}
	return ""
}
