// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"bufio"
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"sync"
	"syscall"
	"time"
)

// Agent answers the messages of one port.
type Agent struct {
	port io.ReadWriter
	boot string

	mu        sync.Mutex // guards writes to the port, and processes
	processes map[uint64]*process
}

// New makes an agent for a port; boot tells the boots of a machine apart.
func New(port io.ReadWriter, boot string) *Agent {
	return &Agent{port: port, boot: boot, processes: make(map[uint64]*process)}
}

// idle is how long the agent waits where nobody is connected: the port reads
// as its end then, and no event tells when that changes
// (port_fops_read in drivers/char/virtio_console.c).
const idle = 20 * time.Millisecond

// Serve says hello and answers messages until reading fails.
func (a *Agent) Serve() error {
	a.send(Message{Op: Hello, Boot: a.boot})
	lines := bufio.NewReaderSize(a.port, 1<<16)
	var line []byte
	for {
		part, err := lines.ReadBytes('\n')
		line = append(line, part...)
		if errors.Is(err, io.EOF) {
			time.Sleep(idle)
			continue
		}
		if err != nil {
			return err
		}
		var m Message
		if json.Unmarshal(line, &m) == nil {
			a.handle(m)
		}
		line = line[:0]
	}
}

func (a *Agent) handle(m Message) {
	if m.Op == Start {
		a.start(m)
		return
	}
	a.mu.Lock()
	p := a.processes[m.ID]
	a.mu.Unlock()
	if p == nil {
		return // it has ended, which the other end is about to hear
	}
	switch m.Op {
	case Stdin:
		p.input.write(m.Data)
	case EOF:
		p.input.finish()
	case Signal:
		_ = p.cmd.Process.Signal(syscall.Signal(m.Code)) // it may be gone
	}
}

func (a *Agent) send(m Message) {
	line, err := json.Marshal(m)
	if err != nil {
		panic(err) // a Message always has a JSON form
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	_, _ = a.port.Write(append(line, '\n')) // nobody is left to tell
}

type process struct {
	cmd   *exec.Cmd
	input *queue
}

func (a *Agent) start(m Message) {
	p := &process{cmd: exec.Command(m.Args[0], m.Args[1:]...), input: newQueue()}
	p.cmd.Env = append(p.cmd.Environ(), m.Env...)
	p.cmd.Dir = m.Dir
	p.cmd.Stdin = p.input
	p.cmd.Stdout = stream{a, m.ID, Stdout}
	p.cmd.Stderr = stream{a, m.ID, Stderr}
	// A process of its own may go on in the background, with the output open.
	p.cmd.WaitDelay = time.Second
	if err := p.cmd.Start(); err != nil {
		a.send(Message{Op: Exit, ID: m.ID, Code: 127, Error: err.Error()})
		return
	}
	a.mu.Lock()
	a.processes[m.ID] = p
	a.mu.Unlock()
	go func() {
		_ = p.cmd.Wait() // the state has what matters
		a.mu.Lock()
		delete(a.processes, m.ID)
		a.mu.Unlock()
		p.input.finish()
		a.send(Message{Op: Exit, ID: m.ID, Code: status(p.cmd)})
	}()
}

func status(cmd *exec.Cmd) int {
	ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus)
	if ok && ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return cmd.ProcessState.ExitCode()
}

// stream sends what a process writes.
type stream struct {
	agent *Agent
	id    uint64
	op    string
}

func (s stream) Write(p []byte) (int, error) {
	s.agent.send(Message{Op: s.op, ID: s.id, Data: p})
	return len(p), nil
}

// queue is input that a process has not read yet. It is unbounded, so that one
// that does not read keeps no other waiting.
type queue struct {
	mu   sync.Mutex
	more *sync.Cond
	data []byte
	done bool
}

func newQueue() *queue {
	q := &queue{}
	q.more = sync.NewCond(&q.mu)
	return q
}

func (q *queue) write(data []byte) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.data = append(q.data, data...)
	q.more.Signal()
}

func (q *queue) finish() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.done = true
	q.more.Signal()
}

func (q *queue) Read(p []byte) (int, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.data) == 0 {
		if q.done {
			return 0, io.EOF
		}
		q.more.Wait()
	}
	n := copy(p, q.data)
	q.data = q.data[n:]
	return n, nil
}
