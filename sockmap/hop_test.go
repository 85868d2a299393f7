// SPDX-License-Identifier: Apache-2.0

package sockmap

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/meshproxy/meshproxy/bpf"
)

func TestHop(t *testing.T) {
	eachHop(t, func(t *testing.T, h *hopPair) {
		applications, proxy := h.redirected()
		for _, size := range []int{1, 64, 4093, 16 << 10} {
			h.exchange(size)
		}
		a, p := h.redirected()
		if want := uint64(1 + 64 + 4093 + 16<<10); a-applications != want || p-proxy != want {
			t.Errorf("%d and %d bytes went directly, want %d each way", a-applications, p-proxy, want)
		}
		h.exchange(1 << 20) // leaves, or goes by TCP
		h.exchange(64)
	})
}

// TestHopFallback: a workload that is not to be spliced.
func TestHopFallback(t *testing.T) {
	w := newHopWorld(t)
	front := w.workload("front")
	front.Unspliced = true
	w.apply(State{Workloads: []Workload{front, w.workload("back")}, Destinations: []Destination{destination(virtual4, "db")}})
	h := w.hop(hopKinds[0])
	h.exchange(1000)
	if w.isSpliced(h.key) {
		t.Error("a workload was spliced that is not to be")
	}
}

// TestHopStream compares streams of both directions at once, in writes of many
// sizes, while splicing is paused and resumed.
func TestHopStream(t *testing.T) {
	const size = 8 << 20
	eachHop(t, func(t *testing.T, h *hopPair) {
		var wg sync.WaitGroup
		errs := make(chan error, 4)
		sender := func(seed uint64, write func([]byte) error) {
			src, r := rand.NewChaCha8([32]byte{byte(seed)}), rand.New(rand.NewPCG(seed, 1))
			buf := make([]byte, 64<<10)
			for sent := 0; sent < size; {
				n := min(max(1<<r.IntN(17)-r.IntN(2), 1), size-sent)
				src.Read(buf[:n])
				if err := write(buf[:n]); err != nil {
					errs <- fmt.Errorf("write at %d: %w", sent, err)
					return
				}
				sent += n
			}
		}
		receiver := func(seed uint64, fd int) {
			want, got, expected := rand.NewChaCha8([32]byte{byte(seed)}), make([]byte, 40_000), make([]byte, 40_000)
			for at := 0; at < size; {
				n, err := patiently.read(fd, got)
				if err != nil || n == 0 {
					errs <- fmt.Errorf("read %d at %d: %w", n, at, err)
					return
				}
				want.Read(expected[:n])
				if !bytes.Equal(got[:n], expected[:n]) {
					errs <- fmt.Errorf("bytes differ at %d", at)
					return
				}
				at += n
			}
		}
		wg.Go(func() { sender(1, func(p []byte) error { return patiently.write(h.app, p) }) })
		wg.Go(func() { sender(2, h.send) })
		wg.Go(func() { receiver(1, h.proxy) })
		wg.Go(func() { receiver(2, h.app) })
		done := make(chan struct{})
		go func() { wg.Wait(); close(done) }()
		for running := true; running; {
			select {
			case <-done:
				running = false
			default:
				if err := errors.Join(h.PauseHops("to test"), h.PauseHops("")); err != nil {
					t.Fatal(err)
				}
				elapse(firstPause)
			}
		}
		close(errs)
		for err := range errs {
			t.Error(err)
		}
	})
}

// TestHopBackpressure: nobody takes more than the buffers hold, and nothing is
// lost of what was taken.
func TestHopBackpressure(t *testing.T) {
	const most = 8 << 20 // a sender's buffer grows as TCP sends, to 4 MiB
	eachHop(t, func(t *testing.T, h *hopPair) {
		sent, err := fill(h.app, most)
		if err != nil {
			t.Fatalf("a proxy that does not read took %d bytes", len(sent))
		}
		if err := patiently.expect(h.proxy, sent); err != nil {
			t.Fatal(err)
		}
		sent = nil
		for waiting := false; !waiting && len(sent) < most; {
			chunk := randomBytes(uint64(len(sent)), 1000)
			if n, err := unix.Write(h.proxy, chunk); err != nil || n < len(chunk) {
				t.Fatalf("write %d bytes: %v", n, err)
			}
			sent = append(sent, chunk...)
			if w := h.HopsWanted(); w == h.wanted {
				continue
			}
			if leave, err := h.HopWanted(h.key); err != nil || !leave {
				t.Fatalf("leave %v: %v", leave, err)
			}
			if waiting, _, err = h.LeaveHop(h.key); err != nil || !waiting {
				t.Fatalf("waiting %v: %v", waiting, err)
			}
		}
		room, err := unix.GetsockoptInt(h.app, unix.SOL_SOCKET, unix.SO_RCVBUF)
		if err != nil {
			t.Fatal(err)
		}
		if len(sent) > room {
			t.Errorf("%d bytes were redirected to an application with a buffer of %d", len(sent), room)
		}
		if err := patiently.expect(h.app, sent); err != nil {
			t.Fatal(err)
		}
		if waiting, _, err := h.LeaveHop(h.key); err != nil || waiting {
			t.Fatalf("waiting %v: %v", waiting, err)
		}
		h.exchange(100_000)
	})
}

// edgeReader reads as many programs do that epoll tells of readiness by edges: a
// read that is short was the last until the next edge.
func edgeReader(fd, total int) (got []byte, err error) {
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, err
	}
	defer unix.Close(ep)
	ev := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLET&0xffffffff, Fd: int32(fd)}
	if err := unix.EpollCtl(ep, unix.EPOLL_CTL_ADD, fd, &ev); err != nil {
		return nil, err
	}
	buf := make([]byte, 8<<10)
	for len(got) < total {
		n, err := unix.EpollWait(ep, []unix.EpollEvent{{}}, int(time.Duration(patiently).Milliseconds()))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return got, err
		}
		if n == 0 {
			return got, errors.New("no edge")
		}
		for {
			n, err := unix.Read(fd, buf)
			if errors.Is(err, unix.EAGAIN) {
				break
			}
			if err != nil || n == 0 {
				return got, fmt.Errorf("read %d: %w", n, err)
			}
			got = append(got, buf[:n]...)
			if n < len(buf) {
				break
			}
		}
	}
	return got, nil
}

// TestHopEdges: an application that takes a short read for the end misses
// nothing, however the proxy's data changes from one way to the other.
func TestHopEdges(t *testing.T) {
	eachHop(t, func(t *testing.T, h *hopPair) {
		message := randomBytes(7, 4<<20)
		failed := make(chan error, 1)
		go func() {
			r := rand.New(rand.NewPCG(7, 7))
			rest := message
			for len(rest) > 0 {
				n := min(max(1<<r.IntN(18)-1, 1), len(rest))
				if err := h.send(rest[:n]); err != nil {
					failed <- err
					return
				}
				rest = rest[n:]
			}
			failed <- nil
		}()
		got, err := edgeReader(h.app, len(message))
		if err != nil {
			t.Fatalf("after %d of %d bytes: %v", len(got), len(message), err)
		}
		if err := <-failed; err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, message) {
			t.Error("bytes differ")
		}
	})
}

// TestHopLeave takes hops out while both ends send.
func TestHopLeave(t *testing.T) {
	eachHop(t, func(t *testing.T, h *hopPair) {
		up, down := randomBytes(1, 2<<20), randomBytes(2, 1<<20)
		errs := make(chan error, 3)
		go func() {
			for at := 0; at < len(up); at += 1000 {
				if err := patiently.write(h.app, up[at:min(at+1000, len(up))]); err != nil {
					errs <- err
					return
				}
			}
			errs <- nil
		}()
		go func() { errs <- patiently.expect(h.proxy, up) }()
		go func() { errs <- patiently.expect(h.app, down) }()
		for at := 0; at < len(down); at += 1000 {
			if err := h.send(down[at:min(at+1000, len(down))]); err != nil {
				t.Fatal(err)
			}
			if at == len(down)/2/1000*1000 {
				if err := h.leave(); err != nil {
					t.Fatal(err)
				}
			}
		}
		for range 3 {
			if err := <-errs; err != nil {
				t.Fatal(err)
			}
		}
		// The kernel lets go of an end when nobody is at work on it any more.
		for deadline := time.Now().Add(time.Duration(patiently)); ; elapse(firstPause) {
			waiting, done, err := h.LeaveHop(h.key)
			if err != nil || waiting {
				t.Fatalf("waiting %v: %v", waiting, err)
			}
			if done {
				break
			}
			if time.Now().After(deadline) {
				t.Fatal("the hop is never left")
			}
		}
		application, proxy := h.key.keys()
		if h.inMap(application) || h.inMap(proxy) {
			t.Error("an end is still in the map")
		}
		a, p := h.redirected()
		h.exchange(100)
		if a2, p2 := h.redirected(); a2 != a || p2 != p {
			t.Error("something was redirected after both ends had left")
		}
	})
}

// TestHopEnds: half-close in either order, and resets, look as they do with TCP.
func TestHopEnds(t *testing.T) {
	end := func(t *testing.T, fd int) {
		t.Helper()
		if n, err := patiently.read(fd, make([]byte, 1)); n != 0 || err != nil {
			t.Fatalf("read %d at the end of the stream: %v", n, err)
		}
	}
	w := newHopWorld(t)
	for _, kind := range hopKinds {
		for name, test := range map[string]func(t *testing.T, h *hopPair){
			"application first": func(t *testing.T, h *hopPair) {
				h.half(t, h.app, h.proxy)
				end(t, h.proxy)
				h.half(t, h.proxy, h.app)
				end(t, h.app)
			},
			"proxy first": func(t *testing.T, h *hopPair) {
				h.half(t, h.proxy, h.app)
				end(t, h.app)
				h.half(t, h.app, h.proxy)
				end(t, h.proxy)
			},
			"application resets": func(t *testing.T, h *hopPair) {
				linger := unix.Linger{Onoff: 1}
				if err := unix.SetsockoptLinger(h.app, unix.SOL_SOCKET, unix.SO_LINGER, &linger); err != nil {
					t.Fatal(err)
				}
				closeOnce(&h.app)
				if _, err := patiently.read(h.proxy, make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
					t.Errorf("the proxy reads %v", err)
				}
			},
			"proxy resets": func(t *testing.T, h *hopPair) {
				linger := unix.Linger{Onoff: 1}
				if err := unix.SetsockoptLinger(h.proxy, unix.SOL_SOCKET, unix.SO_LINGER, &linger); err != nil {
					t.Fatal(err)
				}
				closeOnce(&h.proxy)
				if _, err := patiently.read(h.app, make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
					t.Errorf("the application reads %v", err)
				}
			},
		} {
			t.Run(kind.name+"/"+name, func(t *testing.T) {
				h := w.hop(kind)
				h.exchange(10)
				if !w.isSpliced(h.key) {
					t.Fatal("not spliced")
				}
				test(t, h)
				h.close()
			})
		}
	}
	for deadline := time.Now().Add(time.Minute); ; elapse(firstPause) {
		left, err := contents[uint64, bpf.CaptureHop](w.kernel.maps[bpf.CaptureMapHops])
		if err != nil {
			t.Fatal(err)
		}
		if len(left) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d hops are on record, and none is open", len(left))
		}
	}
}

// half sends something and then the end.
func (h *hopPair) half(t *testing.T, from, to int) {
	t.Helper()
	message := randomBytes(3, 3000)
	if err := patiently.write(from, message); err != nil {
		t.Fatal(err)
	}
	if err := unix.Shutdown(from, unix.SHUT_WR); err != nil {
		t.Fatal(err)
	}
	if err := patiently.expect(to, message); err != nil {
		t.Fatal(err)
	}
}

// TestHopMany makes many short connections at once.
func TestHopMany(t *testing.T) {
	w := newHopWorld(t)
	var wg sync.WaitGroup
	for i := range 40 {
		h := w.hop(hopKinds[i%len(hopKinds)])
		wg.Go(func() {
			defer h.close()
			for size := 1; size < 50_000; size *= 3 {
				message := randomBytes(uint64(size+i), size)
				for _, err := range []error{
					patiently.write(h.app, message), patiently.expect(h.proxy, message),
					h.send(message), patiently.expect(h.app, message),
				} {
					if err != nil {
						t.Error(err)
						return
					}
				}
			}
		})
	}
	wg.Wait()
}
