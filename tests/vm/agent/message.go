// SPDX-License-Identifier: Apache-2.0

// Package agent runs commands in a virtual machine on behalf of a test: the
// test's end sends messages over a virtio serial port, the agent starts
// processes and sends back what they write and how they end.
//
// Messages are JSON, one a line: where a reboot cut one off, the next line is
// whole again. The package must know nothing of what the commands are for.
package agent

// Operations of messages.
const (
	// Hello is the agent's first message after a start; Boot names the boot.
	Hello = "hello"
	// Start starts a process: Args, Env, Dir. Its ID names it from then on.
	Start = "start"
	// Stdin is input for the process; EOF ends it.
	Stdin = "stdin"
	EOF   = "eof"
	// Signal sends Code to the process.
	Signal = "signal"
	// Stdout and Stderr are what the process has written.
	Stdout = "stdout"
	Stderr = "stderr"
	// Exit is the end: Code is the exit status, 128 and the signal's number
	// after a signal, as shells have it. Error says why it did not start.
	Exit = "exit"
)

// Message is one line, in either direction.
type Message struct {
	Op    string   `json:"op"`
	ID    uint64   `json:"id,omitempty"`
	Boot  string   `json:"boot,omitempty"`
	Args  []string `json:"args,omitempty"`
	Env   []string `json:"env,omitempty"`
	Dir   string   `json:"dir,omitempty"`
	Data  []byte   `json:"data,omitempty"`
	Code  int      `json:"code,omitempty"`
	Error string   `json:"error,omitempty"`
}
