// SPDX-License-Identifier: Apache-2.0

package helper

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/meshproxy/meshproxy/sockmap/cgroup"
	"github.com/meshproxy/meshproxy/sockmap/netns"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// serve runs a helper until the test ends.
func serve(t *testing.T, o Options) *Client {
	t.Helper()
	path := filepath.Join(t.TempDir(), "netns.sock")
	fd, err := Listen(path, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if o.Allow == nil {
		o.Allow = func(string, uint32) error { return nil }
	}
	o.Logger = slog.New(slog.NewTextHandler(t.Output(), nil))
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	s := NewServer(o)
	s.patience = time.Minute // for a busy machine
	go func() { ended <- s.Serve(ctx, fd) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		_ = unix.Close(fd)
	})
	c := NewClient(path)
	c.patience = time.Minute // for a busy machine
	return c
}

// inhabited is a process in a network namespace and a cgroup of its own.
func inhabited(t *testing.T) (pid int, at string, inode uint64) {
	t.Helper()
	root, err := cgroup.Root()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp(root, "meshproxy-helper-test-*")
	if err != nil {
		t.Fatal(err)
	}
	h, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	cmd := exec.Command("sleep", "60")
	if err := netns.Do(h.FD(), cmd.Start); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		// The kernel takes the process out of its cgroup a moment later.
		deadline := time.Now().Add(time.Minute)
		for os.Remove(dir) != nil && time.Now().Before(deadline) {
			runtime.Gosched()
		}
	})
	pid = cmd.Process.Pid
	if err := os.WriteFile(dir+"/cgroup.procs", []byte(strconv.Itoa(pid)), 0); err != nil {
		t.Fatal(err)
	}
	at, err = cgroup.OfPID(pid)
	if err != nil {
		t.Fatal(err)
	}
	return pid, at, h.Inode()
}

func TestSocketsOfAProcess(t *testing.T) {
	c := serve(t, Options{})
	pid, at, inode := inhabited(t)
	h, err := c.OfPID(pid, at)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if h.Inode() != inode {
		t.Fatalf("namespace %d, want %d", h.Inode(), inode)
	}
	want, err := netns.Cookie(h.FD())
	if err != nil {
		t.Fatal(err)
	}
	fds, err := c.Sockets(h.FD(), unix.AF_INET, unix.SOCK_STREAM, 0, MaxSockets)
	if err != nil {
		t.Fatal(err)
	}
	defer closeAll(fds)
	for _, fd := range fds {
		if got, err := netns.CookieOfSocket(fd); err != nil || got != want {
			t.Fatalf("socket of namespace %d, %v; want %d", got, err, want)
		}
	}
	if got, err := netns.CookieBy(c, h.FD()); err != nil || got != want {
		t.Errorf("cookie %d, %v; want %d", got, err, want)
	}
	if _, err := netns.Addresses(c, h.FD()); err != nil {
		t.Error(err)
	}
}

func TestRefusals(t *testing.T) {
	denied := errors.New("not enrolled")
	c := serve(t, Options{Allow: func(at string, uid uint32) error {
		if strings.HasPrefix(at, "/other") || uid != 0 {
			return denied
		}
		return nil
	}})
	pid, at, _ := inhabited(t)
	own, err := netns.OfThread()
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	socket := func(domain, typ, protocol, count int) func() error {
		return func() error { _, err := c.Sockets(own.FD(), domain, typ, protocol, count); return err }
	}
	open := func(pid int, at string) func() error {
		return func() error { _, err := c.ask(&request{Op: opOpen, PID: pid, Cgroup: at}, nil, 1); return err }
	}
	for _, tc := range []struct {
		name string
		ask  func() error
		want string
	}{
		{"raw socket", socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP, 1), "no sockets of domain"},
		{"packet socket", socket(unix.AF_PACKET, unix.SOCK_RAW, 0, 1), "no sockets of domain"},
		{"netlink of netfilter", socket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_NETFILTER, 1), "no sockets of domain"},
		{"no socket", socket(unix.AF_INET, unix.SOCK_STREAM, 0, 0), "want 1 to 64"},
		{"many sockets", socket(unix.AF_INET, unix.SOCK_STREAM, 0, 65), "want 1 to 64"},
		{"root cgroup", open(pid, "/"), "no cgroup"},
		{"relative cgroup", open(pid, "a/b"), "no cgroup"},
		{"cgroup above", open(pid, at+"/.."), "no cgroup"},
		{"another cgroup", open(pid, at+"x"), "is in cgroup " + at},
		{"cgroup that is not enrolled", open(pid, "/other.service"), "is in cgroup " + at},
		{"process that is gone", open(1<<22, at), netns.ErrGone.Error()},
		{"unknown request", func() error { _, err := c.ask(&request{Op: "mount"}, nil, 0); return err }, "unknown request"},
		{"no descriptor", func() error { _, err := c.ask(&request{Op: opSocket, Count: 1}, nil, 1); return err }, "malformed"},
		{"no namespace", func() error {
			f, err := os.Open(os.DevNull)
			if err != nil {
				return err
			}
			defer f.Close()
			_, err = c.Sockets(int(f.Fd()), unix.AF_INET, unix.SOCK_STREAM, 0, 1)
			return err
		}, "enter network namespace"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if err := tc.ask(); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
		})
	}
}

// TestStranger: who is neither root nor the node's user gets no answer.
func TestStranger(t *testing.T) {
	s := NewServer(Options{User: 61357})
	for uid, may := range map[uint32]bool{0: true, 61357: true, 1000: false, 65534: false} {
		if err := s.judge(uid); (err == nil) != may {
			t.Errorf("user %d: %v", uid, err)
		}
	}
}

// TestIdle: a helper that nobody needs ends.
func TestIdle(t *testing.T) {
	path := filepath.Join(t.TempDir(), "netns.sock")
	fd, err := Listen(path, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := NewServer(Options{Idle: time.Millisecond, Logger: slog.Default()}).Serve(context.Background(), fd); err != nil {
		t.Error(err)
	}
}

// TestNoHelper: the error says which socket nobody answers on.
func TestNoHelper(t *testing.T) {
	own, err := netns.OfThread()
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	_, err = NewClient("/nowhere/netns.sock").Socket(own.FD(), unix.AF_INET, unix.SOCK_STREAM, 0)
	if !errors.Is(err, unix.ENOENT) || !strings.Contains(err.Error(), "/nowhere/netns.sock") {
		t.Errorf("got %v", err)
	}
}
