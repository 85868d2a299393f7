// SPDX-License-Identifier: Apache-2.0

package h2

// BatchPool lends batches to the connections of one loop. A connection holds one
// only while it has output, so a loop needs as many as it has connections with
// output in one turn.
type BatchPool struct {
	records, keep int
	lent          int // full-sized batches that are out
	free          []*Batch
	low           int // fewest free ones since the last Trim
	blocks        []*headerBlock
	scratch       []byte // where header blocks are put together
}

// smallBatch is the size in records of a batch beyond those that the pool keeps:
// a thousand connections that all answer a PING in one turn must not take a
// thousand full-sized batches.
const smallBatch = 2

// keepBatches is how many full-sized batches there are at most: connections with
// bulk output, in one turn of a loop or while their sockets are blocked.
const keepBatches = 32

// NewBatchPool makes the pool of a loop. Config.Slots decides how large its
// batches are: what one Reserve fills, the open record, and one for control frames.
func NewBatchPool() *BatchPool { return &BatchPool{keep: keepBatches} }

func (p *BatchPool) size(slots int) { p.records = max(slots+2, smallBatch+1) }

func (p *BatchPool) get() *Batch {
	if n := len(p.free); n > 0 {
		b := p.free[n-1]
		p.free[n-1] = nil
		p.free = p.free[:n-1]
		p.low = min(p.low, n-1)
		p.lent++
		return b
	}
	if p.lent < p.keep {
		p.lent++
		return newBatch(p.records)
	}
	return newBatch(smallBatch)
}

func (p *BatchPool) put(b *Batch) {
	if b.records < p.records { // a small one
		return
	}
	p.lent--
	if len(b.buf) > p.records*stride { // a backlog made it grow
		return
	}
	b.reset()
	p.free = append(p.free, b)
}

// Trim lets go of half of the batches that nobody needed since the last Trim. The
// owner calls it now and then: a burst must not leave the memory of a burst behind.
func (p *BatchPool) Trim() {
	n := len(p.free) - (p.low+1)/2
	clear(p.free[n:])
	p.free = p.free[:n]
	p.low = n
}

// maxKeptBlocks: header blocks that arrive in pieces are few at any time.
const maxKeptBlocks = 4

func (p *BatchPool) block() *headerBlock {
	if n := len(p.blocks); n > 0 {
		b := p.blocks[n-1]
		p.blocks = p.blocks[:n-1]
		return b
	}
	return &headerBlock{}
}

func (p *BatchPool) putBlock(b *headerBlock) {
	if len(p.blocks) < maxKeptBlocks && cap(b.fields) <= 64 {
		b.reset()
		p.blocks = append(p.blocks, b)
	}
}
