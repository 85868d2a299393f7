// SPDX-License-Identifier: Apache-2.0

package machines

import (
	"strings"
	"testing"
)

// testReboot: one machine is rebooted, the other loses power. The first packet
// of each workload at boot is in the mesh, and what the node keeps on disk is
// there.
func testReboot(t *testing.T, s *site) {
	s.b.Run(t, "sync")
	s.both(t, func(t *testing.T, h *host) {
		if h == s.a {
			h.Reboot(t)
		} else {
			h.Reset(t)
		}
	})
	s.both(t, func(t *testing.T, h *host) {
		h.answered(t, "front")
		if got := strings.TrimSpace(h.Run(t, "systemctl", "is-active", "meshproxy")); got != "active" {
			t.Errorf("meshproxy of %s is %s", h.Name(), got)
		}
	})
}

// testStopped: a stop is no hole; what is stopped says so in the kernel.
func testStopped(t *testing.T, s *site) {
	s.a.Run(t, "systemctl", "stop", "meshproxy")
	if r := s.a.dial(t, "back-b:80"); !strings.Contains(r.Stdout, `"error":"`) {
		t.Errorf("with the node stopped, a call came to %s", r.Stdout)
	}
	noHoles(t, s.a)
	s.a.Run(t, "systemctl", "start", "meshproxy")
	s.both(t, func(t *testing.T, h *host) { h.answered(t, "front") })
}
