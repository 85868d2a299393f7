// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// process is a qemu that dies with this process.
type process struct {
	cmd  *exec.Cmd
	done chan struct{}
}

func startProcess(log, env string, args ...string) (*process, error) {
	out, err := os.OpenFile(log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	defer out.Close()
	p := &process{cmd: exec.Command(args[0], args[1:]...), done: make(chan struct{})}
	p.cmd.Env = append(os.Environ(), env)
	p.cmd.Stdout, p.cmd.Stderr = out, out
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setsid: true}
	started := make(chan error, 1)
	go func() {
		// The signal comes when the thread ends that has started it, not the
		// process (prctl(2), PR_SET_PDEATHSIG): Wait keeps this one.
		runtime.LockOSThread()
		err := p.cmd.Start()
		started <- err
		if err == nil {
			_ = p.cmd.Wait()
		}
		close(p.done)
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", args[0], err)
	}
	if err := prefer(p.cmd.Process.Pid); err != nil {
		p.kill()
		return nil, err
	}
	return p, nil
}

// prefer has a process come before what else runs here: timeouts in a machine
// go by the real clock, however little of the processor it gets.
// MESHPROXY_VM_NICE is for a machine that others work on.
func prefer(pid int) error {
	nice := -19
	if v := os.Getenv("MESHPROXY_VM_NICE"); v != "" {
		var err error
		if nice, err = strconv.Atoi(v); err != nil || nice < -20 || nice > 19 {
			return fmt.Errorf("set priority: MESHPROXY_VM_NICE is %q, want -20 to 19", v)
		}
	}
	if err := unix.Setpriority(unix.PRIO_PROCESS, pid, nice); err != nil {
		return fmt.Errorf("set priority: %w", err)
	}
	// Where the kernel groups sessions (sched(7)), the group's counts.
	err := os.WriteFile(fmt.Sprintf("/proc/%d/autogroup", pid), []byte(strconv.Itoa(nice)), 0)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("set priority of session: %w", err)
	}
	return nil
}

func (p *process) kill() {
	_ = p.cmd.Process.Kill() // it may be gone
	<-p.done
}

// runPrefix begins the names of the directories that machines have while they
// run; the pid follows.
const runPrefix = "meshproxy-vm-"

// newRunDir makes one. It is in the temporary directory of the system, whose
// path is short enough for sockets.
func newRunDir() (string, error) {
	dir, err := os.MkdirTemp("", runPrefix+strconv.Itoa(os.Getpid())+"-")
	if err != nil {
		return "", fmt.Errorf("make directory: %w", err)
	}
	return dir, nil
}

// sweep removes what crashed test processes left.
func sweep() error {
	dirs, err := filepath.Glob(filepath.Join(os.TempDir(), runPrefix+"*"))
	if err != nil {
		return fmt.Errorf("list leftovers: %w", err)
	}
	for _, dir := range dirs {
		number, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(dir), runPrefix), "-")
		pid, err := strconv.Atoi(number)
		if err != nil || unix.Kill(pid, 0) != unix.ESRCH {
			continue
		}
		if err := os.RemoveAll(dir); err != nil {
			return fmt.Errorf("remove leftover: %w", err)
		}
	}
	return nil
}

// turn is this process's leave to have machines; it is taken once.
var turn = sync.OnceValue(takeTurn)

// takeTurn waits until no other process has machines: two of them are as much as
// two processors emulate in time. The lock goes with the process.
func takeTurn() error {
	cache, err := cacheDir()
	if err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(cache, "turn"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("open lock: %w", err)
	}
	if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
		return nil
	}
	fmt.Fprintln(os.Stderr, "vm: waiting for other tests with machines")
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if err == nil {
			return nil
		}
		if err != unix.EINTR {
			return fmt.Errorf("wait for turn: %w", err)
		}
	}
}

// prepare has everything ready that machines need of this one.
func prepare(ctx context.Context) error {
	if os.Getuid() != 0 {
		return fmt.Errorf("make machines: %w: their images are made by root", os.ErrPermission)
	}
	if err := installTools(ctx); err != nil {
		return err
	}
	if err := turn(); err != nil {
		return err
	}
	return sweep()
}

// agentProgram builds the agent.
var agentProgram = func(ctx context.Context) (string, error) {
	return Build(ctx, "github.com/meshproxy/meshproxy/tests/vm/cmd/agent")
}
