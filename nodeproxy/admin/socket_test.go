// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/meshproxy/meshproxy/nodeproxy/admin/client"
)

func socketAt(path string) *Options {
	return &Options{Socket: path, Listen: func(_, _ string, anew func() (net.Listener, error)) (net.Listener, error) { return anew() }}
}

// TestLeave: the next process has the same socket.
func TestLeave(t *testing.T) {
	f := start(t)
	f.Leave()
	if _, err := os.Lstat(f.socket); err != nil {
		t.Errorf("socket after Leave: %v", err)
	}
	check(t, os.Remove(f.socket))
}

func TestSocketMode(t *testing.T) {
	f := start(t)
	if m := mode(t, f.socket); m != os.ModeSocket|0o640 {
		t.Errorf("mode %v", m)
	}
	f.Close()
	if _, err := os.Lstat(f.socket); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("socket after Close: %v", err)
	}
}

func TestSocketInUse(t *testing.T) {
	f := start(t)
	if _, err := listenSocket(socketAt(f.socket)); !errors.Is(err, ErrSocketInUse) {
		t.Errorf("listen = %v", err)
	}
	if _, err := f.client.Status(t.Context()); err != nil {
		t.Errorf("the first node answers: %v", err)
	}
}

func TestStaleSocketIsReplaced(t *testing.T) {
	path := filepath.Join(t.TempDir(), "admin.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	check(t, err)
	l.SetUnlinkOnClose(false) // as kill -9 leaves it
	check(t, l.Close())
	fresh, err := listenSocket(socketAt(path))
	check(t, err)
	check(t, fresh.Close())
}

func TestOtherFilesAreKept(t *testing.T) {
	path := filepath.Join(t.TempDir(), "admin.sock")
	check(t, os.WriteFile(path, []byte("precious"), 0o600))
	if _, err := listenSocket(socketAt(path)); !errors.Is(err, ErrNotSocket) {
		t.Errorf("listen = %v", err)
	}
	if text, _ := os.ReadFile(path); string(text) != "precious" {
		t.Errorf("the file holds %q", text)
	}
}

// TestCloseKeepsSuccessor: a binary that is upgraded closes after its
// successor has put its own socket in that place.
func TestCloseKeepsSuccessor(t *testing.T) {
	path := filepath.Join(t.TempDir(), "admin.sock")
	old, err := listenSocket(socketAt(path))
	check(t, err)
	check(t, os.Remove(path))
	successor, err := listenSocket(socketAt(path))
	check(t, err)
	check(t, old.Close())
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("the successor's socket: %v", err)
	}
	check(t, successor.Close())
}

func TestNotRunning(t *testing.T) {
	path := filepath.Join(t.TempDir(), "admin.sock")
	_, err := client.New(path).Status(t.Context())
	if !errors.Is(err, client.ErrNotRunning) || !strings.Contains(err.Error(), "no socket at "+path) {
		t.Errorf("no socket: %v", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	check(t, err)
	l.SetUnlinkOnClose(false)
	check(t, l.Close())
	_, err = client.New(path).Status(t.Context())
	if !errors.Is(err, client.ErrNotRunning) || !strings.Contains(err.Error(), "nobody answers on "+path) {
		t.Errorf("stale socket: %v", err)
	}
}

func TestPeers(t *testing.T) {
	for _, test := range []struct {
		uid  uint32
		own  int
		want bool
	}{
		{0, 0, true}, {0, 990, true}, {990, 990, true}, {1000, 990, false}, {1000, 0, false},
	} {
		if got := mayUse(test.uid, test.own); got != test.want {
			t.Errorf("mayUse(%d, %d) = %v", test.uid, test.own, got)
		}
	}
}

// TestOthersAreRefused connects as another user, to a socket whose mode lets
// it: credentials are taken when a socket connects, from the thread that does.
func TestOthersAreRefused(t *testing.T) {
	f := start(t)
	for dir := filepath.Dir(f.socket); dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		check(t, os.Chmod(dir, 0o755))
	}
	asNobody := func(ask func()) {
		done := make(chan struct{})
		go func() {
			defer close(done)
			runtime.LockOSThread() // and never unlocked: the thread ends with its uid
			if err := setThreadUID(65534); err != nil {
				t.Error(err)
				return
			}
			ask()
		}()
		<-done
	}
	asNobody(func() {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
		if err != nil {
			t.Error(err)
			return
		}
		defer unix.Close(fd)
		if err := unix.Connect(fd, &unix.SockaddrUnix{Name: f.socket}); !errors.Is(err, unix.EACCES) {
			t.Errorf("connect to a 0640 socket = %v", err)
		}
	})
	check(t, os.Chmod(f.socket, 0o666))
	asNobody(func() {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
		if err != nil {
			t.Error(err)
			return
		}
		defer unix.Close(fd)
		if err := unix.Connect(fd, &unix.SockaddrUnix{Name: f.socket}); err != nil {
			t.Errorf("connect to a 0666 socket: %v", err)
			return
		}
		if _, err := unix.Write(fd, []byte("GET /v1/status HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n")); err != nil {
			t.Error(err)
		}
		answer := make([]byte, 4096)
		n, err := unix.Read(fd, answer)
		if err != nil || !strings.HasPrefix(string(answer[:n]), "HTTP/1.1 403 ") ||
			!strings.Contains(string(answer[:n]), "yours is 65534") {
			t.Errorf("answer %q, %v", answer[:n], err)
		}
	})
}

// setThreadUID changes the calling thread's uid only, as the raw system call
// does; package syscall would change all threads.
func setThreadUID(uid uintptr) error {
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uid, uid, uid); errno != 0 {
		return errno
	}
	return nil
}
