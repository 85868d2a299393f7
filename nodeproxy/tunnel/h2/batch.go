// SPDX-License-Identifier: Apache-2.0

package h2

import "io"

// RecordSize is the plaintext that one TLS record holds, RFC 8446 section 5.1.
const RecordSize = 1 << 14

// minSlot is the smallest rest of an open record that bulk data is put into. Less
// is left empty: a tiny frame costs the receiver more than a short record does.
const minSlot = 512

// stride is from one record to the next in a batch: RecordSize, and room for the
// content type that TLS 1.3 puts behind it. More than a byte, since a copy is
// faster to where a cache line begins.
const stride = RecordSize + 64

// Batch is output on its way to the owner: plaintext in records. Record i lives at
// buf[i*stride:], so that a payload slot keeps its place whatever the fill of
// the records before it.
type Batch struct {
	buf     []byte
	fill    []uint16 // bytes used of each record that was begun; the last one is open
	records int      // bulk data gets so many; control frames may open more
	last    int      // place of the latest frame's header in buf, -1: none
}

func newBatch(records int) *Batch {
	return &Batch{
		buf: make([]byte, records*stride), fill: make([]uint16, 0, records),
		records: records, last: -1,
	}
}

// size returns the bytes in the batch.
func (b *Batch) size() (n int) {
	for _, f := range b.fill {
		n += int(f)
	}
	return n
}

func (b *Batch) reset() { b.fill, b.last = b.fill[:0], -1 }

// frame appends a frame with room for n bytes of payload, at most RecordSize-9,
// and returns that room. It grows the batch where it has to: control frames always
// fit, their bound is Limits.Backlog.
func (b *Batch) frame(kind frameType, fl flags, stream uint32, n int) []byte {
	need := frameHeaderLen + n
	if len(b.fill) == 0 || int(b.fill[len(b.fill)-1])+need > RecordSize {
		b.begin()
	}
	rec := len(b.fill) - 1
	at := rec*stride + int(b.fill[rec])
	putFrame(b.buf[at:], kind, fl, stream, n)
	b.fill[rec] += uint16(need)
	b.last = at
	return b.buf[at+frameHeaderLen : at+need]
}

func (b *Batch) begin() {
	b.fill = append(b.fill, 0)
	if need := len(b.fill) * stride; need > len(b.buf) {
		b.buf = append(b.buf, make([]byte, need-len(b.buf))...)
	}
}

// slots appends to iov the places for at most want bytes of bulk payload, count
// slots at most, without growing the batch. total is what they hold.
func (b *Batch) slots(want, count int, iov [][]byte) (_ [][]byte, total int) {
	rec, off := b.tail(want)
	for ; count > 0 && total < want; count-- {
		if rec >= b.records {
			break
		}
		start := rec*stride + off + frameHeaderLen
		end := rec*stride + RecordSize
		n := min(end-start, want-total)
		iov = append(iov, b.buf[start:start+n:start+n])
		total += n
		rec, off = rec+1, 0
	}
	return iov, total
}

// tail is where the next bulk frame goes: the open record when it has room for all
// of want or for minSlot bytes of it, else a new one.
func (b *Batch) tail(want int) (rec, off int) {
	if len(b.fill) == 0 {
		return 0, 0
	}
	rec = len(b.fill) - 1
	off = int(b.fill[rec])
	if room := RecordSize - off - frameHeaderLen; room < want && room < minSlot {
		return rec + 1, 0
	}
	return rec, off
}

// fits reports whether there is room for want, or for a fair part of it. A bulk
// stream that takes a crumb behind another one that has nearly filled the batch
// would count as served and queue behind it again, turn after turn.
func (b *Batch) fits(want int) bool {
	rec, off := b.tail(want)
	if rec >= b.records {
		return false
	}
	const payload = RecordSize - frameHeaderLen
	room := payload - off + (b.records-rec-1)*payload
	return room >= min(want, max(b.records/4, 1)*payload)
}

// commit writes the frame headers for n bytes that were placed in the slots of the
// same want, and returns how many frames they are.
func (b *Batch) commit(stream uint32, want, n int) (frames int) {
	rec, off := b.tail(want)
	for n > 0 {
		if rec == len(b.fill) {
			b.fill = append(b.fill, 0)
		}
		k := min(n, RecordSize-off-frameHeaderLen)
		at := rec*stride + off
		putFrame(b.buf[at:], frameData, 0, stream, k)
		b.fill[rec] += uint16(frameHeaderLen + k)
		b.last = at
		n -= k
		rec, off = rec+1, 0
		frames++
	}
	return frames
}

// endLast sets END_STREAM on the latest frame when it is DATA of that stream, which
// saves a frame for a short message and its end.
func (b *Batch) endLast(stream uint32) bool {
	if b.last < 0 {
		return false
	}
	h := b.buf[b.last : b.last+frameHeaderLen]
	if f := parseFrame(h); f.kind != frameData || f.stream != stream {
		return false
	}
	h[4] |= byte(flagEndStream)
	return true
}

// raw puts what is no frame at the very beginning: the client's preface.
func (b *Batch) raw(p string) {
	b.begin()
	b.fill[0] = uint16(copy(b.buf, p))
}

// writeTo writes each record by itself. The byte behind it is w's, too.
func (b *Batch) writeTo(w io.Writer) (n int64, err error) {
	for i, f := range b.fill {
		if f == 0 {
			continue
		}
		at := i * stride
		k, err := w.Write(b.buf[at : at+int(f) : at+int(f)+1])
		n += int64(k)
		if err != nil {
			return n, err
		}
	}
	return n, nil
}
