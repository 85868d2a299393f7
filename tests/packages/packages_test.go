// SPDX-License-Identifier: Apache-2.0

package packages

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// The versions that are built; what a package manager compares.
const thisVersion, nextVersion = "v1.0.0", "v1.1.0"

// build makes both packages of a version and keeps them in a directory.
func build(t *testing.T, version string) string {
	t.Helper()
	top, err := filepath.Abs(filepath.Join("..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	kept := t.TempDir()
	script := `make -C "$1" packages VERSION="$2" && cp "$1"/dist/*.deb "$3/meshproxy.deb" && cp "$1"/dist/*.rpm "$3/meshproxy.rpm"`
	if out, err := exec.Command("sh", "-ec", script, "sh", top, version, kept).CombinedOutput(); err != nil {
		t.Fatalf("make packages: %v\n%s", err, out)
	}
	return kept
}

// manager is how a package manager is told what to do with a package.
type manager struct {
	format                              string
	install, upgrade, downgrade, remove string
	purge                               string
	verify                              string
	zsh                                 string
	first                               []string // what systemd is asked for at the first installation only
	config                              string   // what removal leaves of a configuration that was changed
}

var managers = []manager{
	{
		format: "deb", install: "dpkg --install", upgrade: "dpkg --install", downgrade: "dpkg --install",
		remove: "dpkg --remove meshproxy", purge: "dpkg --purge meshproxy", verify: "dpkg --verify meshproxy",
		zsh: "vendor-completions", config: "/etc/meshproxy/meshproxy.yaml",
	},
	{
		// What it needs is there, and rpm's data base doesn't know. The
		// group of the configuration is the node's, which rpm doesn't know
		// before it has installed it.
		format: "rpm", install: "rpm --install --nodeps", upgrade: "rpm --upgrade --nodeps",
		downgrade: "rpm --upgrade --oldpackage --nodeps",
		remove:    "rpm --erase meshproxy", purge: purgeByHand, verify: "rpm --verify --nodeps --nogroup meshproxy",
		first: []string{"--no-reload preset meshproxy.service"},
		zsh:   "site-functions", config: "/etc/meshproxy/meshproxy.yaml.rpmsave",
	},
}

// purgeByHand is what docs/systemd.md says where no package manager purges.
const purgeByHand = "rm -rf /etc/meshproxy /var/lib/meshproxy && userdel meshproxy && userdel meshproxy-netns"

func TestPurgeByHandIsDocumented(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "..", "docs", "systemd.md"))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(text), purgeByHand) {
		t.Errorf("docs/systemd.md doesn't say %q", purgeByHand)
	}
}

// TestPackages: install, upgrade, downgrade, removal and purge.
func TestPackages(t *testing.T) {
	this, next := build(t, thisVersion), build(t, nextVersion)
	for _, p := range managers {
		t.Run(p.format, func(t *testing.T) {
			m := newMachine(t, this, next)
			m.withShells()
			before := m.state()
			file := "/meshproxy." + p.format

			m.sh(p.install + " " + this + file)
			m.asks(append(p.first, "daemon-reload", "--quiet is-active meshproxy.service")...)
			m.installed(p.zsh)
			m.says("", p.verify)
			m.says(thisVersion, versionOf)

			m.sh("touch /run/active; echo '# mine' >>/etc/meshproxy/meshproxy.yaml; touch /var/lib/meshproxy/state")
			for _, change := range []struct{ command, version string }{
				{p.upgrade + " " + next + file, nextVersion},
				{p.downgrade + " " + this + file, thisVersion},
			} {
				m.sh(change.command)
				m.asks("daemon-reload", "--quiet is-active meshproxy.service", "reload meshproxy.service")
				m.says(change.version, versionOf)
				m.says("# mine", "tail -n 1 /etc/meshproxy/meshproxy.yaml")
			}

			captured := m.capture()
			m.sh("rm /run/active")
			m.sh(p.remove)
			m.asks("--quiet disable --now meshproxy.service meshproxy-netns.socket meshproxy-netns.service", "daemon-reload")
			captured.gone()
			m.says("# mine", "tail -n 1 "+p.config+"; test -e /var/lib/meshproxy/state; ! test -e /usr/bin/meshproxy")

			m.sh(p.purge)
			m.asked()
			m.same(before)
		})
	}
}

// TestMake: the same with make install and make uninstall.
func TestMake(t *testing.T) {
	top, err := filepath.Abs(filepath.Join("..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	m := newMachine(t, append(toolchain(t), top)...)
	m.withShells()
	before := m.state()
	for _, version := range []string{thisVersion, nextVersion} {
		m.sh(goEnv(t) + "make -C " + top + " install VERSION=" + version)
		m.says(version, versionOf)
		if version == thisVersion {
			m.asks("daemon-reload", "--quiet is-active meshproxy.service")
			m.installed("vendor-completions")
			m.sh("touch /run/active; echo '# mine' >>/etc/meshproxy/meshproxy.yaml")
			continue
		}
		m.asks("daemon-reload", "--quiet is-active meshproxy.service", "reload meshproxy.service")
		m.says("# mine", "tail -n 1 /etc/meshproxy/meshproxy.yaml")
	}
	captured := m.capture()
	m.sh("rm /run/active; make -C " + top + " uninstall")
	m.asks("--quiet disable --now meshproxy.service meshproxy-netns.socket meshproxy-netns.service", "daemon-reload")
	captured.gone()
	m.sh(purgeByHand)
	m.same(before)
}

// toolchain are the directories of Go's.
func toolchain(t *testing.T) []string {
	t.Helper()
	out, err := exec.Command("go", "env", "GOROOT", "GOMODCACHE", "GOCACHE").Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.Fields(string(out))
}

// goEnv lets Go find them, and write nothing into a home directory.
func goEnv(t *testing.T) string {
	d := toolchain(t)
	return fmt.Sprintf("export HOME=/tmp PATH=%s/bin:$PATH GOMODCACHE=%s GOCACHE=%s; ", d[0], d[1], d[2])
}

// withShells makes the machine one that has fish and zsh, or Fedora's package
// filesystem: the directories for completions are theirs.
func (m *machine) withShells() {
	m.t.Helper()
	m.sh(`for dir in fish/vendor_completions.d zsh/site-functions zsh/vendor-completions; do
		mkdir -p /usr/share/$dir
		touch /usr/share/$dir/of-others
	done`)
}

const versionOf = `meshproxy version | sed 's/.* \(v1[^ ,]*\).*/\1/;q'`

// asks wants systemd to have been asked for something, and nothing else.
func (m *machine) asks(want ...string) {
	m.t.Helper()
	if got := m.asked(); got != strings.Join(want, "\n") {
		m.t.Errorf("systemctl was called with\n%s\nwant\n%s", got, strings.Join(want, "\n"))
	}
}

// installed wants everything where it belongs.
func (m *machine) installed(zsh string) {
	m.t.Helper()
	for path, want := range map[string]string{
		"/usr/bin/meshproxy":                                  "755 root root",
		"/usr/lib/systemd/system/meshproxy.service":           "644 root root",
		"/usr/lib/systemd/system/meshproxy-netns.service":     "644 root root",
		"/usr/lib/systemd/system/meshproxy-netns.socket":      "644 root root",
		"/usr/lib/sysusers.d/meshproxy.conf":                  "644 root root",
		"/usr/lib/tmpfiles.d/meshproxy.conf":                  "644 root root",
		"/etc/meshproxy":                                      "750 root meshproxy",
		"/etc/meshproxy/meshproxy.yaml":                       "640 root meshproxy",
		"/var/lib/meshproxy":                                  "700 meshproxy meshproxy",
		"/sys/fs/bpf/meshproxy":                               "700 meshproxy meshproxy",
		"/usr/share/man/man8/meshproxy.8.gz":                  "644 root root",
		"/usr/share/man/man8/meshproxy-status.8.gz":           "644 root root",
		"/usr/share/man/man5/meshproxy.yaml.5.gz":             "644 root root",
		"/usr/share/bash-completion/completions/meshproxy":    "644 root root",
		"/usr/share/fish/vendor_completions.d/meshproxy.fish": "644 root root",
		"/usr/share/zsh/" + zsh + "/_meshproxy":               "644 root root",
		"/usr/share/doc/meshproxy/full.yaml":                  "644 root root",
	} {
		m.says(want, "stat -c '%a %U %G' "+path)
	}
	m.sh("systemd-analyze verify /usr/lib/systemd/system/meshproxy.service /usr/lib/systemd/system/meshproxy-netns.service")
	m.sh("bash -n /usr/share/bash-completion/completions/meshproxy")
	m.sh("meshproxy config validate")
}
