// SPDX-License-Identifier: Apache-2.0

package sockmap

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/meshproxy/meshproxy/sockmap/cgroup"
)

// testPrefix begins the name of everything that the tests leave on a machine
// while they run; the pid follows.
const testPrefix = "meshproxy-sockmap-test-"

// bpffs is this process's own mount.
var bpffs string

func TestMain(m *testing.M) {
	if role := os.Getenv(roleEnv); role != "" {
		roles[role]()
		return
	}
	removeStale()
	bpffs = filepath.Join(os.TempDir(), testPrefix+strconv.Itoa(os.Getpid()))
	if err := os.Mkdir(bpffs, 0o700); err != nil {
		fatal(err)
	}
	if err := unix.Mount("bpffs", bpffs, "bpf", 0, ""); err != nil {
		fatal(err)
	}
	code := m.Run()
	removeOf(os.Getpid())
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

func fatal(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// removeStale removes what crashed runs left.
func removeStale() {
	for _, dir := range []string{os.TempDir(), hierarchy()} {
		names, _ := filepath.Glob(filepath.Join(dir, testPrefix+"*"))
		for _, n := range names {
			number, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(n), testPrefix), "-")
			if pid, err := strconv.Atoi(number); err == nil && unix.Kill(pid, 0) == unix.ESRCH {
				removeOf(pid)
			}
		}
	}
}

// removeOf removes what the test process pid left: unmounting its bpffs ends
// all that was pinned there.
func removeOf(pid int) {
	name := testPrefix + strconv.Itoa(pid)
	dir := filepath.Join(os.TempDir(), name)
	_ = unix.Unmount(dir, unix.MNT_DETACH)
	_ = os.Remove(dir)
	groups, _ := filepath.Glob(filepath.Join(hierarchy(), name+"-*"))
	for _, g := range groups {
		removeCgroup(g)
	}
}

func hierarchy() string {
	root, err := cgroup.Root()
	if err != nil {
		fatal(err)
	}
	return root
}

// removeCgroup removes a cgroup and everything in it.
func removeCgroup(dir string) {
	_ = os.WriteFile(filepath.Join(dir, "cgroup.kill"), []byte("1"), 0)
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if e.IsDir() {
			removeCgroup(filepath.Join(dir, e.Name()))
		}
	}
	// Killed processes take a moment to be gone; no event tells of it that
	// would not need as much care.
	for deadline := time.Now().Add(time.Duration(patiently)); time.Now().Before(deadline); elapse(time.Millisecond) {
		if err := os.Remove(dir); err == nil || os.IsNotExist(err) {
			return
		}
	}
}

// layoutDir is where the state of this layout is pinned.
var layoutDir = fmt.Sprintf("v%d", layout)
