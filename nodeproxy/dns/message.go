// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"bytes"
	"encoding/binary"
	"slices"

	miekg "github.com/miekg/dns"
)

// Offsets and bits of the header, RFC 1035 section 4.1.1.
const (
	headerSize = 12

	atFlags = 2
	atRcode = 3
	atCount = 4 // of questions, answers, authorities, additionals

	flagResponse  = 1 << 7 // of the byte at atFlags
	flagTruncated = 1 << 1
	maskOpcode    = 0x78
	maskRcode     = 0x0f // of the byte at atRcode
)

// query is a query that is well-formed as far as matters here.
type query struct {
	// via are the resolvers that know its name; nil: any.
	via *upstreams
	// raw is the message as it was received; it belongs to the listener's
	// buffer until clone.
	raw []byte
	// question is the part of raw that holds the question.
	question []byte
	// size is how long the answer may be, and stream says that it goes over
	// TCP.
	size   int
	stream bool
	// exists says that the mesh knows the name, so that only the record may
	// be missing.
	exists bool
}

func (q *query) clone() *query {
	c := *q
	c.raw = slices.Clone(q.raw)
	c.question = c.raw[headerSize : headerSize+len(q.question)]
	return &c
}

// questionOf returns the question of a message that claims to have one: the
// bytes from the end of the header on.
func questionOf(m []byte) ([]byte, bool) {
	for i := headerSize; i < len(m); {
		n := int(m[i])
		if n == 0 {
			// Type and class follow.
			end := i + 1 + 4
			if end > len(m) {
				return nil, false
			}
			return m[headerSize:end], true
		}
		// Nothing stands before the first name that it could point to.
		if n > 63 {
			return nil, false
		}
		i += 1 + n
	}
	return nil, false
}

// errorAnswer makes an answer that consists of header and question.
func errorAnswer(raw, question []byte, rcode int) []byte {
	m := make([]byte, headerSize, headerSize+len(question))
	copy(m, raw[:4])
	m[atFlags] |= flagResponse
	m[atFlags] &^= flagTruncated
	// Recursion available; the bits of DNSSEC stay as in the query.
	m[atRcode] = m[atRcode]&0x10 | 0x80 | byte(rcode&maskRcode)
	if len(question) > 0 {
		m[atCount+1] = 1
		m = append(m, question...)
	}
	return m
}

// sameQuestion compares ignoring case. Lengths of labels are below the
// letters, so that the whole question can be folded but for type and class.
func sameQuestion(a, b []byte) bool {
	if len(a) != len(b) || len(a) < 4 {
		return false
	}
	n := len(a) - 4
	for i := range n {
		if lower(a[i]) != lower(b[i]) {
			return false
		}
	}
	return bytes.Equal(a[n:], b[n:])
}

func lower(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		return c + 'a' - 'A'
	}
	return c
}

// accept checks that a resolver's answer belongs to the query that was sent
// with this id (RFC 5452 section 9.1), and puts back the client's own id and
// the client's spelling of the name.
func (q *query) accept(m []byte, id uint16) error {
	if len(m) < headerSize || binary.BigEndian.Uint16(m) != id ||
		m[atFlags]&flagResponse == 0 || m[atFlags]&maskOpcode != 0 {
		return errMismatch
	}
	switch binary.BigEndian.Uint16(m[atCount:]) {
	case 0:
		// Servers that can't read a query answer with a bare header.
		if m[atRcode]&maskRcode == miekg.RcodeSuccess || m[atRcode]&maskRcode == miekg.RcodeNameError {
			return errMismatch
		}
	case 1:
		question, ok := questionOf(m)
		if !ok || !sameQuestion(question, q.question) {
			return errMismatch
		}
		copy(question, q.question)
	default:
		return errMismatch
	}
	copy(m, q.raw[:2])
	return nil
}

// fit makes a resolver's answer one for the client.
func (q *query) fit(m []byte) []byte {
	if q.exists && m[atRcode]&maskRcode == miekg.RcodeNameError {
		// The resolver doesn't know that the mesh has other records.
		m[atRcode] &^= maskRcode
	}
	if len(m) <= q.size {
		return m
	}
	var msg miekg.Msg
	if msg.Unpack(m) == nil {
		msg.Truncate(q.size)
		if short, err := msg.Pack(); err == nil && len(short) <= q.size {
			return short
		}
	}
	// A signed or an odd message: nothing of it can be left out.
	short := errorAnswer(m, q.question, int(m[atRcode]))
	short[atFlags] |= flagTruncated
	return short
}
