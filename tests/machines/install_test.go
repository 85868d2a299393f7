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

// product is both packages, as users get them, and the ones after them.
func product(t *testing.T) []vm.File {
	t.Helper()
	return append(makePackages(t, "meshproxy"), makePackages(t, "next", "VERSION="+nextVersion)...)
}

// makePackages returns the packages as files of a machine, below /srv.
func makePackages(t *testing.T, name string, variables ...string) []vm.File {
	t.Helper()
	root := filepath.Join("..", "..")
	build := exec.Command("make", append([]string{"-C", root, "packages"}, variables...)...)
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("make packages: %v\n%s", err, out)
	}
	var files []vm.File
	for _, format := range []string{"deb", "rpm"} {
		found, err := filepath.Glob(filepath.Join(root, "dist", "*."+format))
		if err != nil || len(found) != 1 {
			t.Fatalf("there are %d packages *.%s", len(found), format)
		}
		kept := filepath.Join(t.TempDir(), "package")
		if out, err := exec.Command("cp", found[0], kept).CombinedOutput(); err != nil {
			t.Fatalf("keep package: %v: %s", err, out)
		}
		files = append(files, vm.File{Path: "/srv/" + name + "." + format, From: kept})
	}
	return files
}

// install installs a package, configures the product and starts it.
func install(t *testing.T, h *host, command string) {
	t.Helper()
	h.Shell(t, command+`
		cp /srv/etc/*.yaml /etc/meshproxy/
		rm -rf /var/lib/meshproxy/ca && cp -r /srv/ca /var/lib/meshproxy/ca
		systemctl enable --now meshproxy`)
	if got := strings.TrimSpace(h.Run(t, "systemctl", "is-active", "meshproxy")); got != "active" {
		t.Errorf("meshproxy of %s is %s", h.Name(), got)
	}
}

// slow is for an emulated processor: the unit's times are those of real ones. One
// that stands still for some seconds is no process that hangs.
const slow = `[Service]
TimeoutStartSec=15min
WatchdogSec=30s
Environment=MESHPROXY_BPF_PROXY_TIMEOUT=20s
`

const dropIns = "/etc/systemd/system/meshproxy.service.d"

// testInstall: the applications run before the mesh comes, and are in it as
// soon as it is there.
func testInstall(t *testing.T, s *site) {
	s.both(t, func(t *testing.T, h *host) {
		h.Shell(t, "systemctl enable --quiet --now "+applications)
		h.Eventually(t, "what is outside shows", `grep -q accepted /var/log/door.log`)
	})
	s.enrolled(t, "dpkg --install /srv/meshproxy.deb")
	s.both(t, func(t *testing.T, h *host) {
		// What this kernel lacks.
		h.Eventually(t, "the findings of check show", "systemctl status --no-pager --full --lines=1000 meshproxy | tee /dev/stderr | grep 'check: .*kfunc bpf_rdonly_cast'")
		// Before all units that have not asked for something else.
		h.Shell(t, "systemctl show -P Before meshproxy | tee /dev/stderr | grep network-pre.target | grep basic.target")
	})
}

// enrolled installs the product on both machines, whose applications run.
func (s *site) enrolled(t *testing.T, command string) {
	t.Helper()
	s.both(t, func(t *testing.T, h *host) {
		h.Put(t, vm.File{Path: dropIns + "/slow.conf", Content: slow})
		install(t, h, command)
		// What is open stays as it is; what was seen so far does not count.
		h.Shell(t, "systemctl restart knock stranger")
	})
	s.both(t, func(t *testing.T, h *host) { h.Shell(t, "truncate -s 0 /var/log/door.log /var/log/stranger.log") })
}

// testRemoved: a purge leaves nothing, in the kernel either, and applications go
// on directly.
func testRemoved(t *testing.T, s *site) {
	s.both(t, func(t *testing.T, h *host) {
		h.Shell(t, "dpkg --purge meshproxy; rm -r "+dropIns)
		nothingLeft(t, h)
	})
	s.both(t, direct)
}

// nothingLeft wants nothing of the product to be on the machine, nor in its
// kernel.
func nothingLeft(t *testing.T, h *host) {
	t.Helper()
	left := h.Shell(t, inKernel+`
		find / -xdev -iname '*meshproxy*' -not -path '/srv/*' -not -path '/proc/*' -not -path '/var/log/*' -not -path '/var/lib/systemd/*'
		find /sys/fs/bpf /run /sys/fs/cgroup -iname '*meshproxy*' || true
		grep meshproxy /etc/passwd /etc/group || true`)
	if left != "" {
		t.Errorf("on %s, this is left:\n%s", h.Name(), left)
	}
}

// inKernel lists what of the product is in the kernel.
const inKernel = `
	bpftool prog show | grep -E 'cgroup_sock_addr|sock_ops|sk_lookup|raw_tracepoint|sk_msg|sk_skb' || true
	bpftool link show || true`

// direct wants the doors to be open that were shut all the while.
func direct(t *testing.T, h *host) {
	t.Helper()
	h.Eventually(t, "nothing is captured", `grep -q accepted /var/log/door.log`)
	h.answered(t, "knock", "stranger")
}
