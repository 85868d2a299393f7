// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

func TestCookie(t *testing.T) {
	a, b := fresh(t), fresh(t)
	own, err := Cookie(Own)
	if err != nil {
		t.Fatal(err)
	}
	seen := []uint64{own}
	for _, h := range []*Handle{a, b} {
		cookie, err := Cookie(h.FD())
		if err != nil {
			t.Fatal(err)
		}
		if again, err := Cookie(h.FD()); err != nil || again != cookie {
			t.Errorf("cookie %d, then %d, %v", cookie, again, err)
		}
		if cookie == 0 || slices.Contains(seen, cookie) {
			t.Errorf("cookie %d among %d", cookie, seen)
		}
		seen = append(seen, cookie)
	}
	if _, err := CookieOfSocket(a.FD()); !errors.Is(err, unix.ENOTSOCK) {
		t.Errorf("CookieOfSocket of no socket: %v", err)
	}
}

func TestSame(t *testing.T) {
	a, b := fresh(t), fresh(t)
	again, err := Open(fmt.Sprintf("/proc/self/fd/%d", a.FD()))
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	own, err := OfThread()
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	for _, tt := range []struct {
		name string
		a, b int
		want bool
	}{
		{"one descriptor", a.FD(), a.FD(), true},
		{"two descriptors", a.FD(), again.FD(), true},
		{"two namespaces", a.FD(), b.FD(), false},
		{"own", own.FD(), Own, true},
		{"own and another", Own, a.FD(), false},
	} {
		if got, err := Same(tt.a, tt.b); err != nil || got != tt.want {
			t.Errorf("%s: %v, %v, want %v", tt.name, got, err, tt.want)
		}
	}
	if _, err := Same(a.FD(), 1<<20); !errors.Is(err, unix.EBADF) {
		t.Errorf("Same with a bad descriptor: %v", err)
	}
}

func TestOpenOtherFiles(t *testing.T) {
	for _, path := range []string{"/proc/self/ns/mnt", "/dev/null", "/etc"} {
		if _, err := Open(path); !errors.Is(err, ErrNotNamespace) {
			t.Errorf("Open(%s): %v", path, err)
		}
	}
	if _, err := Open("/nowhere"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Open of nothing: %v", err)
	}
}

// inhabit starts a process in the namespace.
func inhabit(t *testing.T, h *Handle) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("sleep", "60")
	if err := Do(h.FD(), cmd.Start); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return cmd
}

// hard ignores that this machine may hide processes of others from root.
func hard(err error) bool { return err != nil && !errors.Is(err, ErrHidden) }

func TestNamespaceOutlivesItsProcesses(t *testing.T) {
	made := fresh(t)
	cmd := inhabit(t, made)
	h, err := OfPID(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if h.Inode() != made.Inode() {
		t.Fatalf("process is in namespace %d, want %d", h.Inode(), made.Inode())
	}
	if pids, err := Processes(h.FD()); hard(err) || !slices.Equal(pids, []int{cmd.Process.Pid}) {
		t.Errorf("Processes = %v, %v, want %d", pids, err, cmd.Process.Pid)
	}
	_ = made.Close()

	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	// WNOWAIT: the process has ended and nobody has waited for it.
	if err := unix.Waitid(unix.P_PID, cmd.Process.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := OfPID(cmd.Process.Pid); !errors.Is(err, ErrGone) {
		t.Errorf("OfPID of a zombie: %v", err)
	}
	_ = cmd.Wait()
	if _, err := OfPID(cmd.Process.Pid); !errors.Is(err, ErrGone) {
		t.Errorf("OfPID of no process: %v", err)
	}
	if pids, err := Processes(h.FD()); hard(err) || len(pids) != 0 {
		t.Errorf("Processes = %v, %v, want none", pids, err)
	}
	l, err := Listen(context.Background(), h.FD(), "tcp", "127.0.0.1:0", nil)
	if err != nil {
		t.Fatalf("listen in a namespace without processes: %v", err)
	}
	_ = l.Close()
}

func TestMounted(t *testing.T) {
	h := fresh(t)
	if got, err := Mounted(h.FD()); err != nil || got {
		t.Errorf("Mounted = %v, %v, want false", got, err)
	}
	// The mount is made in a mount namespace of its own, so that it goes with
	// the thread.
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
			t.Error(err)
			return
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			t.Error(err)
			return
		}
		path := filepath.Join(t.TempDir(), "ns")
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Error(err)
			return
		}
		if err := unix.Mount(fmt.Sprintf("/proc/self/fd/%d", h.FD()), path, "", unix.MS_BIND, ""); err != nil {
			t.Error(err)
			return
		}
		if got, err := Mounted(h.FD()); err != nil || !got {
			t.Errorf("Mounted = %v, %v, want true", got, err)
		}
		if mounted, err := Open(path); err != nil || mounted.Inode() != h.Inode() {
			t.Errorf("Open(%s): %v", path, err)
		} else {
			_ = mounted.Close()
		}
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	}()
	<-done
}
