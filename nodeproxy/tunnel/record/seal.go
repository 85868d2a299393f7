// SPDX-License-Identifier: Apache-2.0

package record

// keyUpdate is what this end has to say about keys.
type keyUpdate struct {
	owed  bool // one is to be sent before the next payload
	asks  bool // and asks for the peer's
	asked bool // the peer's is awaited
}

// request asks the peer, once per generation, for new keys.
func (u *keyUpdate) request() {
	if !u.asked {
		u.owed, u.asks, u.asked = true, true, true
	}
}

// Seal appends a record to dst. p is its payload, of MaxPayload bytes at most, and
// one byte more, which is the layer's: so the AEAD can read what it seals where
// it is. p and the room behind dst must not overlap.
func (l *Layer) Seal(dst, p []byte) ([]byte, error) {
	dst, err := l.Answer(dst)
	if err != nil {
		return dst, err
	}
	p[len(p)-1] = typeApplication
	return l.seal(dst, p), nil
}

// Owes reports whether Answer has anything to send.
func (l *Layer) Owes() bool { return l.update.owed }

// Answer appends what the layer has to send for itself: a KeyUpdate, when the
// peer has asked for it or keys have protected enough. However often the peer
// asks, there is one answer until it is called (RFC 8446 section 4.6.3).
func (l *Layer) Answer(dst []byte) ([]byte, error) {
	if !l.update.owed && l.out.seq < l.limit || l.closed {
		return dst, nil
	}
	request := byte(0)
	if l.update.asks {
		request = 1
	}
	l.update.owed, l.update.asks = false, false
	dst = l.seal(dst, []byte{keyUpdateMessage, 0, 0, 1, request, typeHandshake})
	return dst, l.out.update()
}

// Close appends the last record of this direction: close_notify, or the alert for
// the *Error that Open has returned. A second call appends nothing.
func (l *Layer) Close(dst []byte) []byte {
	if l.closed {
		return dst
	}
	l.closed = true
	const warning, fatal = 1, 2
	level, code := byte(warning), closeNotify
	if l.fatal != nil {
		level, code = fatal, l.fatal.Alert
	}
	return l.seal(dst, []byte{level, byte(code), typeAlert})
}

// seal appends a record with a TLSInnerPlaintext, RFC 8446 section 5.2.
func (l *Layer) seal(dst, inner []byte) []byte {
	at, n := len(dst), len(inner)+tagLen
	dst = append(dst, typeApplication, 3, 3, byte(n>>8), byte(n))
	return l.out.aead.Seal(dst, l.out.next(), inner, dst[at:])
}
