// SPDX-License-Identifier: Apache-2.0

package consul

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"github.com/meshproxy/meshproxy/tests/testnet"
)

// command is a program of this package, on a host or on this machine.
type command struct {
	name string
	path string
	args []string
	env  []string
	dir  string // of the log; on a host it has a place of its own
}

// process is one that runs.
type process interface {
	Pid() int
	Signal(os.Signal) error
	Done() <-chan struct{}
	// Log is the path of what it has written.
	Log() string
}

func start(host *testnet.Host, c command) (process, error) {
	if host == nil {
		return startHere(c)
	}
	return host.Start(testnet.Command{
		Name: c.name, Path: c.path, Args: c.args, Env: c.env, Cgroup: c.name + ".service",
	})
}

// local is a process on this machine.
type local struct {
	cmd  *exec.Cmd
	log  string
	done chan struct{}
}

// startHere starts a process that dies with this one: the signal comes when the
// thread ends that has started it, so that thread waits for it.
func startHere(c command) (*local, error) {
	log, err := os.OpenFile(filepath.Join(c.dir, c.name+".log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", c.name, err)
	}
	p := &local{
		cmd: &exec.Cmd{
			Path: c.path, Args: append([]string{c.name}, c.args...), Env: append(os.Environ(), c.env...),
			Stdout: log, Stderr: log,
			SysProcAttr: &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL},
		},
		log: log.Name(), done: make(chan struct{}),
	}
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer close(p.done)
		defer log.Close()
		err := p.cmd.Start()
		started <- err
		if err == nil {
			_ = p.cmd.Wait() // how it ended stands in its log
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", c.name, err)
	}
	return p, nil
}

func (p *local) Pid() int              { return p.cmd.Process.Pid }
func (p *local) Done() <-chan struct{} { return p.done }
func (p *local) Log() string           { return p.log }

func (p *local) Signal(s os.Signal) error {
	if err := p.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("signal %s: %w", p.cmd.Args[0], err)
	}
	return nil
}

// end asks a process to end, and kills it when it doesn't.
func end(p process) error {
	// One that is stopped would not see that it is asked.
	if err := errors.Join(p.Signal(syscall.SIGTERM), p.Signal(syscall.SIGCONT)); err != nil {
		return err
	}
	select {
	case <-p.Done():
		return nil
	case <-time.After(5 * time.Second):
	}
	err := p.Signal(os.Kill)
	<-p.Done()
	return err
}

// tail is the end of a process's log.
func tail(p process, most int) string {
	text, err := os.ReadFile(p.Log())
	if err != nil {
		return err.Error()
	}
	return string(text[max(0, len(text)-most):])
}
