// SPDX-License-Identifier: Apache-2.0

package sockmap

import (
	"bytes"
	"errors"
	"log/slog"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestMountBPFFS looks at a machine on which nobody has mounted it: a mount
// namespace of a thread's own.
func TestMountBPFFS(t *testing.T) {
	const standard = "/sys/fs/bpf"
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked: the thread ends here
		for _, err := range []error{
			unix.Unshare(unix.CLONE_NEWNS),
			unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
		} {
			if err != nil {
				t.Error(err)
				return
			}
		}
		for unix.Unmount(standard, unix.MNT_DETACH) == nil {
			// There may be several, one over the other.
		}
		if err := checkBPFFS(standard); !errors.Is(err, ErrNotBPFFS) {
			t.Errorf("before: %v", err)
		}
		var log bytes.Buffer
		for range 2 { // the second finds it mounted
			if err := mountBPFFS(standard, slog.New(slog.NewTextHandler(&log, nil))); err != nil {
				t.Error(err)
			}
			if err := checkBPFFS(standard); err != nil {
				t.Errorf("after: %v", err)
			}
		}
		if n := strings.Count(log.String(), "mounted bpf file system"); n != 1 {
			t.Errorf("it is said %d times: %s", n, log.String())
		}
	}()
	<-done
	// A directory of somebody else's is left alone.
	dir := t.TempDir()
	if err := mountBPFFS(dir, slog.New(slog.DiscardHandler)); err != nil {
		t.Error(err)
	}
	if err := checkBPFFS(dir); !errors.Is(err, ErrNotBPFFS) {
		t.Errorf("%s: %v", dir, err)
	}
}
