// SPDX-License-Identifier: Apache-2.0

// Package memfile keeps a text in memory that outlives the process, for as long
// as somebody else has its descriptors: the service manager's descriptor store,
// or the process that takes over. It is where private keys may lie, which must
// not get to a disk.
//
// Two files are written in turn, each with a generation and a checksum, so that
// a process that dies while it writes leaves the text before. The package must
// not know what it keeps.
package memfile

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// Pair is two files that are written in turn. It is not for concurrent use.
type Pair struct {
	files      [2]*os.File
	generation uint64 // of what was written last
}

// header begins a file.
type header struct {
	Magic      [8]byte
	Generation uint64
	Size       uint64
	Sum        [sha256.Size]byte // of generation, size and text
}

var magic = [8]byte{'m', 'e', 's', 'h', 'm', 'e', 'm', '1'}

// maxText bounds what is read back: a thousand leaves take 2 MiB.
const maxText = 64 << 20

// New makes an empty pair.
func New(name string) (*Pair, error) {
	p := &Pair{}
	for i := range p.files {
		// Since Linux 6.3 it is worth a warning not to say whether the file is
		// one to be executed; before, saying so is an error.
		fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_NOEXEC_SEAL)
		if errors.Is(err, unix.EINVAL) {
			fd, err = unix.MemfdCreate(name, unix.MFD_CLOEXEC)
		}
		if err != nil {
			p.Close()
			return nil, fmt.Errorf("make memory file: %w", err)
		}
		p.files[i] = os.NewFile(uintptr(fd), name)
	}
	return p, nil
}

// Open takes over the files of another process's pair; they are the pair's from
// then on.
func Open(a, b *os.File) *Pair { return &Pair{files: [2]*os.File{a, b}} }

// Files are the pair's; they stay its own.
func (p *Pair) Files() [2]*os.File { return p.files }

// Close closes the files, whose text stays while somebody else has them.
func (p *Pair) Close() {
	for _, f := range p.files {
		if f != nil {
			_ = f.Close()
		}
	}
}

// Write replaces the text, and overwrites the one before the last.
func (p *Pair) Write(text []byte) error {
	h := header{Magic: magic, Generation: p.generation + 1, Size: uint64(len(text))}
	h.Sum = h.sum(text)
	var whole bytes.Buffer
	if err := binary.Write(&whole, binary.LittleEndian, h); err != nil {
		return fmt.Errorf("write memory file: %w", err)
	}
	whole.Write(text)
	defer clear(whole.Bytes())
	f := p.files[h.Generation%2]
	// Nothing of what was longer may stay behind.
	if err := f.Truncate(0); err != nil {
		return fmt.Errorf("write memory file: %w", err)
	}
	if _, err := f.WriteAt(whole.Bytes(), 0); err != nil {
		return fmt.Errorf("write memory file: %w", err)
	}
	p.generation = h.Generation
	return nil
}

// ErrEmpty is returned when nothing was ever written, or nothing whole.
var ErrEmpty = errors.New("memory file has no text")

// Read returns the latest text that is whole.
func (p *Pair) Read() ([]byte, error) {
	var text []byte
	for _, f := range p.files {
		if h, t, err := read(f); err == nil && (text == nil || h.Generation > p.generation) {
			text, p.generation = t, h.Generation
		}
	}
	if text == nil {
		return nil, ErrEmpty
	}
	return text, nil
}

func read(f *os.File) (h header, text []byte, err error) {
	// Its offset is shared with whoever else has the file.
	whole, err := io.ReadAll(io.NewSectionReader(f, 0, maxText))
	if err != nil {
		return h, nil, fmt.Errorf("read memory file: %w", err)
	}
	if err := binary.Read(bytes.NewReader(whole), binary.LittleEndian, &h); err != nil || h.Magic != magic {
		return h, nil, ErrEmpty
	}
	text = whole[binary.Size(h):]
	if h.Size != uint64(len(text)) || h.Sum != h.sum(text) {
		return h, nil, ErrEmpty
	}
	return h, text, nil
}

func (h *header) sum(text []byte) (sum [sha256.Size]byte) {
	d := sha256.New()
	_ = binary.Write(d, binary.LittleEndian, [2]uint64{h.Generation, h.Size}) // a hash takes everything
	d.Write(text)
	return [sha256.Size]byte(d.Sum(nil))
}
