// SPDX-License-Identifier: Apache-2.0

package machines

import (
	"os/exec"
	"path/filepath"
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

// remove takes the product off the machine, configuration and state included.
func remove(t *testing.T, h *host) {
	t.Helper()
	h.Run(t, "dpkg", "--purge", "meshproxy")
}
