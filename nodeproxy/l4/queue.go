// SPDX-License-Identifier: Apache-2.0

package l4

import (
	"golang.org/x/sys/unix"

	"github.com/meshproxy/meshproxy/nodeproxy/loop"
)

// queue holds what a socket did not take, in chunks of the loop. It exists only
// while there is something in it.
type queue struct {
	chunks [][]byte // each cut to what it holds
	off    int      // written of the first one
	pool   *loop.Pool
	limit  *Limit
}

func newQueue(p *loop.Pool, l *Limit) *queue { return &queue{pool: p, limit: l} }

// add copies p to the end. It reports false when the workload's memory is used
// up; part of p may be in the queue then.
func (q *queue) add(p []byte) bool {
	for len(p) > 0 {
		n := len(q.chunks)
		if n == 0 || len(q.chunks[n-1]) == q.pool.Size() {
			if !q.limit.buffer(q.pool.Size()) {
				return false
			}
			q.chunks = append(q.chunks, q.pool.Get()[:0])
			n++
		}
		last := q.chunks[n-1]
		k := min(len(p), q.pool.Size()-len(last))
		q.chunks[n-1] = append(last, p[:k]...)
		p = p[k:]
	}
	return true
}

// writeTo writes to fd until the queue is empty or the socket takes no more,
// then with EAGAIN. Several chunks leave with one writev.
func (q *queue) writeTo(fd int, vec []unix.Iovec) (written int, e unix.Errno) {
	for len(q.chunks) > 0 {
		n, e := q.writeSome(fd, vec)
		if e != 0 {
			return written, e
		}
		written += n
	}
	return written, 0
}

// writeSome writes once.
func (q *queue) writeSome(fd int, vec []unix.Iovec) (written int, e unix.Errno) {
	vec = vec[:0]
	off := q.off
	for _, c := range q.chunks[:min(len(q.chunks), maxVec)] {
		vec = append(vec, loop.Iovec(c[off:]))
		off = 0
	}
	if written, e = loop.Writev(fd, vec); e != 0 {
		return 0, e
	}
	q.drop(written)
	return written, 0
}

// drop removes n bytes from the front.
func (q *queue) drop(n int) {
	n += q.off
	q.off = 0
	done := 0
	for done < len(q.chunks) && n >= len(q.chunks[done]) {
		n -= len(q.chunks[done])
		q.put(q.chunks[done])
		done++
	}
	q.off = n
	rest := copy(q.chunks, q.chunks[done:])
	clear(q.chunks[rest:])
	q.chunks = q.chunks[:rest]
}

func (q *queue) put(c []byte) {
	q.pool.Put(c)
	q.limit.buffer(-q.pool.Size())
}

// release gives everything back; on nil it does nothing.
func (q *queue) release() {
	if q == nil {
		return
	}
	for _, c := range q.chunks {
		q.put(c)
	}
	q.chunks, q.off = nil, 0
}
