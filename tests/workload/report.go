// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// The events that reports begin with.
const (
	EventReady    = "ready"
	EventStats    = "stats"
	EventDialed   = "dialed"
	EventAccepted = "accepted"
	EventClosed   = "closed"
	EventHeld     = "held"

	EventConversed = "conversed"
)

// Ready says that a role has begun its work.
type Ready struct {
	Event string `json:"event"`
	// Listeners are the addresses served, by protocol ("http", "echo", …).
	Listeners map[string][]string `json:"listeners,omitempty"`
}

// Peers is what one side of a connection knows of the other.
type Peers struct {
	// Accepted is the address that accept(2) returned; empty at the client.
	Accepted string `json:"accepted,omitempty"`
	// Peer is what getpeername(2) says.
	Peer string `json:"peer,omitempty"`
	// Local is what getsockname(2) says.
	Local string `json:"local,omitempty"`
}

// Seen is the answer of the HTTP server and the first line of the TCP servers:
// the connection as the server sees it.
type Seen struct {
	// Server is the name that the server was given.
	Server string `json:"server"`
	Peers
	// The rest is HTTP's alone.
	Method string `json:"method,omitempty"`
	Host   string `json:"host,omitempty"`
	Path   string `json:"path,omitempty"`
	Body   string `json:"body,omitempty"`
}

// Accepted is reported by a server for each connection, when asked to.
type Accepted struct {
	Event string `json:"event"`
	Kind  string `json:"kind"`
	Peers
}

// Closed is reported by a server for each connection that the client ended,
// when asked to.
type Closed struct {
	Event string `json:"event"`
	Kind  string `json:"kind"`
	// Error is how: "EOF" or an errno's name.
	Error string `json:"error"`
	// Received is the number of bytes until then.
	Received int64 `json:"received"`
}

// The states of Held, in the order in which they come.
const (
	HeldRefused   = "refused" // the only one then
	HeldConnected = "connected"
	HeldAnswered  = "answered"
	HeldEnded     = "ended"
)

// Held is what became of a connection of "hold".
type Held struct {
	Event  string `json:"event"`
	Number int    `json:"number"`
	State  string `json:"state"`
	Error  string `json:"error,omitempty"`
	// Server is who answered.
	Server string `json:"server,omitempty"`
}

// Conversed is what came of converse.
type Conversed struct {
	Event  string `json:"event"`
	Target string `json:"target"`
	OK     bool   `json:"ok"`
	// Step is the one that failed, or "connect", and Error how.
	Step  string `json:"step,omitempty"`
	Error string `json:"error,omitempty"`
	// Lines are those that were read one by one, Rest what came until the end.
	Lines []string `json:"lines,omitempty"`
	Rest  string   `json:"rest,omitempty"`
}

// Stats is what a calling loop saw since the last report.
type Stats struct {
	Event    string  `json:"event"`
	Target   string  `json:"target"`
	Seconds  float64 `json:"seconds"`
	Requests int     `json:"requests"` // answered
	Errors   int     `json:"errors"`
	// Error is the name of the latest error.
	Error string `json:"error,omitempty"`
	// Microseconds from request to answer.
	P50 int64 `json:"p50us"`
	P99 int64 `json:"p99us"`
	Max int64 `json:"maxus"`
	// Peer is the latest getpeername(2).
	Peer string `json:"peer,omitempty"`
	// Seen is the latest answer: what the server saw.
	Seen *Seen `json:"seen,omitempty"`
	// Servers counts answers by the server's name.
	Servers map[string]int `json:"servers,omitempty"`
}

// Dialed is what came of dial-once.
type Dialed struct {
	Event  string `json:"event"`
	Target string `json:"target"`
	OK     bool   `json:"ok"`
	// Stage is where it failed: "resolve", "connect", "write" or "read".
	Stage string `json:"stage,omitempty"`
	// Error is the errno's name ("ECONNREFUSED"), "EOF", "TIMEOUT" or a text.
	Error string `json:"error,omitempty"`
	// Microseconds that connect(2) took.
	ConnectMicros int64 `json:"connectUs"`
	Peers
	// Reply is the first line that the server sent.
	Reply string `json:"reply,omitempty"`
}

// errorName returns a name for err that tests can compare: the errno's where
// there is one.
func errorName(err error) string {
	if err == nil {
		return ""
	}
	var dns *net.DNSError
	if errors.As(err, &dns) {
		if dns.IsNotFound {
			return "NXDOMAIN"
		}
		return "DNS: " + dns.Err
	}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		if name := unix.ErrnoName(errno); name != "" {
			return name
		}
	}
	if errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded) {
		return "TIMEOUT"
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return "EOF"
	}
	return err.Error()
}

// peersOf asks the kernel who is at the ends of a connection. net.Conn's own
// addresses won't do: it remembers what it dialled.
func peersOf(c net.Conn, accepted bool) Peers {
	p := Peers{Local: c.LocalAddr().String()}
	if accepted {
		// Go's net takes it from accept4(2).
		p.Accepted = c.RemoteAddr().String()
	}
	sc, ok := c.(syscall.Conn)
	if !ok {
		return p
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return p
	}
	_ = raw.Control(func(fd uintptr) {
		if sa, err := unix.Getpeername(int(fd)); err == nil {
			p.Peer = sockaddrString(sa)
		}
		if sa, err := unix.Getsockname(int(fd)); err == nil {
			p.Local = sockaddrString(sa)
		}
	})
	return p
}

func sockaddrString(sa unix.Sockaddr) string {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return (&net.TCPAddr{IP: sa.Addr[:], Port: sa.Port}).String()
	case *unix.SockaddrInet6:
		return (&net.TCPAddr{IP: sa.Addr[:], Port: sa.Port}).String()
	}
	return ""
}
