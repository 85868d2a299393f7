// SPDX-License-Identifier: Apache-2.0

package machines

import (
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

// fill fills the disk, and keeps it full: the journal makes room for itself.
// Reserving blocks is quick; the rest of them takes writing.
const fill = `
	df --output=avail -B 1 / | tail -n 1 | xargs -I N fallocate -l N /fill || true
	systemd-run --quiet --unit=fill sh -c 'while :; do cat /dev/zero >>/fill2; sleep 0.2; done 2>/dev/null'`

// testDiskFull: a node runs, and starts, without a byte left on its disk; and so
// does the helper, for a container that starts then.
func testDiskFull(t *testing.T, s *site) {
	s.a.Shell(t, fill)
	full := func() {
		t.Helper()
		s.a.Eventually(t, "the disk is full", `[ "$(df --output=avail / | tail -n 1 | tee /dev/stderr | xargs)" = 0 ]`)
	}
	full()
	call := func(when string) {
		t.Helper()
		if r := s.a.dial(t, "back-b:80"); r.Code != 0 {
			t.Errorf("%s, a call failed: %s%s", when, r.Stdout, r.Stderr)
		}
		full()
	}
	call("with the disk full")
	before := s.a.pid(t)
	s.a.Run(t, "systemctl", "restart", "meshproxy")
	s.a.restarted(t, before)
	call("after a restart with the disk full")
	s.a.Shell(t, "systemctl stop meshproxy-netns.service; systemctl start cell")
	s.b.Eventually(t, "cell of a is dialled", s.b.dialling(t, "cell:80")+` | tee /dev/stderr | grep '\\"server\\":\\"cell\\"'`)
	full()
	s.a.Shell(t, "systemctl stop cell fill; rm -f /fill /fill2")
	s.both(t, func(t *testing.T, h *host) { h.answered(t, "front") })
}
