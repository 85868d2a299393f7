// SPDX-License-Identifier: Apache-2.0

package h2

// BatchPool lends batches to the connections of one loop. A connection holds one
// only while it has output, so a loop needs as many as it has connections with
// output in one turn.
type BatchPool struct {
	records, keep int
	lent          int // full-sized batches that are out
	free          []*Batch
	blocks        []*headerBlock
	scratch       []byte // where header blocks are put together
}

// smallBatch is the size in records of a batch beyond those that the pool keeps:
// a thousand connections that all answer a PING in one turn must not take a
// thousand full-sized batches.
const smallBatch = 2

// NewBatchPool makes a pool of batches of so many records each (DefaultSlots+2 is
// a good size) that never holds more than keep of them.
func NewBatchPool(records, keep int) *BatchPool {
	return &BatchPool{records: max(records, smallBatch), keep: max(keep, 1)}
}

func (p *BatchPool) get() *Batch {
	if n := len(p.free); n > 0 {
		b := p.free[n-1]
		p.free = p.free[:n-1]
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
	if len(b.buf) > p.records*RecordSize { // a backlog made it grow
		return
	}
	b.reset()
	p.free = append(p.free, b)
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
