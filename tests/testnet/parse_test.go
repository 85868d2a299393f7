// SPDX-License-Identifier: Apache-2.0

package testnet

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseMountInfo(t *testing.T) {
	for _, tc := range []struct {
		name, text string
		want       []mount
	}{
		{"unified", "29 23 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw\n", []mount{{"/", "/sys/fs/cgroup", "cgroup2"}}},
		{"no optional fields", "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 none rw\n", []mount{{"/", "/sys/fs/cgroup/unified", "cgroup2"}}},
		{"escapes", `5 1 0:1 /a\040b /mnt/c\134d rw - tmpfs tmpfs rw` + "\n", []mount{{"/a b", `/mnt/c\d`, "tmpfs"}}},
		{"malformed", "nonsense\n1 2 3 - x\n", nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if diff := cmp.Diff(tc.want, parseMountInfo(tc.text), cmp.AllowUnexported(mount{})); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestParseOwner(t *testing.T) {
	o, err := currentOwner()
	if err != nil {
		t.Fatal(err)
	}
	if got, ok := parseOwner(o.name()); !ok || got != o || !got.alive() {
		t.Errorf("own name reads as %+v, %v", got, ok)
	}
	if (owner{pid: o.pid, start: o.start + 1}).alive() {
		t.Error("a process with another start time counts as the same")
	}
	for _, name := range []string{"", "x", "1-2", "1-2-x", "1-2-3-4", ".lock"} {
		if _, ok := parseOwner(name); ok {
			t.Errorf("%q reads as a topology's name", name)
		}
	}
}

func TestCountAcross(t *testing.T) {
	for _, tc := range []struct {
		name, tail, payload string
		want                uint64
	}{
		{"inside", "", "xxabcxxabc", 2},
		{"across", "xxa", "bcxx", 1},
		{"only in the tail, counted before", "abc", "xx", 0},
		{"both", "ab", "cabc", 2},
		{"none", "ab", "abab", 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := countAcross([]byte(tc.tail), []byte(tc.payload), []byte("abc")); got != tc.want {
				t.Errorf("counted %d, want %d", got, tc.want)
			}
		})
	}
}

func FuzzParseFrame(f *testing.F) {
	f.Add([]byte{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, 0, 80, 0, 81, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0, 0, 0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		_, payload, ok := parseFrame(b)
		if ok && len(payload) > len(b) {
			t.Errorf("payload of %d bytes in a frame of %d", len(payload), len(b))
		}
	})
}
