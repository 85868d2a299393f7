// SPDX-License-Identifier: Apache-2.0

package h2

// What is announced and allowed unless a Config says otherwise. The values are
// those of ztunnel, save for the concurrent streams (200 there), because a node's
// tunnel carries the connections of a whole workload.
const (
	DefaultStreamWindow  = 4 << 20
	DefaultConnWindow    = 16 << 20 // must be larger than a stream's: equal windows let one stalled stream block all
	DefaultMaxFrameSize  = 1 << 20
	DefaultMaxStreams    = 1024
	DefaultClientHeaders = 16 << 10
	DefaultServerHeaders = 64 << 10
	DefaultSlots         = 16 // DATA frames that one Reserve may span; 4 costs 10–17 % more CPU per byte
)

// Config holds what the connections of one loop have in common. Fields that are
// zero are set to their defaults by the first connection; nothing may be changed
// afterwards.
type Config struct {
	// Now returns a monotonic clock in nanoseconds; the loop's coarse one will do.
	// Only the flood limits look at it. Required.
	Now func() int64
	// Batches lends the memory for output. Required.
	Batches *BatchPool

	StreamWindow  uint32 // bytes a peer may have in flight on a stream; at least 65535
	ConnWindow    uint32 // and on the connection; at least StreamWindow
	MaxFrameSize  uint32 // largest frame accepted
	MaxStreams    uint32 // server: concurrent streams of the peer. client: own limit, beside the peer's
	MaxHeaderList uint32 // decoded size of a header list, RFC 9113 section 6.5.2
	Slots         int    // slots of one Reserve
	Limits        Limits
}

func (c *Config) setDefaults() {
	if c.Now == nil || c.Batches == nil {
		panic("h2: Config needs Now and Batches")
	}
	c.StreamWindow = clamp(c.StreamWindow, DefaultStreamWindow, minWindow, maxWindow)
	c.ConnWindow = clamp(c.ConnWindow, DefaultConnWindow, c.StreamWindow, maxWindow)
	c.MaxFrameSize = clamp(c.MaxFrameSize, DefaultMaxFrameSize, minMaxFrame, maxMaxFrame)
	c.MaxStreams = clamp(c.MaxStreams, DefaultMaxStreams, 1, 1<<20)
	c.MaxHeaderList = min(c.MaxHeaderList, 1<<24)
	if c.Slots <= 0 {
		c.Slots = DefaultSlots
	}
	if c.Batches.records == 0 {
		c.Batches.size(c.Slots)
	}
	c.Limits.setDefaults()
}

// clamp is v within [low, high], or def when v is zero.
func clamp(v, def, low, high uint32) uint32 {
	if v == 0 {
		v = def
	}
	return min(max(v, low), high)
}

func (c *Config) headerList(client bool) uint32 {
	switch {
	case c.MaxHeaderList != 0:
		return c.MaxHeaderList
	case client:
		return DefaultClientHeaders
	default:
		return DefaultServerHeaders
	}
}
