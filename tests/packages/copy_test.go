// SPDX-License-Identifier: Apache-2.0

package packages

import (
	"bufio"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// machine is a copy of this one: what is changed there stays there.
type machine struct {
	t      *testing.T
	keeper int    // a process in its mount and network namespaces
	root   string // its root directory, as that process sees it
	// changed is where the file system keeps what differs from this machine.
	changed string
}

// setUp runs in the new namespaces, with a directory, and more of them that are
// to be there as they are here. It ends when its standard input does.
const setUp = `
cd "$1"
mkdir upper work root
mount -t overlay overlay -o lowerdir=/,upperdir=upper,workdir=work root
for at in proc sys dev; do mount --rbind /$at root/$at; done
for at in tmp run; do mount -t tmpfs -o mode=1777 tmpfs root/$at; done
mount -t bpf bpf root/sys/fs/bpf
mkdir -p root/run/systemd/system
cat >root/run/systemctl <<end
#!/bin/sh
echo "\$*" >>/run/systemctl.log
[ "\$2" != is-active ] || test -e /run/active
end
chmod 755 root/run/systemctl
mount --bind root/run/systemctl root/usr/bin/systemctl
shift
for at; do mkdir -p "root$at"; mount --bind "$at" "root$at"; done
ip link set lo up
echo ready
cat >/dev/null
`

// newMachine copies this machine. The directories there are those of here.
func newMachine(t *testing.T, directories ...string) *machine {
	t.Helper()
	dir := t.TempDir()
	m := &machine{t: t, root: filepath.Join(dir, "root"), changed: filepath.Join(dir, "upper")}
	keeper := exec.Command("sh", append([]string{"-ec", setUp, "sh", dir}, directories...)...)
	keeper.SysProcAttr = &unix.SysProcAttr{Unshareflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET, Pdeathsig: unix.SIGKILL}
	stdin, err := keeper.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := keeper.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	keeper.Stderr = t.Output()
	if err := keeper.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stdin.Close()
		if err := keeper.Wait(); err != nil {
			t.Errorf("copy of this machine: %v", err)
		}
	})
	m.keeper = keeper.Process.Pid
	if line, err := bufio.NewReader(stdout).ReadString('\n'); err != nil || line != "ready\n" {
		t.Fatalf("copy this machine: %q, %v", line, err)
	}
	return m
}

// sh runs a script on the machine and returns what it says.
func (m *machine) sh(script string) string {
	m.t.Helper()
	out, err := exec.Command("nsenter", "--mount", "--net", "--target", strconv.Itoa(m.keeper),
		"chroot", m.root, "/bin/sh", "-ec", script).CombinedOutput()
	if err != nil {
		m.t.Fatalf("%s: %v\n%s", script, err, out)
	}
	return string(out)
}

// says wants a script to say something.
func (m *machine) says(want, script string) {
	m.t.Helper()
	if got := strings.TrimSpace(m.sh(script)); got != want {
		m.t.Errorf("%s: said\n%s\nwant\n%s", script, got, want)
	}
}

// asked returns what systemd was asked for since the last time.
func (m *machine) asked() string {
	m.t.Helper()
	return strings.TrimSpace(m.sh("touch /run/systemctl.log; cat /run/systemctl.log; rm /run/systemctl.log"))
}

// state is all that differs from this machine, or is in the directories that
// are empty at first: paths, and what regular files hold but for accounts' order.
func (m *machine) state() map[string]string {
	m.t.Helper()
	files := make(map[string]string)
	err := filepath.WalkDir(m.changed, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := strings.TrimPrefix(path, m.changed)
		if theirs(name) {
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		switch info, err := d.Info(); {
		case err != nil:
			return err
		case d.IsDir(): // is copied when something in it changes
			if _, err := os.Lstat(name); err == nil {
				return nil
			}
			files[name] = "directory"
		case d.Type().IsRegular():
			content, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			if here, err := os.ReadFile(name); err == nil && string(here) == string(content) {
				return nil
			}
			files[name] = fmt.Sprintf("%v %x", info.Mode(), content)
		default:
			if _, err := os.Lstat(name); err == nil || d.Type()&fs.ModeCharDevice == 0 {
				files[name] = d.Type().String()
			}
		}
		return nil
	})
	if err != nil {
		m.t.Fatal(err)
	}
	// The latter two are the test's, and of systemd-analyze.
	for line := range strings.Lines(m.sh("find /run /sys/fs/bpf -mindepth 1 -not -path /run/systemctl.log -not -path /run/systemd/systemd-units-load")) {
		files[strings.TrimSpace(line)] = "there"
	}
	return files
}

// theirs: what package managers, and tools that they call, note for themselves.
func theirs(name string) bool {
	for _, of := range []string{"/var/lib/dpkg", "/var/lib/rpm", "/root/.rpmdb", "/usr/lib/sysimage/rpm", "/var/log", "/var/cache", "/usr/share/info/dir"} {
		if name == of || strings.HasPrefix(name, of+"/") {
			return true
		}
	}
	// Copies of the accounts, and their locks.
	return strings.HasPrefix(name, "/etc/") && (strings.HasSuffix(name, "-") || name == "/etc/.pwd.lock")
}

// same wants a state to be as it was before.
func (m *machine) same(before map[string]string) {
	m.t.Helper()
	after := m.state()
	for _, name := range slices.Sorted(maps.Keys(after)) {
		if was, ok := before[name]; !ok {
			m.t.Errorf("%s is left", name)
		} else if was != after[name] {
			m.t.Errorf("%s is not as it was", name)
		}
	}
	for name := range before {
		if _, ok := after[name]; !ok {
			m.t.Errorf("%s is gone", name)
		}
	}
}
