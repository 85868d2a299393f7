// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"bytes"
	crand "crypto/rand"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
)

// largestEcho is more than the buffers of a connection hold at first.
const largestEcho = 256 << 10

var errOtherBytes = errors.New("other bytes came back than were sent")

// echoes are messages of all sizes, most of them small, which a server sends back.
type echoes struct {
	random    *rand.ChaCha8
	sizes     *rand.Rand
	sent, got []byte
}

func newEchoes() *echoes {
	var seed [32]byte
	_, _ = crand.Read(seed[:]) // never fails
	random := rand.NewChaCha8(seed)
	return &echoes{random: random, sizes: rand.New(random), sent: make([]byte, largestEcho), got: make([]byte, largestEcho)}
}

// exchange sends one, and compares what comes back meanwhile.
func (e *echoes) exchange(c *connection) (*Seen, error) {
	size := 1 + e.sizes.IntN(1<<e.sizes.IntN(19))
	sent, got := e.sent[:size], e.got[:size]
	_, _ = e.random.Read(sent) // never fails
	written := make(chan error, 1)
	go func() {
		_, err := c.conn.Write(sent)
		written <- err
	}()
	_, err := io.ReadFull(c.r, got)
	if err == nil && !bytes.Equal(got, sent) {
		err = fmt.Errorf("%d bytes: %w", size, errOtherBytes)
	}
	if err != nil {
		_ = c.conn.Close() // ends the write, too
		<-written
		return nil, err
	}
	return nil, <-written
}
