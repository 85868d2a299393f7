// SPDX-License-Identifier: Apache-2.0

package l4

import (
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/meshproxy/meshproxy/nodeproxy/loop"
)

// gather collects consecutive pieces of payload of one relay, so that a bulk
// stream's sixteen records leave with one writev. There is one per loop; the
// pieces stay in the tunnel's buffer, which asks for them (Flush) before it
// uses that again.
type gather struct {
	set    *Relays
	relay  *relay
	pieces []unix.Iovec
	bytes  int
	asked  bool // the tunnel will call Flush
}

func (g *gather) add(r *relay, p []byte) {
	if len(p) == 0 {
		return
	}
	if g.relay != r || len(g.pieces) == maxVec {
		g.write()
		if r.is(dead) || r.is(blocked) || r.hop.blocks() { // the writev just now may have found out
			r.Data(r.stream, p)
			return
		}
	}
	if !g.asked {
		g.asked = true
		g.set.carrier.BeforeReuse(g)
	}
	g.relay = r
	g.pieces = append(g.pieces, loop.Iovec(p))
	g.bytes += len(p)
}

// Flush implements loop.Flusher.
func (g *gather) Flush() {
	g.asked = false
	g.write()
}

// emit writes what r has in here.
func (g *gather) emit(r *relay) {
	if g.relay == r {
		g.write()
	}
}

// forget drops what r has in here.
func (g *gather) forget(r *relay) {
	if g.relay == r {
		g.clear()
	}
}

func (g *gather) write() {
	if r := g.relay; r != nil {
		v, n := g.pieces, g.bytes
		g.relay = nil // write may come back here
		r.write(v, n)
		g.clear()
	}
}

func (g *gather) clear() {
	clear(g.pieces)
	g.relay, g.pieces, g.bytes = nil, g.pieces[:0], 0
}

// bytesOf is the memory that v describes.
func bytesOf(v *unix.Iovec) []byte { return unsafe.Slice(v.Base, v.Len) }
