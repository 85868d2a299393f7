// SPDX-License-Identifier: Apache-2.0

package tunnel

import (
	"io"
	"net"
	"time"
)

// memory is the net.Conn beneath a tls.Conn: the socket during the handshake,
// two buffers afterwards, in a line.
type memory struct {
	net.Conn      // nil once the loop has taken over
	heard    bool // anything came during the handshake

	in  []byte // ciphertext that was received and crypto/tls has not taken yet
	eof bool   // nothing follows in

	outbox
}

// errNoData is what crypto/tls gets when in is empty. It must be temporary:
// any other error would stick to the tls.Conn.
var errNoData net.Error = noData{}

type noData struct{}

func (noData) Error() string   { return "no data yet" }
func (noData) Timeout() bool   { return true }
func (noData) Temporary() bool { return true }

func (m *memory) Read(p []byte) (int, error) {
	if m.Conn != nil {
		n, err := m.Conn.Read(p)
		m.heard = m.heard || n > 0
		return n, err
	}
	if len(m.in) == 0 {
		if m.eof {
			return 0, io.EOF
		}
		return 0, errNoData
	}
	n := copy(p, m.in)
	m.in = m.in[n:]
	return n, nil
}

func (m *memory) Write(p []byte) (int, error) {
	if m.Conn != nil {
		return m.Conn.Write(p)
	}
	m.sealed = append(m.open(), p...)
	return len(p), nil
}

// The deadlines matter during the handshake only; tls.Conn sets them around
// its closing alert.

func (m *memory) SetDeadline(t time.Time) error {
	if m.Conn != nil {
		return m.Conn.SetDeadline(t)
	}
	return nil
}

func (m *memory) SetReadDeadline(t time.Time) error {
	if m.Conn != nil {
		return m.Conn.SetReadDeadline(t)
	}
	return nil
}

func (m *memory) SetWriteDeadline(t time.Time) error {
	if m.Conn != nil {
		return m.Conn.SetWriteDeadline(t)
	}
	return nil
}

func (m *memory) Close() error {
	if m.Conn != nil {
		return m.Conn.Close()
	}
	return nil
}

// LocalAddr and RemoteAddr are nil after the handshake; crypto/tls does not ask.
func (m *memory) LocalAddr() net.Addr {
	if m.Conn != nil {
		return m.Conn.LocalAddr()
	}
	return nil
}

func (m *memory) RemoteAddr() net.Addr {
	if m.Conn != nil {
		return m.Conn.RemoteAddr()
	}
	return nil
}
