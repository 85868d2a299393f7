// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/meshproxy/meshproxy/tests/vm/agent"
)

// errAgentGone means that the machine rebooted, or ended, while a command ran.
var errAgentGone = errors.New("the machine's agent is gone")

// client talks to the agent of one machine, over all its boots.
type client struct {
	conn    net.Conn
	writing sync.Mutex
	reader  sync.WaitGroup

	mu      sync.Mutex
	next    uint64
	calls   map[uint64]*Process
	current string        // boot; empty before the first
	changed chan struct{} // closed, and replaced, with each boot
	closed  bool
}

// connect connects to qemu's end of the port, as soon as qemu has made it.
func connect(ctx context.Context, path string, gone <-chan struct{}) (*client, error) {
	var dialer net.Dialer
	for {
		conn, err := dialer.DialContext(ctx, "unix", path)
		if err == nil {
			c := &client{conn: conn, calls: make(map[uint64]*Process), changed: make(chan struct{})}
			c.reader.Add(1)
			go c.read()
			return c, nil
		}
		select {
		case <-gone:
			return nil, errors.New("qemu ended")
		case <-ctx.Done():
			return nil, fmt.Errorf("connect to agent: %w", err)
		case <-time.After(10 * time.Millisecond): // nothing tells of a socket that appears
		}
	}
}

func (c *client) read() {
	defer c.reader.Done()
	lines := bufio.NewReaderSize(c.conn, 1<<16)
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			break
		}
		var m agent.Message
		if json.Unmarshal(line, &m) != nil {
			continue // what a reboot has cut off
		}
		c.handle(m)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	c.begin("")
}

func (c *client) handle(m agent.Message) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if m.Op == agent.Hello {
		c.begin(m.Boot)
		return
	}
	p := c.calls[m.ID]
	if p == nil {
		return
	}
	switch m.Op {
	case agent.Stdout:
		p.stdout.add(m.Data)
	case agent.Stderr:
		p.stderr.add(m.Data)
	case agent.Exit:
		delete(c.calls, m.ID)
		p.end(m.Code, m.Error)
	}
}

// begin ends the calls of the boot before, and tells those who wait.
func (c *client) begin(boot string) {
	for id, p := range c.calls {
		delete(c.calls, id)
		p.end(-1, errAgentGone.Error())
	}
	c.current = boot
	close(c.changed)
	c.changed = make(chan struct{})
}

// boot waits for a boot other than this one, and returns it.
func (c *client) boot(ctx context.Context, not string) (string, error) {
	for {
		c.mu.Lock()
		current, changed, closed := c.current, c.changed, c.closed
		c.mu.Unlock()
		if current != "" && current != not {
			return current, nil
		}
		if closed {
			return "", errAgentGone
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return "", fmt.Errorf("wait for agent: %w", ctx.Err())
		}
	}
}

func (c *client) start(ctx context.Context, cmd Command) (*Process, error) {
	if _, err := c.boot(ctx, ""); err != nil {
		return nil, err
	}
	p := &Process{client: c, stdout: newText(), stderr: newText(), done: make(chan struct{})}
	c.mu.Lock()
	c.next++
	p.id = c.next
	c.calls[p.id] = p
	c.mu.Unlock()
	if err := c.send(agent.Message{Op: agent.Start, ID: p.id, Args: cmd.Args, Env: cmd.Env, Dir: cmd.Dir}); err != nil {
		return nil, err
	}
	return p, p.feed(cmd.Stdin)
}

// feed sends a process its input: all of it, and its end.
func (p *Process) feed(input io.Reader) error {
	if input != nil {
		buf := make([]byte, 1<<16)
		for {
			n, err := input.Read(buf)
			if n > 0 {
				if err := p.client.send(agent.Message{Op: agent.Stdin, ID: p.id, Data: buf[:n]}); err != nil {
					return err
				}
			}
			if err == io.EOF {
				break
			}
			if err != nil {
				return fmt.Errorf("read input: %w", err)
			}
		}
	}
	return p.client.send(agent.Message{Op: agent.EOF, ID: p.id})
}

func (c *client) send(m agent.Message) error {
	line, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("send to agent: %w", err)
	}
	c.writing.Lock()
	defer c.writing.Unlock()
	if _, err := c.conn.Write(append(line, '\n')); err != nil {
		return fmt.Errorf("send to agent: %w", err)
	}
	return nil
}

func (c *client) close() {
	_ = c.conn.Close()
	c.reader.Wait()
}
