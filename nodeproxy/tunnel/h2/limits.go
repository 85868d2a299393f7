// SPDX-License-Identifier: Apache-2.0

package h2

import "time"

// Limits bound what a peer can make this side do or keep. A peer that exceeds one
// loses its connection with ENHANCE_YOUR_CALM. Rates are token buckets: Burst at
// once, and so many per second in the long run.
type Limits struct {
	// Resets: streams that a client opens and resets before they were answered
	// (Rapid Reset, CVE-2023-44487). An application that gives up a connect does
	// that too, so the burst is that of nghttp2, and the rate what a busy node may see.
	Resets Rate
	// Provoked: stream errors that the peer made this side reset a stream for
	// (MadeYouReset, CVE-2025-8671), and frames on streams that are closed.
	Provoked Rate
	// Control: frames that cost work and carry nothing. SETTINGS and PING
	// (CVE-2019-9515, CVE-2019-9512), PRIORITY, unknown frames, DATA without
	// payload (CVE-2019-9518), and window updates beyond those that our own DATA
	// explains. Peers that probe bandwidth send a few PINGs per round trip.
	Control Rate
	// Continuations is the number of CONTINUATION frames of one header block
	// (CVE-2024-27316). The block's encoded size is bounded by the header list's.
	Continuations int
	// Backlog is the number of bytes of frames other than DATA that may wait while
	// the connection cannot be written.
	Backlog int
}

// Rate is a token bucket.
type Rate struct{ Burst, PerSecond int32 }

// Defaults of Limits.
var (
	DefaultResets   = Rate{Burst: 1000, PerSecond: 200}
	DefaultProvoked = Rate{Burst: 200, PerSecond: 20}
	DefaultControl  = Rate{Burst: 1000, PerSecond: 500}
)

// More defaults of Limits, and limits that are not for configuring.
const (
	DefaultContinuations = 8
	DefaultBacklog       = 256 << 10

	maxSettings    = 64   // parameters in one SETTINGS frame; six are defined
	maxDebugData   = 256  // bytes of a GOAWAY's debug data that are kept
	updateCredit   = 2    // window updates (stream, connection) that each DATA frame and stream of ours explains
	maxCredit      = 4096 // of which so many may be saved up
	initialStreams = 100  // streams a client opens before the server's SETTINGS, RFC 9113 section 6.5.2
	blockFactor    = 2    // an encoded header block, and a string in it, may be so many times the list's limit: so far a 431 will do
)

func (l *Limits) setDefaults() {
	l.Resets.setDefault(DefaultResets)
	l.Provoked.setDefault(DefaultProvoked)
	l.Control.setDefault(DefaultControl)
	if l.Continuations <= 0 {
		l.Continuations = DefaultContinuations
	}
	if l.Backlog <= 0 {
		l.Backlog = DefaultBacklog
	}
}

func (r *Rate) setDefault(d Rate) {
	if *r == (Rate{}) {
		*r = d
	}
}

// bucket is the state of a Rate. The zero value is full.
type bucket struct {
	used int32
	last int64 // ns, when used was brought up to date
}

// take takes a token and reports whether there was one. The clock is read only
// when something was taken already.
func (b *bucket) take(r Rate, now func() int64) bool {
	b.used++
	if b.used == 1 {
		b.last = now()
		return true
	}
	if b.used <= r.Burst/2 {
		return true
	}
	t := now()
	per := int64(time.Second) / int64(max(r.PerSecond, 1))
	if back := (t - b.last) / per; back > 0 {
		b.last += back * per
		b.used -= int32(min(back, int64(b.used)-1))
	}
	return b.used <= r.Burst
}
