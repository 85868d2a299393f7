// SPDX-License-Identifier: Apache-2.0

package h2

import (
	"errors"
	"fmt"
)

// Errors of Open and of header blocks.
var (
	// ErrStreamLimit: the peer's SETTINGS_MAX_CONCURRENT_STREAMS is reached.
	ErrStreamLimit = errors.New("stream limit of the peer reached")
	// ErrDraining: a GOAWAY was sent or received; open the stream elsewhere.
	ErrDraining = errors.New("connection is draining")
	// ErrClosed: the connection failed or was closed.
	ErrClosed = errors.New("connection is closed")
	// ErrBacklog: too much output waits to be written; open the stream elsewhere.
	ErrBacklog = errors.New("output backlog is full")
	// ErrHeaderList: the fields exceed what the peer accepts.
	ErrHeaderList = errors.New("header list exceeds the peer's limit")
	// ErrField: a field's name or value must not be sent.
	ErrField = errors.New("invalid header field")
)

// ErrCode is an error code of RFC 9113, section 7.
type ErrCode uint32

// Error codes of RFC 9113, section 7.
const (
	NoError            ErrCode = 0x0
	ProtocolError      ErrCode = 0x1
	InternalError      ErrCode = 0x2
	FlowControlError   ErrCode = 0x3
	SettingsTimeout    ErrCode = 0x4
	StreamClosed       ErrCode = 0x5
	FrameSizeError     ErrCode = 0x6
	RefusedStream      ErrCode = 0x7
	Cancel             ErrCode = 0x8
	CompressionError   ErrCode = 0x9
	ConnectError       ErrCode = 0xa // the TCP connection behind a CONNECT was reset
	EnhanceYourCalm    ErrCode = 0xb
	InadequateSecurity ErrCode = 0xc
	HTTP11Required     ErrCode = 0xd
)

var codeNames = [...]string{
	"NO_ERROR", "PROTOCOL_ERROR", "INTERNAL_ERROR", "FLOW_CONTROL_ERROR", "SETTINGS_TIMEOUT",
	"STREAM_CLOSED", "FRAME_SIZE_ERROR", "REFUSED_STREAM", "CANCEL", "COMPRESSION_ERROR",
	"CONNECT_ERROR", "ENHANCE_YOUR_CALM", "INADEQUATE_SECURITY", "HTTP_1_1_REQUIRED",
}

func (c ErrCode) String() string {
	if int(c) < len(codeNames) {
		return codeNames[c]
	}
	return fmt.Sprintf("error code %#x", uint32(c))
}

// ConnError ends a connection. Feed returns it after the GOAWAY that carries Code
// has been queued: the owner writes the output once more and closes.
type ConnError struct {
	Code   ErrCode
	Reason string // constant text, sent as the GOAWAY's debug data
}

func (e *ConnError) Error() string { return "http2: " + e.Code.String() + ": " + e.Reason }

// StreamError says how a stream ended that did not end well.
type StreamError struct {
	Code ErrCode
	// Remote: the peer sent Code. Otherwise it stands for what happened here: the
	// peer violated the protocol on this stream, or the connection went away.
	Remote bool
	// Unprocessed: the peer has declared that nothing of this stream reached the
	// application (REFUSED_STREAM, or beyond the last id of a GOAWAY, RFC 9113
	// section 8.7), or it was never asked to. Opening it elsewhere is safe.
	Unprocessed bool
}

func (e StreamError) Error() string {
	by := "local"
	if e.Remote {
		by = "remote"
	}
	return "stream reset: " + e.Code.String() + " (" + by + ")"
}

func connError(code ErrCode, reason string) error { return &ConnError{Code: code, Reason: reason} }
