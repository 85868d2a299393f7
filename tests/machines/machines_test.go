// SPDX-License-Identifier: Apache-2.0

package machines

import (
	"strings"
	"testing"
	"time"
)

// applications are the units of the test, the enrolled ones first.
const applications = "front back knock stranger door"

// TestMachines goes through the life of a node. The steps build on each other.
func TestMachines(t *testing.T) {
	s := newSite(t)
	for _, step := range []struct {
		name string
		run  func(t *testing.T, s *site)
		// outside: the mesh is gone after it.
		outside bool
	}{
		{name: "install", run: testInstall},
		{name: "calls across", run: testCalls},
		{name: "reload", run: testReload},
		{name: "containers", run: testContainers},
		{name: "upgrade", run: testUpgrade},
		{name: "downgrade", run: testDowngrade},
		{name: "restart", run: testRestart},
		{name: "killed", run: testKilled},
		{name: "hangs", run: testHangs},
		{name: "out of memory", run: testOutOfMemory},
		{name: "disk full", run: testDiskFull},
		{name: "reboot", run: testReboot},
		{name: "stopped", run: testStopped},
		{name: "removed", run: testRemoved, outside: true},
		{name: "rpm: installed", run: testRPMInstall},
		{name: "rpm: upgrade", run: testRPMUpgrade},
		{name: "rpm: removed", run: testRPMRemoved, outside: true},
	} {
		begin := time.Now()
		ok := t.Run(step.name, func(t *testing.T) {
			step.run(t, s)
			if !step.outside {
				s.both(t, noHoles)
			}
		})
		s.summary.step(step.name, ok, time.Since(begin))
		if !ok {
			s.both(t, diagnose)
			t.FailNow()
		}
	}
}

// noHoles: nothing of the mesh has gone beside it, and nothing from beside it
// has come in.
func noHoles(t *testing.T, h *host) {
	if got := h.holes(t); got != "0\n0" {
		t.Errorf("on %s, connections outside the mesh (of knock at the other's door, of the stranger): %q\n%s", h.Name(), got,
			h.Shell(t, "grep -h accepted /var/log/door.log | tail -n 3; grep -v '\"requests\":0,' /var/log/stranger.log | tail -n 3"))
	}
}

func diagnose(t *testing.T, h *host) {
	t.Logf("%s:\n%s", h.Name(), h.Try(t, "sh", "-c",
		"systemctl status meshproxy; journalctl -n 40 --no-pager -u meshproxy; tail -n 3 /var/log/*.log; meshproxy status; journalctl -n 40 --no-pager -u pod -u box -u cell -u meshproxy-netns").Stdout)
}

func testCalls(t *testing.T, s *site) {
	s.both(t, func(t *testing.T, h *host) {
		h.answered(t, "front")
		out := h.dial(t, "back-"+h.other+":80").Stdout
		if !strings.Contains(out, `\"server\":\"back-`+h.other+`\"`) || !strings.Contains(out, `\"peer\":\"`+h.addr+`:`) {
			t.Errorf("front of %s was answered %s", h.Name(), out)
		}
		// On the same machine, too.
		if out := h.dial(t, "back-"+h.Name()+":80").Stdout; !strings.Contains(out, `\"server\":\"back-`+h.Name()+`\"`) {
			t.Errorf("front of %s was answered %s", h.Name(), out)
		}
		// What policy does not allow: knock may call nobody.
		h.Eventually(t, "knock is refused", `tail -n 1 /var/log/knock.log | grep '"requests":0,"errors":[1-9].*ECONNREFUSED'`)
	})
}
