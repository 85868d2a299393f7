// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

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
	deadline := time.Now().Add(time.Minute)
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
