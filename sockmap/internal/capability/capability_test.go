// SPDX-License-Identifier: Apache-2.0

package capability

import (
	"testing"

	"golang.org/x/sys/unix"
)

func TestLacks(t *testing.T) {
	for _, tt := range []struct {
		has  []uint
		want string
	}{
		{nil, "CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON"},
		{[]uint{unix.CAP_BPF, unix.CAP_NET_ADMIN}, "CAP_PERFMON"},
		{[]uint{unix.CAP_BPF, unix.CAP_NET_ADMIN, unix.CAP_PERFMON}, ""},
		{[]uint{unix.CAP_SYS_ADMIN}, "CAP_NET_ADMIN"},
		{[]uint{unix.CAP_SYS_ADMIN, unix.CAP_NET_ADMIN}, ""},
	} {
		var s Set
		for _, bit := range tt.has {
			s |= 1 << bit
		}
		if got := s.Lacks(BPF, NetAdmin, PerfMon); got != tt.want {
			t.Errorf("with %v: lacks %q, want %q", tt.has, got, tt.want)
		}
	}
}

func TestEffective(t *testing.T) {
	s, err := Effective()
	if err != nil {
		t.Fatal(err)
	}
	// The tests of this tree run as root.
	if missing := s.Lacks(BPF, NetAdmin, PerfMon); missing != "" {
		t.Errorf("lacks %s", missing)
	}
}
