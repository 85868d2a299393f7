// SPDX-License-Identifier: Apache-2.0

package handover

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// environment tells the successor where its end of the connection is. It is no
// variable of the configuration, which all begin with MESHPROXY_.
const environment = "_MESHPROXY_HANDOVER_FD"

// forOne are variables that the service manager meant for the process that it
// started, and nobody else.
var forOne = []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "WATCHDOG_PID", environment}

// Program is the executable of this process as it was named: what lies there
// later is what an upgrade starts.
type Program struct {
	path string
	args []string
}

// ThisProgram must be called at the start, before the file is replaced.
func ThisProgram() (Program, error) {
	path := os.Args[0]
	if !filepath.IsAbs(path) {
		// Found in PATH, or named by whoever pleased.
		var err error
		if path, err = os.Executable(); err != nil {
			return Program{}, fmt.Errorf("find own executable: %w", err)
		}
	}
	return Program{path: path, args: os.Args[1:]}, nil
}

// Path is where the executable lies.
func (p Program) Path() string { return p.path }

// Changed reports whether another file lies where this process's executable
// was. The kernel keeps the old one, so its inode is not given to another.
func (p Program) Changed() (bool, error) {
	running, err := os.Stat("/proc/self/exe")
	if err != nil {
		return false, fmt.Errorf("look at own executable: %w", err)
	}
	there, err := os.Stat(p.path)
	if err != nil {
		return false, fmt.Errorf("look for own executable: %w", err)
	}
	return !os.SameFile(running, there), nil
}

// process is a successor. It is no child of this process but a sister: the
// service manager, which started this one, hears of its end and can wait for it,
// as it can't for a grandchild.
type process struct {
	pid  int
	gone chan struct{} // closed when it has ended

	mu    sync.Mutex
	pidfd int // -1 when it has ended
}

// start runs the program with an end of a connection.
func (p Program) start(theirs *os.File) (*process, error) {
	pidfd := -1
	cmd := exec.Cmd{
		Path: p.path, Args: append([]string{os.Args[0]}, p.args...),
		Env:    append(without(os.Environ(), forOne), environment+"=3"),
		Stdout: os.Stdout, Stderr: os.Stderr,
		ExtraFiles:  []*os.File{theirs},
		SysProcAttr: &syscall.SysProcAttr{Cloneflags: unix.CLONE_PARENT, PidFD: &pidfd},
	}
	if err := cmd.Start(); err != nil {
		if errors.Is(err, unix.EINVAL) && os.Getpid() == 1 {
			err = errors.New("the init process of a container cannot be replaced")
		}
		return nil, fmt.Errorf("start %s: %w", p.path, err)
	}
	pid := cmd.Process.Pid
	_ = cmd.Process.Release() // somebody else waits for it
	if pidfd < 0 {
		return nil, fmt.Errorf("start %s: the kernel has no pidfd", p.path)
	}
	child := &process{pid: pid, pidfd: pidfd, gone: make(chan struct{})}
	go child.watch(pidfd)
	return child, nil
}

// watch waits for the end of the process.
func (p *process) watch(pidfd int) {
	defer close(p.gone)
	for {
		fds := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, -1)
		if n > 0 || err != nil && err != unix.EINTR {
			break
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	_ = unix.Close(pidfd)
	p.pidfd = -1
}

// killPatience is how long a process may take to be gone after SIGKILL.
const killPatience = 5 * time.Second

// kill ends the process and waits until it holds nothing any more.
func (p *process) kill() error {
	if err := p.signal(unix.SIGKILL); err != nil {
		return fmt.Errorf("kill process %d: %w", p.pid, err)
	}
	select {
	case <-p.gone:
		return nil
	case <-time.After(killPatience):
		return fmt.Errorf("process %d does not end", p.pid)
	}
}

func (p *process) signal(sig unix.Signal) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.pidfd < 0 {
		return nil
	}
	if err := unix.PidfdSendSignal(p.pidfd, sig, nil, 0); err != nil && err != unix.ESRCH {
		return err
	}
	return nil
}

func without(env, names []string) []string {
	kept := make([]string, 0, len(env))
next:
	for _, v := range env {
		for _, n := range names {
			if strings.HasPrefix(v, n+"=") {
				continue next
			}
		}
		kept = append(kept, v)
	}
	return kept
}

// inherited returns the descriptor that a predecessor left in the environment,
// -1 for none. It can be asked for once.
func inherited() (int, error) {
	text, ok := os.LookupEnv(environment)
	if !ok {
		return -1, nil
	}
	if err := os.Unsetenv(environment); err != nil {
		return -1, fmt.Errorf("clear %s: %w", environment, err)
	}
	fd, err := strconv.Atoi(text)
	if err != nil || fd < 3 {
		return -1, fmt.Errorf("%s=%q: want a descriptor", environment, text)
	}
	unix.CloseOnExec(fd)
	return fd, nil
}
