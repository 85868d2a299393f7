// SPDX-License-Identifier: Apache-2.0

package record

import (
	"encoding/binary"
	"io"
	"net"
)

// Steps is a connection that is read one record at a time, never beyond: what
// crypto/tls would read ahead of its handshake's end, nobody could take from it.
// It costs a second read(2) per record, of which a handshake has few.
type Steps struct {
	net.Conn
	head [headerLen]byte
	give []byte // of head, not given out yet
	left int    // of the record's body
}

// Read implements net.Conn.
func (s *Steps) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if s.Between() {
		// Something may have come of it already; a tls.Conn that gets an error
		// now is not used any further.
		if _, err := io.ReadFull(s.Conn, s.head[:]); err != nil {
			return 0, err
		}
		s.give, s.left = s.head[:], int(binary.BigEndian.Uint16(s.head[3:]))
	}
	if len(s.give) > 0 {
		n := copy(p, s.give)
		s.give = s.give[n:]
		return n, nil
	}
	n, err := s.Conn.Read(p[:min(len(p), s.left)])
	s.left -= n
	return n, err
}

// Between reports whether all that was read are whole records.
func (s *Steps) Between() bool { return len(s.give) == 0 && s.left == 0 }
