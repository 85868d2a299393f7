// SPDX-License-Identifier: Apache-2.0

package record

import (
	"bytes"
	"encoding/hex"
	"errors"
)

// Labels of the lines that are kept, as in the SSLKEYLOGFILE format (RFC 9850).
const (
	labelClient = "CLIENT_TRAFFIC_SECRET_0"
	labelServer = "SERVER_TRAFFIC_SECRET_0"
)

// randomLen is the length of the client's random in a line, in hexadecimal.
const randomLen = 64

// errKeyLog says no more than this: the line is secret.
var errKeyLog = errors.New("key log of TLS is not as expected")

// Secrets takes the application traffic secrets of one connection out of what
// crypto/tls writes to its Config.KeyLogWriter.
type Secrets struct{ client, server []byte }

// Write implements io.Writer. An error ends the handshake. Unlike other writers
// it erases p, a line that crypto/tls makes for this call and forgets.
func (s *Secrets) Write(p []byte) (int, error) {
	defer clear(p)
	label, rest, _ := bytes.Cut(p, []byte{' '})
	var to *[]byte
	switch string(label) {
	case labelClient:
		to = &s.client
	case labelServer:
		to = &s.server
	default:
		return len(p), nil // another stage's, or TLS 1.2's
	}
	random, value, _ := bytes.Cut(rest, []byte{' '})
	value, whole := bytes.CutSuffix(value, []byte{'\n'})
	if len(random) != randomLen || !whole || *to != nil {
		return 0, errKeyLog
	}
	secret := make([]byte, hex.DecodedLen(len(value)))
	if _, err := hex.Decode(secret, value); err != nil {
		return 0, errKeyLog // err would quote a character
	}
	*to = secret
	return len(p), nil
}

// Erase forgets the secrets.
func (s *Secrets) Erase() {
	clear(s.client)
	clear(s.server)
	s.client, s.server = nil, nil
}
