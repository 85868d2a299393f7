// SPDX-License-Identifier: Apache-2.0

package record

import (
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
)

// Open opens the record that buf begins with, in place. n is its length, 0 when
// buf doesn't hold all of it; payload is part of buf, and empty when the record
// was for the layer itself. The error is io.EOF after close_notify, an *Error when
// the peer broke the protocol, and a tls.AlertError is in its chain when the peer
// sent an alert. No record may be opened after it.
func (l *Layer) Open(buf []byte) (payload []byte, n int, err error) {
	if l.fatal != nil {
		return nil, 0, l.fatal
	}
	if len(buf) < headerLen {
		return nil, 0, nil
	}
	size := int(binary.BigEndian.Uint16(buf[3:]))
	switch {
	case buf[1] != 3 || buf[2] != 3:
		return nil, 0, l.fail(protocolVersion, "unknown version")
	case buf[0] != typeApplication:
		// An alert or a handshake in the clear, or a change_cipher_spec after
		// Finished (section 5).
		return nil, 0, l.fail(unexpectedMessage, "not protected")
	case size > maxCiphertext:
		return nil, 0, l.fail(recordOverflow, "too long")
	case len(buf)-headerLen < size:
		return nil, 0, nil
	}
	n = headerLen + size
	body := buf[headerLen:n]
	inner, err := l.in.aead.Open(body[:0], l.in.next(), body, buf[:headerLen])
	if err != nil {
		return nil, 0, l.fail(badRecordMAC, "not authentic")
	}
	payload, err = l.content(inner)
	return payload, n, err
}

// content takes a TLSInnerPlaintext, RFC 8446 section 5.2.
func (l *Layer) content(inner []byte) ([]byte, error) {
	if len(inner) > MaxPayload+1 {
		return nil, l.fail(recordOverflow, "too long")
	}
	end := len(inner) - 1
	for end >= 0 && inner[end] == 0 {
		end-- // padding, section 5.4
	}
	if end < 0 {
		return nil, l.fail(unexpectedMessage, "no content type")
	}
	kind, p := inner[end], inner[:end]
	if kind != typeHandshake && l.msg.begun() {
		return nil, l.fail(unexpectedMessage, "handshake message interrupted")
	}
	switch kind {
	case typeApplication:
		if len(p) == 0 {
			return nil, l.idled()
		}
		l.idle = 0
		if l.in.seq >= l.limit {
			l.update.request()
		}
		return p, nil
	case typeHandshake:
		return nil, l.handshake(p)
	case typeAlert:
		return nil, l.alert(p)
	default:
		return nil, l.fail(unexpectedMessage, fmt.Sprintf("content type %d", kind))
	}
}

// alert takes an alert. All but two are fatal whatever their level (RFC 8446
// section 6); some peers send user_canceled at any time.
func (l *Layer) alert(p []byte) error {
	if len(p) != 2 {
		return l.fail(decodeError, "alert of a wrong length")
	}
	switch code := tls.AlertError(p[1]); code {
	case closeNotify:
		return io.EOF
	case userCanceled:
		return l.idled()
	default:
		l.closed = true // nobody listens any more
		return fmt.Errorf("remote error: %w", code)
	}
}

// idled counts what brings no payload: it costs the peer little.
func (l *Layer) idled() error {
	if l.idle++; l.idle > maxIdle {
		return l.fail(unexpectedMessage, "too many without payload")
	}
	return nil
}

func (l *Layer) fail(a tls.AlertError, what string) error {
	l.fatal = &Error{Alert: a, What: what}
	return l.fatal
}
