// SPDX-License-Identifier: Apache-2.0

package machines

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/meshproxy/meshproxy/tests/vm"
)

// nextVersion is what the machines are upgraded to: the same sources, which
// make another binary by their version.
const nextVersion = "v999.0.0"

// product is the Debian package, as users get it, and the one after it.
func product(t *testing.T) []vm.File {
	t.Helper()
	return []vm.File{
		{Path: "/srv/meshproxy.deb", From: makePackage(t)},
		{Path: "/srv/next.deb", From: makePackage(t, "VERSION="+nextVersion)},
	}
}

func makePackage(t *testing.T, variables ...string) string {
	t.Helper()
	root := filepath.Join("..", "..")
	build := exec.Command("make", append([]string{"-C", root, "packages"}, variables...)...)
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("make packages: %v\n%s", err, out)
	}
	found, err := filepath.Glob(filepath.Join(root, "dist", "*.deb"))
	if err != nil || len(found) != 1 {
		t.Fatalf("there are %d Debian packages", len(found))
	}
	kept := filepath.Join(t.TempDir(), "meshproxy.deb")
	if out, err := exec.Command("cp", found[0], kept).CombinedOutput(); err != nil {
		t.Fatalf("keep package: %v: %s", err, out)
	}
	return kept
}

// install installs the product, configures it and starts it.
func install(t *testing.T, h *host) {
	t.Helper()
	h.Shell(t, `
		dpkg --install /srv/meshproxy.deb
		cp /srv/etc/*.yaml /etc/meshproxy/
		cp -r /srv/ca /var/lib/meshproxy/ca
		systemctl enable --now meshproxy`)
}

// slow is for an emulated processor: the unit's times are those of real ones.
const slow = "[Service]\nTimeoutStartSec=15min\n"

const dropIns = "/etc/systemd/system/meshproxy.service.d"

// remove takes the product off the machine, configuration and state included.
func remove(t *testing.T, h *host) {
	t.Helper()
	h.Shell(t, "dpkg --purge meshproxy; rm -r "+dropIns)
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
