// SPDX-License-Identifier: Apache-2.0

package machines

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// testReload: a reload keeps the process and the connections.
func testReload(t *testing.T, s *site) {
	s.both(t, func(t *testing.T, h *host) {
		before := h.pid(t)
		h.Shell(t, "truncate -s 0 /var/log/front.log")
		h.Shell(t, "sed -i 's/level: info/level: warn/' /etc/meshproxy/meshproxy.yaml; systemctl reload meshproxy")
		h.Eventually(t, "the new configuration is in force", "meshproxy config show --running | grep log.level | tee /dev/stderr | grep warn")
		// One that is not valid changes nothing.
		h.Shell(t, "echo nonsense: 1 >>/etc/meshproxy/meshproxy.yaml; systemctl reload meshproxy || true; sed -i '/^nonsense/d' /etc/meshproxy/meshproxy.yaml; systemctl reload meshproxy")
		if after := h.pid(t); after != before {
			t.Errorf("the process was %s and is %s", before, after)
		}
	})
	s.both(t, func(t *testing.T, h *host) {
		h.answered(t, "front")
		unharmed(t, h, "front")
	})
}

// testUpgrade: the next package takes over under load, and so does the one
// before it: none of the calls fails, neither those over connections that are
// open nor new ones. The old process goes when what it had is done.
func testUpgrade(t *testing.T, s *site) {
	s.a.configure(t, "drainTimeout", "1h")
	first := s.a.pid(t)
	s.b.Shell(t, "truncate -s 0 /var/log/front.log")
	s.replaced(t, "upgrade", "dpkg --install /srv/next.deb", nextVersion)
	s.both(t, func(t *testing.T, h *host) {
		h.answered(t, "front")
		unharmed(t, h, "front")
		h.Run(t, "systemctl", "restart", "front")
	})
	s.a.Eventually(t, "the process before has ended", "! kill -0 "+first)
	s.a.configure(t, "drainTimeout", "3s")
}

// testDowngrade: back to the version before is no different.
func testDowngrade(t *testing.T, s *site) {
	s.replaced(t, "downgrade", "dpkg --install /srv/meshproxy.deb", "")
}

// replaced installs another version on a under load: another process takes over,
// and the service was never stopped. An empty version is that of these sources.
func (s *site) replaced(t *testing.T, what, command, version string) {
	t.Helper()
	const active = "systemctl show -P ActiveEnterTimestampMonotonic meshproxy"
	before, since := s.a.pid(t), s.a.Shell(t, active)
	s.underLoad(t, what, func() { s.a.Shell(t, command) }, s.a, s.b)
	s.a.restarted(t, before)
	serves := "meshproxy status | tee /dev/stderr | grep -E '^ *running ' | "
	if version == "" {
		serves += "grep -v '" + nextVersion + "'"
	} else {
		serves += "grep '" + version + "'"
	}
	s.a.Eventually(t, "the version of the package serves", serves)
	if now := s.a.Shell(t, active); now != since {
		t.Errorf("the service was stopped for the %s: active since %s, and before it since %s", what, now, since)
	}
}

// testRestart: what a's workloads attempt while there is no process waits for the
// next one. What others attempt waits for as long as the nodes there do: shorter
// than an emulated processor takes to start a process.
func testRestart(t *testing.T, s *site) {
	// An emulated processor takes many times as long as a real one to start it.
	s.a.configure(t, "restartTimeout", "10m")
	before := s.a.pid(t)
	s.underLoad(t, "restart", func() { s.a.Run(t, "systemctl", "restart", "meshproxy") }, s.a)
	if after := s.a.pid(t); after == before {
		t.Errorf("the process is still %s", before)
	}
	s.a.configure(t, "restartTimeout", "5s")
	s.both(t, func(t *testing.T, h *host) { h.answered(t, "front") })
}

// underLoad does something to a while both machines' workloads make connections
// across, and those of some must not notice. How long the attempts took is told,
// and no matter here.
func (s *site) underLoad(t *testing.T, what string, do func(), unnoticed ...*host) {
	t.Helper()
	s.both(t, func(t *testing.T, h *host) {
		h.Run(t, "systemctl", "start", "load")
		h.answered(t, "load")
		h.Shell(t, "truncate -s 0 /var/log/load.log")
	})
	do()
	s.both(t, func(t *testing.T, h *host) {
		h.answered(t, "load")
		calls := h.calls(t, "load")
		s.summary.note(fmt.Sprintf("%s of a, from %s: %d connections, %d failed, the longest took %v %s",
			what, h.Name(), calls.Requests, calls.Errors, time.Duration(calls.Max)*time.Microsecond, calls.Error))
		if slices.Contains(unnoticed, h) {
			unharmed(t, h, "load")
		}
		h.Run(t, "systemctl", "stop", "load")
	})
}

// unharmed checks that no call of a unit has failed since its log was cut.
func unharmed(t *testing.T, h *host, unit string) {
	t.Helper()
	sum := h.calls(t, unit)
	if sum.Errors != 0 || sum.Requests == 0 {
		t.Errorf("of the calls of %s on %s, %d succeeded and %d failed with %q:\n%s", unit, h.Name(), sum.Requests, sum.Errors, sum.Error,
			strings.TrimSpace(h.Shell(t, `grep -v '"errors":0,' /var/log/`+unit+".log || true")))
	}
}
