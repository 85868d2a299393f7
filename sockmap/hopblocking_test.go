// SPDX-License-Identifier: Apache-2.0

package sockmap

import (
	"bytes"
	"errors"
	"testing"

	"golang.org/x/sys/unix"
)

// TestHopBlocking: applications whose sockets block are never spliced; one whose
// socket begins to block gets what was redirected, and all else by TCP.
func TestHopBlocking(t *testing.T) {
	for _, kind := range hopKinds {
		t.Run(kind.name, func(t *testing.T) {
			w := newHopWorld(t)
			h := w.hop(kind)
			h.exchange(100)
			_, before := h.redirected()
			first, second := randomBytes(1, 2000), randomBytes(2, 2000)
			if err := h.send(first); err != nil {
				t.Fatal(err)
			}
			if _, now := h.redirected(); now != before+2000 {
				t.Error("not spliced")
			}
			if err := unix.SetNonblock(h.app, false); err != nil {
				t.Fatal(err)
			}
			// The first one is redirected: it must not be mixed with the other.
			sent := make(chan error, 1)
			go func() { sent <- errors.Join(h.send(second), h.send(first)) }()
			if err := patiently.expect(h.app, bytes.Join([][]byte{first, second, first}, nil)); err != nil {
				t.Fatal(err)
			}
			if err := <-sent; err != nil {
				t.Fatal(err)
			}
			h.close()

			app, proxy, key := w.connect(kind, 0)
			if !kind.dialled && w.isSpliced(key) {
				t.Error("a socket that blocks is in the map")
			}
			before1, before2 := w.redirected()
			for range 3 {
				w.application(kind).must(call{Op: "write", FD: app, Data: "question"})
				if r := w.proxy.must(call{Op: "recvfrom", FD: proxy}); r.Data != "question" {
					t.Fatalf("the proxy reads %q", r.Data)
				}
				w.proxy.must(call{Op: "write", FD: proxy, Data: "answer"})
				if r := w.application(kind).must(call{Op: "recvfrom", FD: app}); r.Data != "answer" {
					t.Fatalf("the application reads %q", r.Data)
				}
			}
			if now1, now2 := w.redirected(); now1 != before1 || now2 != before2 {
				t.Error("data went directly to or from a socket that blocks")
			}
			w.application(kind).close(app)
			w.proxy.close(proxy)
		})
	}
}

// TestHopReadsBothWays: a client that blocks when it sends its first message is TCP
// before it reads, signals don't disturb it, and those that don't block are spliced
// all the while.
func TestHopReadsBothWays(t *testing.T) {
	w := newHopWorld(t)
	for range 5 {
		for _, kind := range hopKinds[:2] {
			h := w.hop(kind)
			if err := unix.SetNonblock(h.app, false); err != nil {
				t.Fatal(err)
			}
			h.exchange(100)
			application, proxy := h.key.keys()
			if w.inMap(application) || w.inMap(proxy) {
				t.Fatalf("%s: a client that blocks is in the map", kind.name)
			}
			if text, err := interruptedRead(t, h.app, h.proxy); text != "at last" || err != nil {
				t.Errorf("read %q, %v", text, err)
			}
			if leave, err := w.HopWanted(h.key); leave || err != nil {
				t.Errorf("leave %v, %v", leave, err)
			}
			g := w.hop(kind)
			g.exchange(1000)
			if !w.isSpliced(g.key) {
				t.Fatalf("%s: not spliced", kind.name)
			}
			h.exchange(100_000)
			if err := h.leave(); err != nil { // as the proxy does of bulk
				t.Error(err)
			}
			h.exchange(100)
			g.close()
			h.close()
		}
	}
}

// TestHopFirst: of a client that was not seen reading nothing is spliced.
func TestHopFirst(t *testing.T) {
	w := newHopWorld(t)
	w.mu.Lock()
	err := w.forgetReaders(map[uint32]bool{w.names.byName[newEntity(kindWorkload, name("front"))]: true})
	w.mu.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	h := w.hop(hopKinds[0])
	h.exchange(100)
	if application, _ := h.key.keys(); w.inMap(application) {
		t.Error("spliced")
	}
}
