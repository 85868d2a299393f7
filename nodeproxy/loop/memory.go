// SPDX-License-Identifier: Apache-2.0

package loop

// ChunkSize is the length of the buffers that Chunks hands out.
const ChunkSize = 16 << 10

// Pool hands out buffers of one size. It belongs to a loop, which frees what
// lies unused: after a burst, half of what nobody needed goes at each
// housekeeping, so an idle loop ends up holding nothing.
type Pool struct {
	size int
	free [][]byte
	low  int // fewest free buffers since the last trim
	out  int
}

// NewPool makes a pool that the loop trims.
func (l *Loop) NewPool(size int) *Pool {
	p := &Pool{size: size}
	l.pools = append(l.pools, p)
	return p
}

// Get returns a buffer of length Size with arbitrary content.
func (p *Pool) Get() []byte {
	p.out++
	n := len(p.free)
	if n == 0 {
		return make([]byte, p.size)
	}
	b := p.free[n-1]
	p.free[n-1] = nil
	p.free = p.free[:n-1]
	p.low = min(p.low, n-1)
	return b
}

// Put takes back a buffer that Get returned.
func (p *Pool) Put(b []byte) {
	p.out--
	p.free = append(p.free, b[:p.size])
}

// Forget says that a buffer from Get will not come back.
func (p *Pool) Forget() { p.out-- }

// Size is the length of the pool's buffers.
func (p *Pool) Size() int { return p.size }

// Free is the number of buffers that lie unused.
func (p *Pool) Free() int { return len(p.free) }

// Used is the number of buffers that are handed out.
func (p *Pool) Used() int { return p.out }

func (p *Pool) trim() {
	drop := (p.low + 1) / 2
	n := len(p.free) - drop
	clear(p.free[n:])
	p.free = p.free[:n]
	if n == 0 {
		p.free = nil
	}
	p.low = n
}

// Chunks is the loop's pool of ChunkSize buffers, for data that must wait.
func (l *Loop) Chunks() *Pool { return l.chunks }

// Scratch is one large buffer that anybody may use until returning from the
// current call. Whoever uses it must not call, meanwhile, into code that does
// the same.
func (l *Loop) Scratch() []byte { return l.scratch }
