// SPDX-License-Identifier: Apache-2.0

package h2

// closedStreams remembers how the latest streams ended. RFC 9113 section 5.1 wants
// frames that were under way when this side reset a stream to be ignored, and
// frames after the peer's own end to be errors.
type closedStreams struct {
	ring   []uint32 // ids, with byReset
	next   int
	forgot uint32 // highest id of a stream reset here that fell out of the ring
}

const (
	closedMemory = 64
	byReset      = 1 << 31 // reset by this side
)

// fate is how a closed stream ended.
type fate uint8

const (
	fateUnknown fate = iota // skipped by the client, or long ago
	fateEnded               // by END_STREAM, or the peer's RST_STREAM
	fateReset               // by our RST_STREAM: the peer may not know yet
)

func (c *closedStreams) add(id uint32, reset bool) {
	if reset {
		id |= byReset
	}
	if len(c.ring) < closedMemory {
		c.ring = append(c.ring, id)
		return
	}
	if old := c.ring[c.next]; old&byReset != 0 {
		c.forgot = max(c.forgot, old&^byReset)
	}
	c.ring[c.next] = id
	c.next = (c.next + 1) % closedMemory
}

func (c *closedStreams) of(id uint32) fate {
	for _, e := range c.ring {
		switch e {
		case id:
			return fateEnded
		case id | byReset:
			return fateReset
		}
	}
	if id <= c.forgot {
		return fateReset // perhaps; being lenient costs nothing, its window is refunded
	}
	return fateUnknown
}
