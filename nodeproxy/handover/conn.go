// SPDX-License-Identifier: Apache-2.0

package handover

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// kind says what a message is about.
type kind string

const (
	// From the predecessor.
	kindOffer    kind = "offer"    // who it is, and files by name
	kindSockets  kind = "sockets"  // some of its sockets
	kindPrepare  kind = "prepare"  // that was all
	kindSwitch   kind = "switch"   // it accepts nothing any more
	kindLead     kind = "lead"     // the service manager knows the successor
	kindDraining kind = "draining" // how many connections it still has
	kindMark     kind = "mark"     // a socket to be marked as the node's own

	// From the successor.
	kindReady   kind = "ready"   // all that can fail is done
	kindServing kind = "serving" // it accepts
	kindFailed  kind = "failed"  // it will end
	kindMarked  kind = "marked"  // the answer to mark
	kindStray   kind = "stray"   // a connection of the predecessor's
)

// message is what a packet holds. Kind decides which fields mean something.
type message struct {
	Kind        kind           `json:"kind"`
	Offer       *Offer         `json:"offer,omitempty"`
	Names       []string       `json:"names,omitempty"` // of the descriptors
	Serving     *Serving       `json:"serving,omitempty"`
	Error       string         `json:"error,omitempty"`
	Connections int            `json:"connections,omitempty"`
	ID          uint64         `json:"id,omitempty"`
	Client      netip.AddrPort `json:"client,omitzero"`
	NetNS       uint64         `json:"netns,omitempty"`
}

const (
	maxMessage = 64 << 10
	// maxDescriptors of one message: SCM_MAX_FD is 253.
	maxDescriptors = 128
	// sendTimeout is how long the other process may be too busy to read.
	sendTimeout = 5 * time.Second
)

// errMalformed means that the other process speaks another protocol.
var errMalformed = errors.New("malformed message")

// conn carries messages with descriptors. One goroutine receives at a time; any
// may send.
type conn struct{ *net.UnixConn }

// newConn takes over fd, a SOCK_SEQPACKET socket.
func newConn(fd int) (conn, error) {
	f := os.NewFile(uintptr(fd), "handover")
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return conn{}, fmt.Errorf("open connection between processes: %w", err)
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		c.Close()
		return conn{}, errors.New("open connection between processes: not a unix socket")
	}
	return conn{u}, nil
}

// send sends a message with duplicates of the descriptors, which stay the
// caller's.
func (c conn) send(m message, fds ...int) error {
	text, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("encode %s: %w", m.Kind, err)
	}
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	if err := c.SetWriteDeadline(time.Now().Add(sendTimeout)); err != nil {
		return fmt.Errorf("send %s: %w", m.Kind, err)
	}
	_, _, err = c.WriteMsgUnix(text, rights, nil)
	if errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) { // as in receive
		err = ErrGone
	}
	if err != nil {
		return fmt.Errorf("send %s: %w", m.Kind, err)
	}
	return nil
}

// receive returns the next message and its descriptors, which are the caller's
// from then on. io.EOF means that the other process has closed its end.
func (c conn) receive() (m message, fds []int, err error) {
	text := make([]byte, maxMessage)
	rights := make([]byte, unix.CmsgSpace(4*maxDescriptors))
	n, control, flags, _, err := c.ReadMsgUnix(text, rights)
	if errors.Is(err, unix.ECONNRESET) {
		// The other process ended with something unread. The kernel says so
		// once, and before what was sent until then (unix_release_sock).
		n, control, flags, _, err = c.ReadMsgUnix(text, rights)
	}
	if err != nil {
		return m, nil, err
	}
	fds = descriptors(rights[:control])
	if flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		closeAll(fds)
		return m, nil, fmt.Errorf("%w: longer than %d bytes or %d descriptors", errMalformed, maxMessage, maxDescriptors)
	}
	if m, err = decode(text[:n]); err != nil {
		closeAll(fds)
		return m, nil, err
	}
	return m, fds, nil
}

func decode(text []byte) (m message, err error) {
	if err := json.Unmarshal(text, &m); err != nil {
		return message{}, fmt.Errorf("%w: %w", errMalformed, err)
	}
	if m.Kind == "" {
		return message{}, fmt.Errorf("%w: no kind", errMalformed)
	}
	return m, nil
}

// descriptors parses what recvmsg(2) has received; what is no descriptor is left
// out.
func descriptors(control []byte) (fds []int) {
	parts, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return nil
	}
	for i := range parts {
		if got, err := unix.ParseUnixRights(&parts[i]); err == nil {
			fds = append(fds, got...)
		}
	}
	return fds
}

func closeAll(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
}
