// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

const testPrefix = "meshproxy-cgroup-test-"

// TestMain removes what a crashed run left behind.
func TestMain(m *testing.M) {
	root, err := Root()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	stale, _ := filepath.Glob(filepath.Join(root, testPrefix+"*"))
	for _, dir := range stale {
		pid, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(dir), testPrefix), "-")
		if n, err := strconv.Atoi(pid); err == nil && unix.Kill(n, 0) != nil {
			remove(dir)
		}
	}
	os.Exit(m.Run())
}

// remove removes a cgroup and all below it.
func remove(dir string) {
	names, _ := children(dir)
	for _, name := range names {
		remove(filepath.Join(dir, name))
	}
	_ = os.Remove(dir)
}

// tree makes a cgroup with the given cgroups below it and returns its
// directory.
func tree(t *testing.T, below ...string) string {
	t.Helper()
	root, err := Root()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp(root, testPrefix+strconv.Itoa(os.Getpid())+"-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { remove(dir) })
	for _, b := range below {
		if err := os.MkdirAll(filepath.Join(dir, b), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// occupy starts a process in the cgroup at dir and returns its pid.
func occupy(t *testing.T, dir string) int {
	t.Helper()
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cmd := exec.Command("sleep", "60")
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(f.Fd()), Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return cmd.Process.Pid
}

func TestWalk(t *testing.T) {
	dir := tree(t, "a/b", "a/c", "d")
	base, err := Within(dir)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	err = Walk(dir, func(path string, id uint64) error {
		want, err := ID(filepath.Join(dir, strings.TrimPrefix(path, base)))
		if err != nil || id != want {
			t.Errorf("%s: id %d, want %d, %v", path, id, want, err)
		}
		if found, err := Path(id); err != nil || found != path {
			t.Errorf("Path(%d) = %q, %v, want %q", id, found, err, path)
		}
		got = append(got, strings.TrimPrefix(path, base))
		if strings.HasSuffix(path, "/d") {
			return fs.SkipDir
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(got)
	if want := []string{"", "/a", "/a/b", "/a/c", "/d"}; !slices.Equal(got, want) {
		t.Errorf("walked %q, want %q", got, want)
	}
	if err := Walk(dir, func(string, uint64) error { return errStop }); !errors.Is(err, errStop) {
		t.Errorf("the walk hides the error: %v", err)
	}
}

func TestWalkSkipsBelow(t *testing.T) {
	dir := tree(t, "a/b")
	n := 0
	err := Walk(dir, func(path string, _ uint64) error {
		n++
		if strings.HasSuffix(path, "/a") {
			return fs.SkipDir
		}
		return nil
	})
	if err != nil || n != 2 {
		t.Errorf("walked %d cgroups, %v", n, err)
	}
}

func TestWalkWhileCgroupsVanish(t *testing.T) {
	dir := tree(t, "stays")
	stop := make(chan struct{})
	var churn sync.WaitGroup
	churn.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			name := filepath.Join(dir, "x"+strconv.Itoa(i%8))
			_ = os.MkdirAll(filepath.Join(name, "y", "z"), 0o755)
			remove(name)
		}
	})
	for range 200 {
		seen := false
		err := Walk(dir, func(path string, _ uint64) error {
			seen = seen || strings.HasSuffix(path, "/stays")
			return nil
		})
		if err != nil || !seen {
			t.Errorf("walk: seen %v, %v", seen, err)
			break
		}
		if _, err := PIDs(dir); err != nil {
			t.Error(err)
			break
		}
	}
	close(stop)
	churn.Wait()
}

func TestGone(t *testing.T) {
	dir := tree(t, "a")
	id, err := ID(filepath.Join(dir, "a"))
	if err != nil {
		t.Fatal(err)
	}
	remove(filepath.Join(dir, "a"))
	if _, err := ID(filepath.Join(dir, "a")); !errors.Is(err, ErrGone) {
		t.Errorf("ID: %v", err)
	}
	if path, err := Path(id); !errors.Is(err, ErrGone) {
		t.Errorf("Path = %q, %v", path, err)
	}
	if err := Walk(filepath.Join(dir, "a"), func(string, uint64) error { return nil }); !errors.Is(err, ErrGone) {
		t.Errorf("Walk: %v", err)
	}
	if pids, err := PIDs(filepath.Join(dir, "a")); err != nil || len(pids) != 0 {
		t.Errorf("PIDs = %v, %v", pids, err)
	}
	if _, err := OfPID(1 << 30); !errors.Is(err, ErrGone) {
		t.Errorf("OfPID: %v", err)
	}
}

func TestPathWithoutPrivilege(t *testing.T) {
	dir := tree(t, "a/b")
	id, err := ID(filepath.Join(dir, "a/b"))
	if err != nil {
		t.Fatal(err)
	}
	root, err := Root()
	if err != nil {
		t.Fatal(err)
	}
	want, err := Path(id)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := findByWalk(root, id); err != nil || got != want {
		t.Errorf("findByWalk = %q, %v, want %q", got, err, want)
	}
	if _, err := findByWalk(root, 1<<62); !errors.Is(err, ErrGone) {
		t.Errorf("findByWalk of no cgroup: %v", err)
	}
}

func TestPathOfFile(t *testing.T) {
	dir := tree(t)
	id, err := inode(filepath.Join(dir, "cgroup.procs"))
	if err != nil {
		t.Fatal(err)
	}
	if path, err := Path(id); !errors.Is(err, ErrGone) {
		t.Errorf("Path = %q, %v", path, err)
	}
}

func TestProcesses(t *testing.T) {
	dir := tree(t, "a/b", "c", "t/threads")
	if err := os.WriteFile(filepath.Join(dir, "t/threads", "cgroup.type"), []byte("threaded"), 0o644); err != nil {
		t.Fatal(err)
	}
	inner := occupy(t, filepath.Join(dir, "a/b"))
	outer := occupy(t, filepath.Join(dir, "c"))
	want := []int{inner, outer}
	slices.Sort(want)
	if got, err := PIDs(dir); err != nil || !slices.Equal(got, want) {
		t.Errorf("PIDs = %v, %v, want %v", got, err, want)
	}
	path, err := Within(filepath.Join(dir, "a/b"))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := OfPID(inner); err != nil || got != path {
		t.Errorf("OfPID = %q, %v, want %q", got, err, path)
	}
}

func TestSelf(t *testing.T) {
	path, err := Self()
	if err != nil || !strings.HasPrefix(path, "/") {
		t.Fatalf("Self = %q, %v", path, err)
	}
	if got, err := OfPID(os.Getpid()); err != nil || got != path {
		t.Errorf("OfPID = %q, %v, want %q", got, err, path)
	}
}

func TestParseProc(t *testing.T) {
	tests := []struct {
		name, content, path string
		err                 error
	}{
		{"hybrid", "9:name=systemd:/x\n1:cpu:/\n0::/system.slice/web.service\n", "/system.slice/web.service", nil},
		{"pure", "0::/\n", "/", nil},
		{"outside the namespace", "0::/../x\n", "/../x", nil},
		{"removed", "0::/a (deleted)\n", "", ErrGone},
		{"version 1 only", "1:cpu:/\n", "", ErrNoHierarchy},
		{"empty", "", "", ErrNoHierarchy},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path, err := parseProc([]byte(tt.content))
			if path != tt.path || !errors.Is(err, tt.err) {
				t.Errorf("parseProc = %q, %v", path, err)
			}
		})
	}
}
