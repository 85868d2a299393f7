// SPDX-License-Identifier: Apache-2.0

package memfile

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func newPair(t testing.TB) *Pair {
	t.Helper()
	p, err := New("test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

// again is the pair as another process gets it.
func again(t testing.TB, p *Pair) *Pair {
	t.Helper()
	var files [2]*os.File
	for i, f := range p.Files() {
		fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		files[i] = os.NewFile(uintptr(fd), "test")
	}
	other := Open(files[0], files[1])
	t.Cleanup(other.Close)
	return other
}

func write(t testing.TB, p *Pair, text string) {
	t.Helper()
	if err := p.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
}

func want(t testing.TB, p *Pair, text string) {
	t.Helper()
	if got, err := p.Read(); err != nil || string(got) != text {
		t.Errorf("read %.40q, %v, want %.40q", got, err, text)
	}
}

func TestPair(t *testing.T) {
	p := newPair(t)
	if _, err := again(t, p).Read(); !errors.Is(err, ErrEmpty) {
		t.Errorf("empty: %v", err)
	}
	for i := range 5 {
		text := strings.Repeat(fmt.Sprint(i), 1000*(5-i)+1)
		write(t, p, text)
		want(t, again(t, p), text)
	}
	// The next process goes on where this one ended.
	next := again(t, p)
	want(t, next, "44444"+strings.Repeat("4", 1001-5))
	write(t, next, "next")
	want(t, again(t, p), "next")
	write(t, next, "")
	want(t, again(t, p), "")
}

// TestTorn: whatever becomes of one file, the other one counts.
func TestTorn(t *testing.T) {
	for name, spoil := range map[string]func(*os.File) error{
		"emptied":   func(f *os.File) error { return f.Truncate(0) },
		"cut":       func(f *os.File) error { return f.Truncate(60) },
		"longer":    func(f *os.File) error { _, err := f.WriteAt([]byte("x"), 70); return err },
		"other":     func(f *os.File) error { _, err := f.WriteAt([]byte("x"), 58); return err },
		"newer":     func(f *os.File) error { _, err := f.WriteAt([]byte{9}, 8); return err },
		"not a one": func(f *os.File) error { _, err := f.WriteAt(bytes.Repeat([]byte{7}, 8), 0); return err },
	} {
		t.Run(name, func(t *testing.T) {
			p := newPair(t)
			write(t, p, "before")
			write(t, p, "latest")
			if err := spoil(p.files[p.generation%2]); err != nil {
				t.Fatal(err)
			}
			other := again(t, p)
			want(t, other, "before")
			write(t, other, "after")
			want(t, again(t, p), "after")
		})
	}
}

// TestNothingStays: a text that was replaced twice is nowhere.
func TestNothingStays(t *testing.T) {
	p := newPair(t)
	write(t, p, strings.Repeat("secret", 100))
	write(t, p, "b")
	write(t, p, "c")
	for _, f := range p.Files() {
		var all [4096]byte
		n, _ := f.ReadAt(all[:], 0)
		if bytes.Contains(all[:n], []byte("secret")) {
			t.Error("the first text is still there")
		}
	}
}

func FuzzRead(f *testing.F) {
	p := newPair(f)
	write(f, p, "text")
	var whole [100]byte
	n, _ := p.files[1].ReadAt(whole[:], 0)
	f.Add(whole[:n])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, raw []byte) {
		p := newPair(t)
		if _, err := p.files[0].WriteAt(raw, 0); err != nil {
			t.Fatal(err)
		}
		text, err := p.Read()
		if err == nil && !bytes.HasSuffix(raw, text) {
			t.Fatalf("read %q of %q", text, raw)
		}
		write(t, p, "good")
		want(t, p, "good")
	})
}
