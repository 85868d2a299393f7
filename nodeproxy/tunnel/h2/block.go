// SPDX-License-Identifier: Apache-2.0

package h2

import (
	"strconv"

	"golang.org/x/net/http/httpguts"
)

// Block is a list of header fields, encoded once and sent many times. It uses no
// dynamic table (RFC 7541 section 2.3.2), so it fits any connection at any time.
// The owner of a pool key keeps one with what is the same for all of its streams.
type Block struct {
	enc  []byte
	size uint32 // as SETTINGS_MAX_HEADER_LIST_SIZE counts
}

// Indexes of the static table, RFC 7541 appendix A.
const (
	indexAuthority = 1
	indexMethod    = 2
	indexStatus    = 8
)

// fieldOverhead is what each field counts beside its octets, RFC 9113 section 6.5.2.
const fieldOverhead = 32

// ConnectBlock begins the block of a CONNECT to authority, host:port.
func ConnectBlock(authority string) (*Block, error) {
	if authority == "" || !httpguts.ValidHostHeader(authority) {
		return nil, ErrField
	}
	b := &Block{}
	b.indexed(indexMethod, ":method", "CONNECT")
	b.indexed(indexAuthority, ":authority", authority)
	return b, nil
}

// Add appends a field. name is a lower-case token.
func (b *Block) Add(name, value string) error {
	if !validName(name) || !validValue(value) {
		return ErrField
	}
	b.enc = append(b.enc, 0) // literal without indexing, new name
	b.enc = appendString(b.enc, name)
	b.enc = appendString(b.enc, value)
	b.count(name, value)
	return nil
}

// Reset empties the block and keeps its memory, for fields that differ per stream.
func (b *Block) Reset() { b.enc, b.size = b.enc[:0], 0 }

// indexed appends a literal without indexing whose name is in the static table.
func (b *Block) indexed(index byte, name, value string) {
	b.enc = appendString(append(b.enc, index), value)
	b.count(name, value)
}

func (b *Block) count(name, value string) {
	b.size += uint32(len(name) + len(value) + fieldOverhead)
}

// appendStatus encodes ":status". The common ones are in the static table.
func appendStatus(dst []byte, status int) []byte {
	switch status {
	case 200:
		return append(dst, 0x80|8)
	case 400:
		return append(dst, 0x80|12)
	}
	return strconv.AppendInt(append(dst, indexStatus, 3), int64(status), 10)
}

// appendString encodes a string literal, RFC 7541 section 5.2. Without Huffman
// code: on a link of its own every field is sent once per connection of an
// application, and decoding costs more than the octets.
func appendString(dst []byte, s string) []byte {
	dst = appendInt(dst, 7, uint64(len(s)))
	return append(dst, s...)
}

// appendInt encodes an integer with an n-bit prefix, RFC 7541 section 5.1; the
// bits above the prefix are zero.
func appendInt(dst []byte, n uint8, v uint64) []byte {
	limit := uint64(1)<<n - 1
	if v < limit {
		return append(dst, byte(v))
	}
	dst = append(dst, byte(limit))
	for v -= limit; v >= 0x80; v >>= 7 {
		dst = append(dst, 0x80|byte(v&0x7f))
	}
	return append(dst, byte(v))
}
