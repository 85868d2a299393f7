// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"strings"
	"testing"
)

// TestMachinesMeet: two kernels that meet, keep what was written over a reboot, and
// say how commands ended.
func TestMachinesMeet(t *testing.T) {
	lan := NewSwitch(t)
	machines := BootAll(t,
		Options{Name: "a", Switch: lan, Addresses: []string{"10.77.0.1/24", "fd00:77::1/64"}},
		Options{Name: "b", Switch: lan, Addresses: []string{"10.77.0.2/24", "fd00:77::2/64"}, Files: []File{{Path: "/srv/there", Content: "from the start"}}})
	a, b := machines[0], machines[1]

	// Other kernels are what tests/kernels is about.
	for _, machine := range machines {
		if got := machine.Run(t, "uname", "-r"); !strings.HasPrefix(got, "6.1.") {
			t.Errorf("%s runs %s, want Debian's 6.1", machine.Name(), got)
		}
	}
	// A machine runs commands before its addresses are there.
	a.Eventually(t, "a reaches b", "ping -c 1 -w 30 10.77.0.2")
	b.Eventually(t, "b reaches a", "ping -c 1 -w 30 fd00:77::1")

	if r := a.Try(t, "sh", "-c", "echo out; echo err >&2; exit 7"); r.Code != 7 || r.Stdout != "out\n" || r.Stderr != "err\n" {
		t.Errorf("a command that fails: %+v", r)
	}
	if r := a.Try(t, "sh", "-c", "kill -9 $$"); r.Code != 137 {
		t.Errorf("a command that is killed: %+v", r)
	}

	large := strings.Repeat("0123456789abcdef", 1<<16)
	b.Put(t, File{Path: "/srv/large", Content: large})
	b.Reboot(t)
	if got := string(b.Get(t, "/srv/large")); got != large {
		t.Errorf("after a reboot, the file has %d bytes, not %d", len(got), len(large))
	}
	if got := string(b.Get(t, "/srv/there")); got != "from the start" {
		t.Errorf("the file of the options has %q", got)
	}
	a.Eventually(t, "a reaches b again", "ping -c 1 -w 30 fd00:77::2")
}
