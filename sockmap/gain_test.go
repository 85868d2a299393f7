// SPDX-License-Identifier: Apache-2.0

package sockmap

import (
	"errors"
	"runtime"
	"slices"
	"testing"
	"time"
)

// TestGain reports what splicing gains (go test -v -run Gain). It only fails
// where something is badly off: other tests run beside it.
func TestGain(t *testing.T) {
	const total = 64 << 20
	w := newSplicing(t)
	for _, splice := range []bool{false, true, false, true} {
		what, paused := "TCP", "to compare"
		if splice {
			what, paused = "spliced", ""
		}
		if err := w.PauseSplicing(paused); err != nil {
			t.Fatal(err)
		}
		for _, size := range []int{64, 16 << 10} {
			t.Logf("%s: round trip of %d bytes, p50 %v", what, size, roundTrip(t, w.pair(virtual4, direct4), size))
		}
		for _, size := range []int{4 << 10, 16 << 10, 64 << 10} {
			p := w.pair(virtual4, direct4)
			start := time.Now()
			bulk(t, p, size, total)
			took := time.Since(start)
			end, _ := w.spliceOf(p.client)
			t.Logf("%s: stream in writes of %d: %.1f Gbit/s, %d messages redirected", what, size,
				8*total/1e9/took.Seconds(), end.Messages)
		}
	}
}

func readAll(fd int, p []byte) error {
	for at := 0; at < len(p); {
		n, err := patiently.read(fd, p[at:])
		if err != nil || n == 0 {
			return errors.Join(errors.New("short read"), err)
		}
		at += n
	}
	return nil
}

func roundTrip(t *testing.T, p *pair, size int) time.Duration {
	t.Helper()
	const rounds = 5000
	go func() {
		runtime.LockOSThread()
		buf := make([]byte, size)
		for range rounds {
			if readAll(p.server, buf) != nil {
				return
			}
			_ = patiently.write(p.server, buf)
		}
	}()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	buf := make([]byte, size)
	took := make([]time.Duration, rounds)
	for i := range took {
		start := time.Now()
		if err := patiently.write(p.client, buf); err != nil {
			t.Fatal(err)
		}
		if err := readAll(p.client, buf); err != nil {
			t.Fatal(err)
		}
		took[i] = time.Since(start)
	}
	slices.Sort(took)
	return took[rounds/2]
}

func bulk(t *testing.T, p *pair, size, total int) {
	t.Helper()
	go func() {
		runtime.LockOSThread()
		buf := make([]byte, size)
		for sent := 0; sent < total; sent += size {
			if patiently.write(p.client, buf) != nil {
				return
			}
		}
	}()
	buf := make([]byte, 256<<10)
	for got := 0; got < total; {
		n, err := patiently.read(p.server, buf)
		if n == 0 || err != nil {
			t.Fatalf("read %d, %v", n, err)
		}
		got += n
	}
}
