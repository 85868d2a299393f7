// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func fresh(t testing.TB) *Handle {
	t.Helper()
	h, err := New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = h.Close() })
	return h
}

// up sets the loopback interface of a namespace up.
func up(t testing.TB, h *Handle) {
	t.Helper()
	sock, err := Socket(h.FD(), unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(sock)
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		t.Fatal(err)
	}
	ifr.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(sock, unix.SIOCSIFFLAGS, ifr); err != nil {
		t.Fatal(err)
	}
}

func inodeHere(t testing.TB) uint64 {
	t.Helper()
	_, inode, err := identity(Own)
	if err != nil {
		t.Fatal(err)
	}
	return inode
}

func TestDo(t *testing.T) {
	home := inodeHere(t)
	h := fresh(t)
	if h.Inode() == home {
		t.Fatal("a new namespace has the inode of this one")
	}
	var inside uint64
	if err := Do(h.FD(), func() (err error) {
		_, inside, err = identity(Own)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if inside != h.Inode() {
		t.Errorf("ran in namespace %d, want %d", inside, h.Inode())
	}
	want := errors.New("of fn")
	if err := Do(h.FD(), func() error { return want }); err != want {
		t.Errorf("Do = %v, want the error of fn", err)
	}
	if err := Do(Own, func() error { return want }); err != want {
		t.Errorf("Do(Own) = %v, want the error of fn", err)
	}
	if got := inodeHere(t); got != home {
		t.Errorf("now in namespace %d, want %d", got, home)
	}
}

func TestDoWithWrongDescriptor(t *testing.T) {
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	ran := false
	if err := Do(int(f.Fd()), func() error { ran = true; return nil }); !errors.Is(err, unix.EINVAL) || ran {
		t.Errorf("Do = %v, ran %v", err, ran)
	}
}

func TestDoPanics(t *testing.T) {
	h := fresh(t)
	func() {
		defer func() {
			if got := recover(); got != "of fn" {
				t.Errorf("recovered %v", got)
			}
		}()
		_ = Do(h.FD(), func() error { panic("of fn") })
	}()
	if err := Do(h.FD(), func() error { runtime.Goexit(); return nil }); !errors.Is(err, ErrExited) {
		t.Errorf("Do = %v, want ErrExited", err)
	}
}

// TestNoThreadStaysBehind looks at every thread of the process after many
// visits to namespaces.
func TestNoThreadStaysBehind(t *testing.T) {
	home := inodeHere(t)
	var visits sync.WaitGroup
	for range 16 {
		h := fresh(t)
		visits.Go(func() {
			for range 50 {
				err := Do(h.FD(), func() error {
					if unix.Gettid() == unix.Getpid() {
						return errors.New("ran on the first thread")
					}
					return nil
				})
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	visits.Wait()
	// Threads that other tests threw away may not have ended yet.
	deadline := time.Now().Add(10 * time.Second)
	for {
		abroad := threadsOutside(t, home)
		if len(abroad) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%v are not in namespace %d", abroad, home)
		}
		runtime.Gosched()
	}
}

func threadsOutside(t *testing.T, home uint64) []string {
	t.Helper()
	threads, err := filepath.Glob("/proc/self/task/*/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(threads, func(thread string) bool {
		var st unix.Stat_t
		return unix.Stat(thread, &st) != nil || st.Ino == home
	})
}

// TestThreadThatCannotBeRestored breaks the way back, as a process does that
// gives up CAP_SYS_ADMIN meanwhile.
func TestThreadThatCannotBeRestored(t *testing.T) {
	home := inodeHere(t)
	h := fresh(t)
	var tid int
	_ = Do(h.FD(), func() error {
		tid = unix.Gettid()
		// Capabilities are the thread's own.
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var none [2]unix.CapUserData
		return unix.Capset(&header, &none[0])
	})
	for range 100 {
		done := make(chan struct{})
		go func() {
			defer close(done)
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			if unix.Gettid() == tid || inodeHere(t) != home {
				t.Error("the lost thread is still in use")
			}
		}()
		<-done
	}
}

func TestListen(t *testing.T) {
	h := fresh(t)
	up(t, h)
	controlled := 0
	control := func(_, _ string, c syscall.RawConn) error {
		return c.Control(func(fd uintptr) {
			controlled++
			if proto, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PROTOCOL); err != nil || proto == unix.IPPROTO_MPTCP {
				t.Errorf("protocol %d, %v", proto, err)
			}
		})
	}
	l, err := Listen(context.Background(), h.FD(), "tcp", "127.0.0.1:0", control)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	p, err := ListenPacket(context.Background(), h.FD(), "udp", "127.0.0.1:0", control)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if controlled != 2 {
		t.Errorf("control was called %d times, want 2", controlled)
	}

	if c, err := net.Dial("tcp", l.Addr().String()); err == nil {
		_ = c.Close()
		t.Error("the listener is reachable from outside")
	}
	err = Do(h.FD(), func() error {
		sock, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(sock)
		addr := l.Addr().(*net.TCPAddr)
		return unix.Connect(sock, &unix.SockaddrInet4{Port: addr.Port, Addr: [4]byte(addr.IP.To4())})
	})
	if err != nil {
		t.Fatalf("connect inside: %v", err)
	}
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
}

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

func TestThread(t *testing.T) {
	home := inodeHere(t)
	a, b := fresh(t), fresh(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		th, err := OpenThread()
		if err != nil {
			t.Error(err)
			return
		}
		defer th.Close()
		for _, step := range []struct {
			name string
			do   func() error
			want uint64
		}{
			{"leave at home", th.Leave, home},
			{"enter a", func() error { return th.Enter(a.FD()) }, a.Inode()},
			{"enter b", func() error { return th.Enter(b.FD()) }, b.Inode()},
			{"leave", th.Leave, home},
			{"enter own", func() error { return th.Enter(Own) }, home},
			{"leave again", th.Leave, home},
		} {
			if err := step.do(); err != nil || inodeHere(t) != step.want {
				t.Errorf("%s: %v, in %d, want %d", step.name, err, inodeHere(t), step.want)
			}
		}
	}()
	<-done
}

// BenchmarkSocket makes and closes a TCP socket: here, elsewhere by a Thread,
// elsewhere by Do.
func BenchmarkSocket(b *testing.B) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	h := fresh(b)
	th, err := OpenThread()
	if err != nil {
		b.Fatal(err)
	}
	defer th.Close()
	cycle := func(b *testing.B, fd int) {
		sock, err := Socket(fd, unix.AF_INET, unix.SOCK_STREAM, 0)
		if err != nil {
			b.Fatal(err)
		}
		_ = unix.Close(sock)
	}
	b.Run("here", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			cycle(b, Own)
		}
	})
	// b.Run changes goroutines, so the loop enters from one of its own.
	b.Run("thread", func(b *testing.B) {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		b.ReportAllocs()
		for b.Loop() {
			if err := th.Enter(h.FD()); err != nil {
				b.Fatal(err)
			}
			cycle(b, Own)
			if err := th.Leave(); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("do", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			cycle(b, h.FD())
		}
	})
}

func TestOfSocket(t *testing.T) {
	h := fresh(t)
	sock, err := Socket(h.FD(), unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(sock)
	got, err := OfSocket(sock)
	if err != nil {
		t.Fatal(err)
	}
	defer got.Close()
	if same, err := Same(got.FD(), h.FD()); !same || err != nil || got.Inode() != h.Inode() {
		t.Errorf("namespace %d, want %d: %v, %v", got.Inode(), h.Inode(), same, err)
	}
	if h, err := OfSocket(int(h.FD())); err == nil {
		t.Errorf("namespace %d of what is no socket", h.Inode())
	}
}
