// SPDX-License-Identifier: Apache-2.0

package machines

import (
	"strings"
	"testing"

	"github.com/meshproxy/meshproxy/tests/vm"
)

// The RPM, by the real rpm under a real systemd. The machines are Debian's, whose
// rpm knows no packages but this one: --nodeps. What counts here is what the
// package brings and what its scriptlets do; tests/packages compares its files.

var rpmPackages = []string{"rpm"}

// presets are what a distribution, or an administrator, wants of services that
// are installed.
var presets = map[string]string{"a": "enabled", "b": "disabled"}

// testRPMInstall: whether the service starts at boot is for the presets to say;
// once it is started, the applications are in the mesh.
func testRPMInstall(t *testing.T, s *site) {
	s.both(t, func(t *testing.T, h *host) {
		h.Put(t, vm.File{
			Path:    "/etc/systemd/system-preset/10-test.preset",
			Content: strings.TrimSuffix(presets[h.Name()], "d") + " meshproxy.service\n",
		})
		h.Run(t, "rpm", "--install", "--nodeps", "/srv/meshproxy.rpm")
		if got := strings.TrimSpace(h.Try(t, "systemctl", "is-enabled", "meshproxy").Stdout); got != presets[h.Name()] {
			t.Errorf("meshproxy of %s is %s, the preset says %s", h.Name(), got, presets[h.Name()])
		}
		if left := h.Shell(t, inKernel); left != "" {
			t.Errorf("nobody has started the service of %s, and this is in the kernel:\n%s", h.Name(), left)
		}
	})
	s.enrolled(t, "")
	s.both(t, func(t *testing.T, h *host) { h.answered(t, "front") })
}

// testRPMUpgrade is testUpgrade and testDowngrade.
func testRPMUpgrade(t *testing.T, s *site) {
	s.replaced(t, "upgrade by rpm", "rpm --upgrade --nodeps /srv/next.rpm", nextVersion)
	s.replaced(t, "downgrade by rpm", "rpm --upgrade --oldpackage --nodeps /srv/meshproxy.rpm", "")
	s.both(t, func(t *testing.T, h *host) { h.answered(t, "front") })
}

// testRPMRemoved: a removal leaves nothing in the kernel and the configuration on
// the disk, and what the documentation says of a purge leaves nothing.
func testRPMRemoved(t *testing.T, s *site) {
	s.both(t, func(t *testing.T, h *host) {
		h.Run(t, "rpm", "--erase", "meshproxy")
		if left := h.Shell(t, "find /sys/fs/bpf -iname '*meshproxy*';"+inKernel); left != "" {
			t.Errorf("on %s, this is left in the kernel:\n%s", h.Name(), left)
		}
		h.Shell(t, "grep nodes: /etc/meshproxy/mesh.yaml; grep trustDomain /etc/meshproxy/meshproxy.yaml.rpmsave; test -d /var/lib/meshproxy/ca")
		// docs/systemd.md; tests/packages compares.
		h.Shell(t, "rm -rf /etc/meshproxy /var/lib/meshproxy && userdel meshproxy && userdel meshproxy-netns; rm -r "+dropIns)
		nothingLeft(t, h)
	})
	s.both(t, direct)
}
