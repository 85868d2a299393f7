// SPDX-License-Identifier: Apache-2.0

package tunnel

import (
	"fmt"
	"time"

	"github.com/meshproxy/meshproxy/nodeproxy/telemetry/reason"
)

// The pauses after handshakes that fail: the first one, twice as long each
// time, and the longest.
const (
	firstPause   = 100 * time.Millisecond
	longestPause = 5 * time.Second
)

// backoff keeps a key whose handshakes fail from making one for each connection
// that is tried: asymmetric cryptography at both ends, for nothing. Meanwhile
// opens fail at once, with the reason of the handshake. What fails before TLS
// costs little and has no pause: a peer that comes back is reached at once.
type backoff struct {
	pause time.Duration
	until time.Duration // by the loop's clock
	err   error
}

// failed takes note of a dial that came to nothing.
func (b *backoff) failed(err error, now time.Duration) {
	if !handshakeFailed(err) {
		*b = backoff{}
		return
	}
	b.pause = min(max(firstPause, 2*b.pause), longestPause)
	b.until, b.err = now+b.pause, err
}

// refuses returns why no dial is made now, or nil.
func (b *backoff) refuses(now time.Duration) error {
	if now >= b.until {
		return nil
	}
	return reason.Wrap(reason.Of(b.err), fmt.Errorf("%w (no further handshake for %v)", b.err, (b.until-now).Round(time.Millisecond)))
}

// remembers reports whether the next failure would still be one in a row.
func (b *backoff) remembers(now time.Duration) bool {
	return b.pause > 0 && now < b.until+longestPause
}

func handshakeFailed(err error) bool {
	switch reason.Of(err) {
	case reason.IdentityMismatch, reason.TLSExpired, reason.PeerUntrusted, reason.PeerMissing,
		reason.TLSHandshake, reason.HandshakeTimeout:
		return true
	}
	return false
}
