// SPDX-License-Identifier: Apache-2.0

package machines

import (
	"strings"
	"testing"
)

func testKilled(t *testing.T, s *site) {
	before := s.a.pid(t)
	s.a.Run(t, "systemctl", "kill", "-s", "KILL", "--kill-whom=main", "meshproxy")
	s.a.restarted(t, before)
	s.both(t, func(t *testing.T, h *host) { h.answered(t, "front") })
}

// testHangs: the watchdog ends a process that is there and does nothing.
func testHangs(t *testing.T, s *site) {
	before := s.a.pid(t)
	s.a.Run(t, "kill", "-STOP", before)
	s.a.restarted(t, before)
	s.a.Shell(t, `journalctl -u meshproxy | grep -i "watchdog timeout"`)
	s.both(t, func(t *testing.T, h *host) { h.answered(t, "front") })
}

// testOutOfMemory: the kernel chooses the node when memory is short.
func testOutOfMemory(t *testing.T, s *site) {
	before := s.a.pid(t)
	s.a.Shell(t, "choom -n 1000 -p "+before+" && echo f >/proc/sysrq-trigger")
	s.a.restarted(t, before)
	s.a.Shell(t, `journalctl -k | grep "Killed process `+before+`"`)
	s.both(t, func(t *testing.T, h *host) { h.answered(t, "front") })
}

// testDiskFull: a node runs, and starts, without a byte left on its disk.
func testDiskFull(t *testing.T, s *site) {
	// Reserving blocks is quick; the rest of them takes writing.
	const fill = `
		df --output=avail -B 1 / | tail -n 1 | xargs -I N fallocate -l N /fill || true
		cat /dev/zero >/fill2 2>/dev/null || true
		df --output=avail / | tail -n 1`
	if left := strings.TrimSpace(s.a.Shell(t, fill)); left != "0" {
		t.Fatalf("%s KiB are left on the disk", left)
	}
	call := func(when string) {
		if r := s.a.dial(t, "back-b:80"); r.Code != 0 {
			t.Errorf("%s, a call failed: %s%s", when, r.Stdout, r.Stderr)
		}
	}
	call("with the disk full")
	before := s.a.pid(t)
	s.a.Run(t, "systemctl", "restart", "meshproxy")
	s.a.restarted(t, before)
	call("after a restart with the disk full")
	s.a.Shell(t, "rm -f /fill /fill2")
	s.both(t, func(t *testing.T, h *host) { h.answered(t, "front") })
}
