// SPDX-License-Identifier: Apache-2.0

package testnet

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
)

// Self is the running program's own executable. Unlike its path it can be
// executed by every user.
const Self = "/proc/self/exe"

// Command says what to start in a namespace.
type Command struct {
	// Name names the process in log files and errors.
	Name string
	// Path is the executable, absolute. Args are its arguments without
	// argv[0].
	Path string
	Args []string
	// Env is added to the environment of this process.
	Env []string
	Dir string
	// Cgroup is below the namespace's own ("web.service"); it is made when
	// missing. The process is born in it (clone3 with CLONE_INTO_CGROUP).
	Cgroup string
	// UID and GID of the process; zero is root.
	UID, GID uint32
	// Capabilities are the only ones of a process that isn't root's.
	Capabilities []uintptr
	// Stdin is the process's standard input; nil is /dev/null.
	Stdin *os.File
	// ExtraFiles become descriptors 3 and following.
	ExtraFiles []*os.File
}

// Process is a process in a namespace.
type Process struct {
	name   string
	cmd    *exec.Cmd
	stdout *Output
	stderr *Output
	log    string
	done   chan struct{}
	err    error // of Wait; set before done is closed
}

// Start starts a process in the namespace. It dies with the topology, and
// with the process that made it.
func (n *Namespace) Start(c Command) (*Process, error) {
	p := &Process{
		name: c.Name,
		log:  filepath.Join(n.dir, "log", c.Name+".log"),
		done: make(chan struct{}),
	}
	if err := n.start(p, c); err != nil {
		return nil, fmt.Errorf("start %s on %s: %w", c.Name, n.name, err)
	}
	t := n.topology
	t.mu.Lock()
	t.processes = append(t.processes, p)
	closed := t.closed
	t.mu.Unlock()
	if closed { // Close didn't see it
		_ = p.Kill()
	}
	return p, nil
}

func (n *Namespace) start(p *Process, c Command) error {
	group := n.Cgroup(c.Cgroup)
	if err := os.MkdirAll(group, 0o755); err != nil {
		return fmt.Errorf("make cgroup: %w", err)
	}
	dir, err := os.Open(group)
	if err != nil {
		return fmt.Errorf("open cgroup: %w", err)
	}
	defer dir.Close()
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	defer log.Close()

	p.cmd = &exec.Cmd{
		Path:       c.Path,
		Args:       append([]string{filepath.Base(c.Name)}, c.Args...),
		Env:        append(os.Environ(), c.Env...),
		Dir:        c.Dir,
		ExtraFiles: c.ExtraFiles,
		SysProcAttr: &syscall.SysProcAttr{
			UseCgroupFD: true,
			CgroupFD:    int(dir.Fd()),
			Credential:  &syscall.Credential{Uid: c.UID, Gid: c.GID},
			AmbientCaps: c.Capabilities,
			Setpgid:     true, // a Ctrl-C at the terminal is the owner's to handle
			Pdeathsig:   syscall.SIGKILL,
		},
	}
	if c.Stdin != nil {
		p.cmd.Stdin = c.Stdin
	}
	var copies sync.WaitGroup
	outW, err := p.pipe(&p.stdout, log, &copies)
	if err != nil {
		return err
	}
	errW, err := p.pipe(&p.stderr, log, &copies)
	if err != nil {
		_ = outW.Close()
		return err
	}
	p.cmd.Stdout, p.cmd.Stderr = outW, errW
	err = n.Do(p.cmd.Start)
	_, _ = outW.Close(), errW.Close()
	if err != nil {
		copies.Wait()
		return err
	}
	go func() {
		p.err = p.cmd.Wait()
		copies.Wait()
		close(p.done)
	}()
	return nil
}

// pipe makes an Output that is fed by the returned writing end.
func (p *Process) pipe(o **Output, log *os.File, copies *sync.WaitGroup) (*os.File, error) {
	fd, err := syscall.Dup(int(log.Fd()))
	if err != nil {
		return nil, fmt.Errorf("duplicate log: %w", err)
	}
	syscall.CloseOnExec(fd)
	r, w, err := os.Pipe()
	if err != nil {
		_ = syscall.Close(fd)
		return nil, fmt.Errorf("make pipe: %w", err)
	}
	out := newOutput()
	*o = out
	copies.Add(1)
	go func() {
		defer copies.Done()
		defer r.Close()
		file := os.NewFile(uintptr(fd), p.log)
		defer file.Close()
		out.follow(r, &boundedFile{File: file})
	}()
	return w, nil
}

// Name returns the name that the process was started with.
func (p *Process) Name() string { return p.name }

// Pid returns the process id.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Stdout and Stderr are what the process has written.
func (p *Process) Stdout() *Output { return p.stdout }

// Stderr is the output on descriptor 2.
func (p *Process) Stderr() *Output { return p.stderr }

// Log returns the path of the file that gets all output; one that grows too
// large begins again.
func (p *Process) Log() string { return p.log }

// Done is closed when the process has ended and all its output is read.
func (p *Process) Done() <-chan struct{} { return p.done }

// Signal sends a signal. A process that is gone already is no error.
func (p *Process) Signal(s os.Signal) error {
	if err := p.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("signal %s: %w", p.name, err)
	}
	return nil
}

// Kill kills the process.
func (p *Process) Kill() error { return p.Signal(os.Kill) }

// Wait waits for the end and returns nil for exit status 0, an
// *exec.ExitError for others, or the context's error.
func (p *Process) Wait(ctx context.Context) error {
	select {
	case <-p.done:
		return p.err
	case <-ctx.Done():
		return fmt.Errorf("wait for %s: %w", p.name, ctx.Err())
	}
}

// Stop asks the process to end (SIGTERM), waits, and kills it when the context
// ends first.
func (p *Process) Stop(ctx context.Context) error {
	if err := p.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	select {
	case <-p.done:
		return nil
	case <-ctx.Done():
	}
	err := p.Kill()
	<-p.done
	return errors.Join(fmt.Errorf("stop %s: %w", p.name, ctx.Err()), err)
}

// ExitCode returns the exit status, or -1 while it runs and after a signal.
func (p *Process) ExitCode() int {
	select {
	case <-p.done:
		return p.cmd.ProcessState.ExitCode()
	default:
		return -1
	}
}

// Run runs a command to its end and returns what it wrote to standard output.
// An exit status other than 0 is an *exec.ExitError.
func (n *Namespace) Run(ctx context.Context, c Command) ([]byte, error) {
	p, err := n.Start(c)
	if err != nil {
		return nil, err
	}
	if err := p.Wait(ctx); err != nil {
		_ = p.Kill()
		return p.stdout.Bytes(), fmt.Errorf("run %s on %s: %w: %s", c.Name, n.name, err, p.stderr.Tail(512))
	}
	return p.stdout.Bytes(), nil
}
