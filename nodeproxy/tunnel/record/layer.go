// SPDX-License-Identifier: Apache-2.0

package record

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
)

// MaxPayload is the most that one record carries, RFC 8446 section 5.1.
const MaxPayload = 1 << 14

// Overhead is what Seal adds to payload: header, content type, tag.
const Overhead = headerLen + 1 + tagLen

// MaxRecord is the longest record that a peer may send: it may pad up to
// MaxPayload, and an AEAD may add up to 255 bytes to payload and type.
const MaxRecord = headerLen + maxCiphertext

const (
	headerLen = 5
	tagLen    = 16 // of all AEADs of TLS 1.3
	// maxCiphertext: RFC 8446 section 5.2.
	maxCiphertext = MaxPayload + 256
)

// Content types, RFC 8446 section 5.1.
const (
	typeAlert       = 21
	typeHandshake   = 22
	typeApplication = 23
)

// Alerts, RFC 8446 section 6.
const (
	closeNotify       = tls.AlertError(0)
	unexpectedMessage = tls.AlertError(10)
	badRecordMAC      = tls.AlertError(20)
	recordOverflow    = tls.AlertError(22)
	illegalParameter  = tls.AlertError(47)
	decodeError       = tls.AlertError(50)
	protocolVersion   = tls.AlertError(70)
	userCanceled      = tls.AlertError(90)
)

// keyRecords is how many records one generation of keys protects: less than the
// 2^24.5 of full size that RFC 8446 section 5.5 allows AES-GCM.
const keyRecords = 1 << 24

// maxIdle is how many records and messages in a row may bring no payload, as in
// crypto/tls.
const maxIdle = 16

// Error says how the peer broke the protocol of records. Close tells it to the
// peer.
type Error struct {
	Alert tls.AlertError
	What  string
}

// Error implements error.
func (e *Error) Error() string { return "bad TLS record: " + e.What }

// errNotTLS13: handshakes that lead here negotiate nothing else.
var errNotTLS13 = errors.New("take over TLS: version is not 1.3")

// Layer protects the records of a connection, in both directions.
type Layer struct {
	in, out half
	client  bool
	limit   uint64 // keyRecords

	update keyUpdate
	fatal  *Error // nothing can be opened any more
	closed bool   // the last alert is sealed
	idle   uint8  // records and messages without payload, in a row
	msg    message
}

// New takes a connection over whose handshake is done. The secrets are the
// layer's from now on.
func New(state *tls.ConnectionState, secrets *Secrets, client bool) (*Layer, error) {
	defer secrets.Erase()
	if !state.HandshakeComplete || state.Version != tls.VersionTLS13 {
		return nil, errNotTLS13
	}
	s := suites[state.CipherSuite]
	switch {
	case s == nil:
		return nil, fmt.Errorf("take over TLS: cipher suite %s is not known", tls.CipherSuiteName(state.CipherSuite))
	case len(secrets.client) != s.hashLen || len(secrets.server) != s.hashLen:
		return nil, fmt.Errorf("take over TLS: %w", errKeyLog)
	}
	l := &Layer{client: client, limit: keyRecords}
	l.in.suite, l.out.suite = s, s
	read, write := secrets.client, secrets.server
	if client {
		read, write = write, read
	}
	if err := errors.Join(l.in.use(bytes.Clone(read)), l.out.use(bytes.Clone(write))); err != nil {
		return nil, fmt.Errorf("take over TLS: %w", err)
	}
	return l, nil
}
