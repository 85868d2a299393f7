// SPDX-License-Identifier: Apache-2.0

package h2

import (
	"errors"
	"slices"
	"strconv"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// lone is a client's stream whose windows do not matter.
func lone(t testing.TB) (*owner, *Stream) {
	t.Helper()
	o := newTestClient(nil)
	err := o.conn.Feed(cat(settingsFrame(settingInitialWindowSize, 1<<30), raw(frameWindowUpdate, 0, 0, be32(1<<30)...)))
	if err != nil {
		t.Fatal(err)
	}
	block, _ := ConnectBlock("web:80")
	s, err := o.conn.Open(o, block, nil)
	if err != nil {
		t.Fatal(err)
	}
	o.take()
	o.records = nil
	return o, s
}

func lens(iov [][]byte) (n []int) {
	for _, b := range iov {
		n = append(n, len(b))
	}
	return n
}

// TestSlotsFillRecords: header and payload are whole records, and the first slot
// is the rest of the open one when that is worth it.
func TestSlotsFillRecords(t *testing.T) {
	full := slices.Repeat([]int{16375}, 15)
	for _, tc := range []struct {
		name    string
		before  int // payload of a frame that is there already
		max     int
		slots   []int
		records []int // after all of it was committed
	}{
		{"nothing before", 0, 1 << 20, append([]int{16375}, full...), slices.Repeat([]int{RecordSize}, 16)},
		{"rest of a record", 1000, 1 << 20, append([]int{16384 - 1009 - 9}, full...), slices.Repeat([]int{RecordSize}, 16)},
		{"rest too small", 16000, 1 << 20, append([]int{16375}, full...), append([]int{16009}, slices.Repeat([]int{RecordSize}, 16)...)},
		{"rest too small for bulk, not for a message", 16000, 300, []int{300}, []int{16009 + 309}},
		{"message larger than the rest", 16300, 100, []int{100}, []int{16309, 109}},
		{"small", 0, 64, []int{64}, []int{73}},
		{"two records", 0, 16376, []int{16375, 1}, []int{16384, 10}},
		{"nothing wanted", 0, 0, nil, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			o, s := lone(t)
			if tc.before > 0 {
				s.Write(make([]byte, tc.before))
			}
			iov := s.Reserve(tc.max, nil)
			if diff := cmp.Diff(tc.slots, lens(iov)); diff != "" {
				t.Fatalf("slots (-want +got):\n%s", diff)
			}
			n := 0
			for _, slot := range iov {
				n += len(slot)
				if cap(slot) != len(slot) {
					t.Error("a slot reaches beyond its end")
				}
			}
			s.Commit(n)
			o.flush()
			if diff := cmp.Diff(tc.records, o.records); diff != "" {
				t.Fatalf("records (-want +got):\n%s", diff)
			}
		})
	}
}

// TestCommitOfLess: what readv did not fill leaves no trace.
func TestCommitOfLess(t *testing.T) {
	for _, n := range []int{0, 1, 16374, 16375, 16376, 40000} {
		o, s := lone(t)
		iov := s.Reserve(1<<20, nil)
		for i, slot := range iov {
			for j := range slot {
				slot[j] = byte(i)
			}
		}
		s.Commit(n)
		if s.Write([]byte("tail")) != 4 {
			t.Fatal("no room behind the commit")
		}
		s.CloseWrite()
		var want []string
		for rest := n; rest > 0; rest -= 16375 {
			want = append(want, "DATA 1 "+strconv.Itoa(min(rest, 16375)))
		}
		want = append(want, "DATA 1 4 END")
		if diff := cmp.Diff(want, describe(t, o.take())); diff != "" {
			t.Errorf("%d (-want +got):\n%s", n, diff)
		}
	}
}

// TestEndRidesOnData only when the stream's own DATA is the latest frame.
func TestEndRidesOnData(t *testing.T) {
	o, s := lone(t)
	s.Write([]byte("x"))
	o.conn.Ping(1)
	s.CloseWrite()
	if diff := cmp.Diff([]string{"DATA 1 1", "PING", "DATA 1 0 END"}, describe(t, o.take())); diff != "" {
		t.Error(diff)
	}
	o, s = lone(t)
	s.Write([]byte("x"))
	o.flush()
	s.CloseWrite()
	if diff := cmp.Diff([]string{"DATA 1 1", "DATA 1 0 END"}, describe(t, o.take())); diff != "" {
		t.Error(diff)
	}
}

// TestReservationGivenUp: a frame in between, such as the reset after a read error,
// takes the place of the reserved slots.
func TestReservationGivenUp(t *testing.T) {
	o, s := lone(t)
	s.Reserve(1000, nil)
	s.Reset(ConnectError)
	s.Commit(0)
	if diff := cmp.Diff([]string{"RST 1 CONNECT_ERROR"}, describe(t, o.take())); diff != "" {
		t.Error(diff)
	}
	o, s = lone(t)
	s.Reserve(1000, nil)
	s.Commit(0)
	if o.conn.out != nil || o.conn.Pending() != 0 {
		t.Error("a batch is held for nothing")
	}
	defer func() {
		if recover() == nil {
			t.Error("commit of more than was reserved is taken")
		}
	}()
	s.Reserve(10, nil)
	s.Commit(11)
}

// TestControlFramesFitAFullBatch and do not make room for more data.
func TestControlFramesFitAFullBatch(t *testing.T) {
	o, s := lone(t)
	for s.Write(make([]byte, 1<<20)) > 0 {
	}
	for i := range 3000 {
		o.conn.Ping(uint64(i))
	}
	if n := s.Write(make([]byte, 1<<20)); n != 0 {
		t.Errorf("%d bytes taken behind the control frames", n)
	}
	pings := 0
	for _, l := range describe(t, o.take()) {
		if l == "PING" {
			pings++
		}
	}
	if pings != 3000 {
		t.Errorf("%d PINGs", pings)
	}
	for _, n := range o.records {
		if n > RecordSize {
			t.Errorf("record of %d bytes", n)
		}
	}
	if n := o.conn.cfg.Batches.lent; n != 0 {
		t.Errorf("%d batches are lent", n)
	}
}

// TestWriteError: the output is lost, nobody is woken, nothing is kept.
func TestWriteError(t *testing.T) {
	o, s := lone(t)
	for s.Write(make([]byte, 1<<20)) > 0 {
	}
	o.takeLog()
	if _, err := o.conn.WriteTo(brokenWriter{}); err != errBroken {
		t.Errorf("error is %v", err)
	}
	if len(o.log) > 0 || o.conn.Pending() > 0 {
		t.Errorf("told %q, %d pending", o.log, o.conn.Pending())
	}
}

var errBroken = errors.New("broken")

type brokenWriter struct{}

func (brokenWriter) Write([]byte) (int, error) { return 0, errBroken }
