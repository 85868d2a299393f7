// SPDX-License-Identifier: Apache-2.0

package machines

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/meshproxy/meshproxy/tests/vm"
)

// applications are the units of the test, the enrolled ones first.
const applications = "front back knock stranger door"

// TestMachines goes through the life of a node. The steps build on each other.
func TestMachines(t *testing.T) {
	s := newSite(t)
	summary := newSummary(t)
	for _, step := range []struct {
		name string
		run  func(t *testing.T, s *site)
	}{
		{"install", testInstall},
		{"calls across", testCalls},
		{"reload", testReload},
		{"upgrade", testUpgrade},
		{"killed", testKilled},
		{"hangs", testHangs},
		{"out of memory", testOutOfMemory},
		{"disk full", testDiskFull},
		{"reboot", testReboot},
		{"power cut", testPowerCut},
		{"stopped", testStopped},
		{"removed", testRemoved},
	} {
		begin := time.Now()
		ok := t.Run(step.name, func(t *testing.T) {
			step.run(t, s)
			if step.name != "removed" {
				s.both(t, noHoles)
			}
		})
		summary.add(step.name, ok, time.Since(begin))
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
		"systemctl status meshproxy; journalctl -n 40 --no-pager -u meshproxy; tail -n 3 /var/log/front.log /var/log/knock.log; meshproxy status").Stdout)
}

// testInstall: the applications run before the mesh comes, and are in it as
// soon as it is there.
func testInstall(t *testing.T, s *site) {
	s.both(t, func(t *testing.T, h *host) {
		h.Shell(t, "systemctl enable --quiet --now "+applications)
		h.Eventually(t, "what is outside shows", `grep -q accepted /var/log/door.log`)
	})
	s.both(t, func(t *testing.T, h *host) {
		install(t, h)
		if got := strings.TrimSpace(h.Run(t, "systemctl", "is-active", "meshproxy")); got != "active" {
			t.Errorf("meshproxy is %s", got)
		}
		// What is open stays as it is; what was seen so far does not count.
		h.Shell(t, "systemctl restart knock stranger")
	})
	s.both(t, func(t *testing.T, h *host) { h.Shell(t, "truncate -s 0 /var/log/door.log /var/log/stranger.log") })
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

// testReload: a reload keeps the process and the connections.
func testReload(t *testing.T, s *site) {
	s.both(t, func(t *testing.T, h *host) {
		before := h.pid(t)
		h.Shell(t, "sed -i 's/level: info/level: warn/' /etc/meshproxy/meshproxy.yaml; systemctl reload meshproxy")
		h.Eventually(t, "the new configuration is in force", "meshproxy config show --running | grep log.level | tee /dev/stderr | grep warn")
		// One that is not valid changes nothing.
		h.Shell(t, "echo nonsense: 1 >>/etc/meshproxy/meshproxy.yaml; systemctl reload meshproxy || true; sed -i '/^nonsense/d' /etc/meshproxy/meshproxy.yaml; systemctl reload meshproxy")
		if after := h.pid(t); after != before {
			t.Errorf("the process was %s and is %s", before, after)
		}
	})
	s.both(t, func(t *testing.T, h *host) { h.answered(t, "front") })
}

// testUpgrade: the next package takes over under load, and none of the calls
// fails, neither those over connections that are open nor new ones.
func testUpgrade(t *testing.T, s *site) {
	before := s.a.pid(t)
	s.a.Run(t, "systemctl", "start", "load")
	s.a.Eventually(t, "load is up", `grep '"errors":0,' /var/log/load.log`)
	s.a.Shell(t, "truncate -s 0 /var/log/load.log /var/log/front.log")
	s.a.Run(t, "dpkg", "--install", "/srv/next.deb")
	s.a.restarted(t, before)
	s.a.Eventually(t, "the new version serves", "meshproxy status | grep '"+nextVersion+"'")
	s.both(t, func(t *testing.T, h *host) { h.answered(t, "front") })
	s.a.answered(t, "load")
	s.a.Run(t, "systemctl", "stop", "load")
	if failed := s.a.Shell(t, `grep -h '"event":"stats"' /var/log/load.log /var/log/front.log | grep -v '"errors":0,' || true`); failed != "" {
		t.Errorf("calls failed during the upgrade:\n%s", failed)
	}
}

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
	fill := `dd if=/dev/zero of=/fill bs=1M 2>/dev/null || dd if=/dev/zero of=/fill2 bs=512 2>/dev/null || true; df --output=avail / | tail -n 1`
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

// testReboot: the first packet of each workload at boot is in the mesh.
func testReboot(t *testing.T, s *site) {
	s.a.Reboot(t)
	booted(t, s)
}

// testPowerCut: what the node keeps on disk survives.
func testPowerCut(t *testing.T, s *site) {
	s.b.Run(t, "sync")
	s.b.Reset(t)
	booted(t, s)
}

func booted(t *testing.T, s *site) {
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

// testRemoved: nothing is left, in the kernel either, and applications go on
// directly.
func testRemoved(t *testing.T, s *site) {
	s.both(t, func(t *testing.T, h *host) {
		remove(t, h)
		left := h.Shell(t, `
			find / -xdev -iname '*meshproxy*' -not -path '/srv/*' -not -path '/proc/*' -not -path '/var/log/*' -not -path '/var/lib/systemd/*'
			find /sys/fs/bpf /run /sys/fs/cgroup -iname '*meshproxy*' || true
			bpftool prog show | grep -E 'cgroup_sock_addr|sock_ops|sk_lookup|raw_tracepoint|sk_msg|sk_skb' || true
			bpftool link show || true
			getent passwd meshproxy || true`)
		if left != "" {
			t.Errorf("on %s, this is left:\n%s", h.Name(), left)
		}
	})
	s.both(t, func(t *testing.T, h *host) {
		// The doors that were shut all the while.
		h.Eventually(t, "nothing is captured", `grep -q accepted /var/log/door.log`)
		h.answered(t, "knock", "stranger")
	})
}

// summary is a file beside the logs.
type summary struct{ path string }

func newSummary(t *testing.T) *summary {
	t.Helper()
	dir, err := vm.LogDir()
	if err != nil {
		t.Fatal(err)
	}
	s := &summary{path: filepath.Join(dir, t.Name(), "summary.txt")}
	if err := os.WriteFile(s.path, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		text, err := os.ReadFile(s.path)
		if err != nil {
			t.Error(err)
		}
		t.Logf("%s:\n%s", s.path, text)
	})
	return s
}

func (s *summary) add(step string, ok bool, took time.Duration) {
	f, err := os.OpenFile(s.path, os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return
	}
	defer f.Close()
	verdict := "passed"
	if !ok {
		verdict = "FAILED"
	}
	fmt.Fprintf(f, "%-16s %s %5.1f s\n", step, verdict, took.Seconds())
}
