// SPDX-License-Identifier: Apache-2.0

package sockmap

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// patiently: the machine may be busy with other tests.
const patiently = patient(time.Minute)

// pair is both ends of a connection between workloads, in this process.
type pair struct{ client, server int }

func (w *splicing) pair(addr, at string) *pair {
	w.t.Helper()
	fd, err := w.front.dialNonblock(addr)
	if err != nil {
		w.t.Fatal(err)
	}
	conn, _ := w.back.acceptNonblock(w.listeners[at])
	take := func(a *actor, fd int) int {
		mine, err := unix.PidfdGetfd(a.pidfd, fd, 0)
		if err != nil {
			w.t.Fatal(err)
		}
		a.close(fd)
		return mine
	}
	p := &pair{client: take(w.front, fd), server: take(w.back, conn)}
	w.t.Cleanup(func() { p.closeClient(); p.closeServer() })
	return p
}

func (p *pair) closeClient() { closeOnce(&p.client) }
func (p *pair) closeServer() { closeOnce(&p.server) }

func closeOnce(fd *int) {
	if *fd >= 0 {
		unix.Close(*fd)
		*fd = -1
	}
}

// exchange sends n random bytes each way.
func (p *pair) exchange(t *testing.T, n int) {
	t.Helper()
	for _, way := range [][2]int{{p.client, p.server}, {p.server, p.client}} {
		message := randomBytes(uint64(n), n)
		if err := patiently.write(way[0], message); err != nil {
			t.Fatal(err)
		}
		if err := patiently.expect(way[1], message); err != nil {
			t.Fatal(err)
		}
	}
}

func randomBytes(seed uint64, n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	r.Read(b)
	return b
}

// fill writes until the receiver holds the sender back.
func fill(fd int, limit int) (sent []byte, err error) {
	for len(sent) < limit {
		chunk := randomBytes(uint64(len(sent)), 1+len(sent)*7%30_000)
		n, err := unix.Write(fd, chunk)
		if errors.Is(err, unix.EAGAIN) {
			return sent, nil
		}
		if err != nil {
			return sent, err
		}
		sent = append(sent, chunk[:n]...)
	}
	return sent, fmt.Errorf("%d bytes accepted", len(sent))
}

// stream writes size bytes in writes of many sizes, and reads and compares
// them; between is called once, in the middle.
func stream(from, to int, seed uint64, size int, between func()) error {
	failed := make(chan error, 1)
	go func() {
		failed <- func() error {
			src, r := rand.NewChaCha8([32]byte{byte(seed)}), rand.New(rand.NewPCG(seed, 1))
			buf := make([]byte, 256<<10)
			for sent := 0; sent < size; {
				n := min(1<<r.IntN(19)-r.IntN(1<<8)%2, size-sent)
				n = max(n, 1)
				src.Read(buf[:n])
				if err := patiently.write(from, buf[:n]); err != nil {
					return fmt.Errorf("write at %d: %w", sent, err)
				}
				sent += n
			}
			return nil
		}()
	}()
	// ChaCha8.Read keeps what is left of a block, so any split reads alike.
	want := rand.NewChaCha8([32]byte{byte(seed)})
	got, expected := make([]byte, 64<<10), make([]byte, 64<<10)
	for at := 0; at < size; {
		n, err := patiently.read(to, got)
		if err != nil || n == 0 {
			return errors.Join(fmt.Errorf("read %d at %d of %d: %w", n, at, size, err))
		}
		want.Read(expected[:n])
		if !bytes.Equal(got[:n], expected[:n]) {
			return fmt.Errorf("bytes differ at %d", at)
		}
		if between != nil && at < size/2 && at+n >= size/2 {
			between()
		}
		at += n
	}
	return <-failed
}
