// SPDX-License-Identifier: Apache-2.0

package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/meshproxy/meshproxy/tests/testnet"
)

// A demo that is kept has a keeper: a process in a session of its own that
// plays the demo and, when the verdict is out, lets go of the terminal and of
// the command that started it. Everything else is the keeper's, and goes with
// it.

const (
	// keeperName is the argument that makes this program the keeper.
	keeperName = "keeper"
	// keeperFile has the keeper's pid; the keeper holds a lock on it as long
	// as it lives.
	keeperFile = "/run/meshproxy-demo.pid"
	// starterFD is the keeper's connection to the command that started it.
	starterFD = 3
)

// keep starts a keeper and returns when its verdict is out, which is then
// nil or ErrFailed and leaves the demo up. When it ends earlier, or ctx does,
// nothing is left.
func keep(ctx context.Context, o options, stdout, stderr io.Writer) error {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("connect to the keeper: %w", err)
	}
	mine, theirs := os.NewFile(uintptr(pair[0]), "keeper"), os.NewFile(uintptr(pair[1]), "starter")
	defer mine.Close()
	cmd := exec.Command(testnet.Self, commandName, keeperName, "-duration", o.duration.String())
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = stdout, stderr, []*os.File{theirs}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	_ = theirs.Close()
	if err != nil {
		return fmt.Errorf("start the keeper: %w", err)
	}
	// The keeper takes the end of this connection for a Ctrl-C.
	stop := context.AfterFunc(ctx, func() { _ = unix.Shutdown(pair[0], unix.SHUT_WR) })
	defer stop()
	said, err := io.ReadAll(mine)
	if err != nil {
		return fmt.Errorf("hear from the keeper: %w", err)
	}
	failures, err := strconv.Atoi(strings.TrimSpace(string(said)))
	if err != nil { // it has ended, and has said why
		if err := cmd.Wait(); err != nil {
			return fmt.Errorf("%w: the keeper ended: %w", ErrFailed, err)
		}
		return fmt.Errorf("%w: interrupted", ErrFailed)
	}
	_ = cmd.Process.Release()
	if failures > 0 {
		return ErrFailed
	}
	return nil
}

// runKeeper is the keeper's side.
func runKeeper(ctx context.Context, o options, stdout io.Writer) error {
	release, err := lockKeeperFile()
	if err != nil {
		return err
	}
	defer release()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	starter := os.NewFile(starterFD, "starter")
	defer starter.Close()
	syscall.CloseOnExec(starterFD)
	var detached atomic.Bool
	go func() {
		_, _ = starter.Read(make([]byte, 1)) // the starter never writes
		if !detached.Load() {
			cancel()
		}
	}()
	return run(ctx, o, stdout, func(s *stage, v verdict) error {
		s.hints(stdout)
		if err := leaveTerminal(); err != nil {
			return err
		}
		detached.Store(true)
		if _, err := fmt.Fprintln(starter, v.failures()); err != nil {
			return fmt.Errorf("tell the verdict: %w", err)
		}
		// Closing would wait for the reading goroutine.
		if err := unix.Shutdown(starterFD, unix.SHUT_RDWR); err != nil {
			return fmt.Errorf("detach: %w", err)
		}
		<-ctx.Done()
		return nil
	})
}

// leaveTerminal lets go of standard output and error, which may be a pipe that
// somebody reads to its end.
func leaveTerminal() error {
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("leave terminal: %w", err)
	}
	defer null.Close()
	for _, fd := range []int{1, 2} {
		if err := unix.Dup3(int(null.Fd()), fd, 0); err != nil {
			return fmt.Errorf("leave terminal: %w", err)
		}
	}
	return nil
}

// lockKeeperFile makes this process the keeper.
func lockKeeperFile() (release func(), err error) {
	f, err := os.OpenFile(keeperFile, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o644)
	if err != nil {
		return nil, fmt.Errorf("become keeper: %w", err)
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		err = f.Truncate(0)
	}
	if err == nil {
		_, err = fmt.Fprintln(f, os.Getpid())
	}
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("become keeper: lock %s: %w", keeperFile, err)
	}
	// The file stays: a lock on one that is removed excludes nobody.
	return func() { _ = f.Close() }, nil
}

// takeDown ends the demo that is kept, if there is one, and waits until it has
// cleaned up. What a killed one left is swept.
func takeDown(ctx context.Context) (found bool, err error) {
	f, err := os.OpenFile(keeperFile, os.O_RDWR|unix.O_NOFOLLOW, 0)
	if errors.Is(err, os.ErrNotExist) {
		return false, testnet.Sweep()
	}
	if err != nil {
		return false, fmt.Errorf("find keeper: %w", err)
	}
	defer f.Close()
	locked := func() error { return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) }
	if locked() == nil {
		return false, testnet.Sweep()
	}
	text, err := io.ReadAll(f)
	if err != nil {
		return true, fmt.Errorf("find keeper: %w", err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return true, fmt.Errorf("find keeper: %s: %w", keeperFile, err)
	}
	// Whoever holds the lock is alive, so the pid is its own.
	if err := unix.Kill(pid, unix.SIGTERM); err != nil {
		return true, fmt.Errorf("stop keeper: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if err := testnet.Until(ctx, locked); err != nil {
		return true, fmt.Errorf("wait for keeper %d to clean up: %w", pid, err)
	}
	return true, nil
}
