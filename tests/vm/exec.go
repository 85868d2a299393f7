// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/meshproxy/meshproxy/tests/vm/agent"
)

// Command says what to run in a machine, as root.
type Command struct {
	Args  []string
	Env   []string
	Dir   string
	Stdin io.Reader
}

// Result is how a command ended.
type Result struct {
	// Code is the exit status; 128 and the number of the signal after one.
	Code           int
	Stdout, Stderr string
}

// Process is a command that runs in a machine.
type Process struct {
	client         *client
	id             uint64
	stdout, stderr *text
	done           chan struct{}
	code           int   // set before done is closed
	err            error // why there is no code
}

func (p *Process) end(code int, problem string) {
	p.code = code
	if problem != "" {
		p.err = errors.New(problem)
	}
	p.stdout.finish()
	p.stderr.finish()
	close(p.done)
}

// Start starts a command and does not wait for it. It runs in the agent's
// cgroup; a workload is a unit, or a command of systemd-run.
func (v *VM) Start(ctx context.Context, c Command) (*Process, error) {
	return v.client.start(ctx, c)
}

// Exec runs a command to its end. An exit status other than 0 is no error.
func (v *VM) Exec(ctx context.Context, c Command) (Result, error) {
	p, err := v.Start(ctx, c)
	if err != nil {
		return Result{}, err
	}
	return p.Wait(ctx)
}

// Wait waits for the end of the process.
func (p *Process) Wait(ctx context.Context) (Result, error) {
	select {
	case <-p.done:
		r := Result{Code: p.code, Stdout: p.stdout.String(), Stderr: p.stderr.String()}
		return r, p.err
	case <-ctx.Done():
		_ = p.Signal(syscall.SIGKILL)
		return Result{Code: -1, Stdout: p.stdout.String(), Stderr: p.stderr.String()},
			fmt.Errorf("wait for command: %w", ctx.Err())
	}
}

// Signal sends a signal to the process, not to its children.
func (p *Process) Signal(s syscall.Signal) error {
	return p.client.send(agent.Message{Op: agent.Signal, ID: p.id, Code: int(s)})
}

// Stdout returns what the process has written so far.
func (p *Process) Stdout() string { return p.stdout.String() }

// Stderr returns what the process has written to descriptor 2 so far.
func (p *Process) Stderr() string { return p.stderr.String() }

// WaitOutput waits until the standard output contains this.
func (p *Process) WaitOutput(ctx context.Context, what string) error {
	return p.stdout.wait(ctx, what)
}

// patience bounds the commands of Run and its kind; it is generous, since
// emulated machines on a busy one are slow.
const patience = 10 * time.Minute

// Run runs a command, which must succeed, and returns its standard output.
func (v *VM) Run(t testing.TB, args ...string) string {
	t.Helper()
	r := v.Try(t, args...)
	if r.Code != 0 {
		t.Fatalf("%s: %s: exit status %d\n%s%s", v.opts.Name, strings.Join(args, " "), r.Code, r.Stdout, r.Stderr)
	}
	return r.Stdout
}

// Try runs a command that may fail.
func (v *VM) Try(t testing.TB, args ...string) Result {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	r, err := v.Exec(ctx, Command{Args: args})
	if err != nil {
		t.Fatalf("%s: %s: %v\n%s%s", v.opts.Name, strings.Join(args, " "), err, r.Stdout, r.Stderr)
	}
	return r
}

// Shell runs a script, which ends at the first command that fails and must not.
func (v *VM) Shell(t testing.TB, script string) string {
	t.Helper()
	return v.Run(t, "bash", "-euo", "pipefail", "-c", script)
}

// Eventually runs a script until it succeeds.
func (v *VM) Eventually(t testing.TB, what, script string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	// The loop is the machine's: a round trip each time would cost more.
	r, err := v.Exec(ctx, Command{Args: []string{"bash", "-c", `until out=$(bash -euo pipefail -c "$0" 2>&1); do printf '%s' "$out" >/run/vm-eventually; sleep 0.1; done; printf '%s' "$out"`, script}})
	if err != nil {
		last := v.Try(t, "cat", "/run/vm-eventually")
		t.Fatalf("%s: %s: %v: %s", v.opts.Name, what, err, last.Stdout)
	}
	return r.Stdout
}

// Put writes a file.
func (v *VM) Put(t testing.TB, f File) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var content io.Reader = strings.NewReader(f.Content)
	if f.From != "" {
		file, err := os.Open(f.From)
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		content = file
	}
	mode := f.Mode
	if mode == 0 {
		mode = 0o644
	}
	script := `mkdir -p "$(dirname "$0")" && cat >"$0.new" && chmod "$1" "$0.new" && mv "$0.new" "$0"`
	r, err := v.Exec(ctx, Command{Args: []string{"sh", "-c", script, f.Path, fmt.Sprintf("%o", mode.Perm())}, Stdin: content})
	if err != nil || r.Code != 0 {
		t.Fatalf("%s: put %s: %v: %s", v.opts.Name, f.Path, err, r.Stderr)
	}
}

// Get returns what a file contains.
func (v *VM) Get(t testing.TB, path string) []byte {
	t.Helper()
	return []byte(v.Run(t, "cat", path))
}

// text is what a process has written.
type text struct {
	mu    sync.Mutex
	buf   bytes.Buffer
	ended bool
	more  chan struct{} // closed, and replaced, when something is added
}

func newText() *text { return &text{more: make(chan struct{})} }

func (t *text) add(p []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf.Write(p)
	close(t.more)
	t.more = make(chan struct{})
}

func (t *text) finish() {
	t.mu.Lock()
	t.ended = true
	t.mu.Unlock()
	t.add(nil)
}

func (t *text) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.buf.String()
}

func (t *text) wait(ctx context.Context, what string) error {
	for {
		t.mu.Lock()
		found, ended, more := strings.Contains(t.buf.String(), what), t.ended, t.more
		t.mu.Unlock()
		if found {
			return nil
		}
		if ended {
			return fmt.Errorf("wait for %q: the process ended, having said %q", what, tail(t.String(), 500))
		}
		select {
		case <-more:
		case <-ctx.Done():
			return fmt.Errorf("wait for %q: %w", what, ctx.Err())
		}
	}
}
