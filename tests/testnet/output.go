// SPDX-License-Identifier: Apache-2.0

package testnet

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
)

// outputLimit bounds what is remembered of a stream, in bytes. The log file
// has more of it, up to logLimit.
const (
	outputLimit = 1 << 20
	logLimit    = 16 << 20
)

// ErrEnded means that a process ended before it wrote what was waited for.
var ErrEnded = errors.New("output ended")

// Output remembers the latest lines of a process's output. It may be used from
// several goroutines.
type Output struct {
	mu      sync.Mutex
	lines   []string
	first   int // number of lines[0] since the beginning
	size    int
	ended   bool
	changed chan struct{} // closed and replaced at each change
}

// boundedFile is a log that is emptied when it gets too long: logs lie in
// memory, and a topology may stay for days.
type boundedFile struct {
	*os.File // appends
	written  int
}

func (f *boundedFile) Write(p []byte) (int, error) {
	if f.written > logLimit {
		if err := f.Truncate(0); err != nil {
			return 0, err
		}
		f.written = 0
	}
	n, err := f.File.Write(p)
	f.written += n
	return n, err
}

func newOutput() *Output { return &Output{changed: make(chan struct{})} }

// follow reads lines until r ends and copies them to log.
func (o *Output) follow(r io.Reader, log io.Writer) {
	br := bufio.NewReaderSize(r, 64<<10)
	for {
		line, err := br.ReadString('\n')
		if line != "" {
			_, _ = io.WriteString(log, line)
			o.add(strings.TrimSuffix(line, "\n"))
		}
		if err != nil {
			break
		}
	}
	o.mu.Lock()
	o.ended = true
	close(o.changed)
	o.changed = make(chan struct{})
	o.mu.Unlock()
}

func (o *Output) add(line string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.lines = append(o.lines, line)
	o.size += len(line)
	for o.size > outputLimit && len(o.lines) > 1 {
		o.size -= len(o.lines[0])
		o.lines = o.lines[1:]
		o.first++
	}
	close(o.changed)
	o.changed = make(chan struct{})
}

// Lines returns the lines from number n on (the first line is 0) and the
// number of the next line. Lines that are forgotten already are left out.
func (o *Output) Lines(n int) (lines []string, next int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	i := min(max(n-o.first, 0), len(o.lines))
	return append([]string(nil), o.lines[i:]...), o.first + len(o.lines)
}

// Bytes returns all that is remembered.
func (o *Output) Bytes() []byte {
	lines, _ := o.Lines(0)
	var b bytes.Buffer
	for _, l := range lines {
		b.WriteString(l)
		b.WriteByte('\n')
	}
	return b.Bytes()
}

// String returns all that is remembered.
func (o *Output) String() string { return string(o.Bytes()) }

// Tail returns the last n bytes.
func (o *Output) Tail(n int) string {
	b := o.Bytes()
	return string(bytes.TrimSpace(b[max(0, len(b)-n):]))
}

// WaitLine waits for a line that match accepts, from the beginning on, and
// returns it.
func (o *Output) WaitLine(ctx context.Context, match func(string) bool) (string, error) {
	next := 0
	for {
		o.mu.Lock()
		changed, ended := o.changed, o.ended
		o.mu.Unlock()
		var lines []string
		lines, next = o.Lines(next)
		for _, l := range lines {
			if match(l) {
				return l, nil
			}
		}
		if ended {
			return "", fmt.Errorf("wait for line: %w", ErrEnded)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return "", fmt.Errorf("wait for line: %w", ctx.Err())
		}
	}
}

// WaitString waits for a line that contains s.
func (o *Output) WaitString(ctx context.Context, s string) (string, error) {
	line, err := o.WaitLine(ctx, func(l string) bool { return strings.Contains(l, s) })
	if err != nil {
		return "", fmt.Errorf("%q: %w", s, err)
	}
	return line, nil
}
