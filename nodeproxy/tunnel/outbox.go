// SPDX-License-Identifier: Apache-2.0

package tunnel

import (
	"golang.org/x/sys/unix"

	"github.com/meshproxy/meshproxy/nodeproxy/loop"
)

// outbox is ciphertext on its way to a socket: the records of a turn leave with
// one write(2).
type outbox struct {
	sealed []byte // nil while there is none
	sent   int    // of sealed
	pool   *loop.Pool
}

// open returns where ciphertext is appended; what comes of it is put into sealed.
func (o *outbox) open() []byte {
	if o.sealed == nil {
		o.sealed = o.pool.Get()[:0]
	}
	return o.sealed
}

// send writes what is collected. It reports EAGAIN when the socket takes no
// more, and gives the buffer back when all is sent.
func (o *outbox) send(fd int) unix.Errno {
	for o.sent < len(o.sealed) {
		n, e := loop.Write(fd, o.sealed[o.sent:])
		if e != 0 {
			return e
		}
		o.sent += n
	}
	o.release()
	return 0
}

// unsent is the number of bytes that wait for the socket.
func (o *outbox) unsent() int { return len(o.sealed) - o.sent }

func (o *outbox) release() {
	if cap(o.sealed) == o.pool.Size() { // one that grew is not worth keeping
		o.pool.Put(o.sealed)
	} else if o.sealed != nil {
		o.pool.Forget()
	}
	o.sealed, o.sent = nil, 0
}
