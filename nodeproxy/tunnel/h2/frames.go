// SPDX-License-Identifier: Apache-2.0

package h2

import "encoding/binary"

// Preface is what a client sends first, RFC 9113 section 3.4.
const Preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

const (
	frameHeaderLen = 9
	minMaxFrame    = 1 << 14
	maxMaxFrame    = 1<<24 - 1
	minWindow      = 1<<16 - 1
	maxWindow      = 1<<31 - 1
	maxStreamID    = 1<<31 - 1
)

type frameType uint8

// Frame types of RFC 9113, section 6.
const (
	frameData frameType = iota
	frameHeaders
	framePriority
	frameReset
	frameSettings
	framePushPromise
	framePing
	frameGoAway
	frameWindowUpdate
	frameContinuation
)

type flags uint8

const (
	flagEndStream  flags = 0x1
	flagAck        flags = 0x1
	flagEndHeaders flags = 0x4
	flagPadded     flags = 0x8
	flagPriority   flags = 0x20
)

func (f flags) has(x flags) bool { return f&x != 0 }

// frame is the header of a frame, RFC 9113 section 4.1.
type frame struct {
	length uint32
	stream uint32
	kind   frameType
	flags  flags
}

func parseFrame(b []byte) frame {
	_ = b[frameHeaderLen-1]
	return frame{
		length: uint32(b[0])<<16 | uint32(b[1])<<8 | uint32(b[2]),
		kind:   frameType(b[3]),
		flags:  flags(b[4]),
		stream: binary.BigEndian.Uint32(b[5:]) & maxStreamID, // the reserved bit is ignored
	}
}

func putFrame(b []byte, kind frameType, fl flags, stream uint32, length int) {
	_ = b[frameHeaderLen-1]
	b[0], b[1], b[2] = byte(length>>16), byte(length>>8), byte(length)
	b[3], b[4] = byte(kind), byte(fl)
	binary.BigEndian.PutUint32(b[5:], stream)
}
