// SPDX-License-Identifier: Apache-2.0

package record

import "fmt"

// Handshake messages that may come after a handshake, RFC 8446 section 4.
const (
	newSessionTicket = 4
	keyUpdateMessage = 24
)

// maxMessage bounds a ticket, as in crypto/tls.
const maxMessage = 1 << 16

// message is where the layer stands in the stream of handshake messages, which
// may be cut into records anywhere.
type message struct {
	head [4]byte // type, length
	have uint8   // bytes of head
	left uint32  // of the body
}

func (m *message) begun() bool { return m.have > 0 }

// handshake takes what a record holds of handshake messages. Tickets are
// skipped: nothing is resumed. No other message but KeyUpdate was agreed on.
func (l *Layer) handshake(p []byte) error {
	if len(p) == 0 {
		return l.fail(unexpectedMessage, "empty handshake record") // section 5.1
	}
	m := &l.msg
	for len(p) > 0 {
		if int(m.have) < len(m.head) {
			k := copy(m.head[m.have:], p)
			m.have, p = m.have+uint8(k), p[k:]
			if int(m.have) < len(m.head) {
				return nil
			}
			if err := l.beginMessage(); err != nil {
				return err
			}
			continue
		}
		k := min(int(m.left), len(p))
		body := p[:k]
		p, m.left = p[k:], m.left-uint32(k)
		if m.left > 0 {
			return nil
		}
		m.have = 0
		if m.head[0] == keyUpdateMessage {
			if err := l.keyUpdate(body[0], len(p) == 0); err != nil {
				return err
			}
		}
	}
	return nil
}

func (l *Layer) beginMessage() error {
	m := &l.msg
	m.left = uint32(m.head[1])<<16 | uint32(m.head[2])<<8 | uint32(m.head[3])
	switch {
	case m.head[0] == keyUpdateMessage && m.left == 1:
	case m.head[0] == keyUpdateMessage:
		return l.fail(decodeError, "KeyUpdate of a wrong length")
	case m.head[0] != newSessionTicket || !l.client:
		return l.fail(unexpectedMessage, fmt.Sprintf("handshake message of type %d", m.head[0]))
	case m.left == 0 || m.left > maxMessage:
		return l.fail(decodeError, "ticket of a wrong length")
	}
	return l.idled()
}

// keyUpdate takes a KeyUpdate, RFC 8446 section 4.6.3. It has to end its record
// (section 5.1): what follows is under other keys.
func (l *Layer) keyUpdate(request byte, last bool) error {
	switch {
	case !last:
		return l.fail(unexpectedMessage, "KeyUpdate before other messages")
	case request > 1:
		return l.fail(illegalParameter, "KeyUpdate of an unknown kind")
	case request == 1:
		l.update.owed = true
	}
	l.update.asked = false
	return l.in.update()
}
