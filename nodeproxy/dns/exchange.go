// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"

	miekg "github.com/miekg/dns"
)

// askOne asks one resolver: over UDP, and over TCP when the answer didn't fit.
func (f *forwarder) askOne(ctx context.Context, server netip.AddrPort, q *query, timeout time.Duration) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	m, err := f.overUDP(ctx, server, q)
	if err != nil || !cutOff(m, q) {
		return m, err
	}
	whole, err := f.overTCP(ctx, server, q)
	if err != nil && !q.stream && len(m) >= headerSize && m[atFlags]&flagTruncated != 0 {
		// The client gets to know as much as we do, and may try TCP itself.
		return m, nil
	}
	return whole, err
}

// cutOff reports whether a datagram is not the whole answer: because the
// resolver says so, or because it was longer than what was read.
func cutOff(m []byte, q *query) bool {
	return m[atFlags]&flagTruncated != 0 || len(m) > datagram(q)
}

// datagram is how long an answer over UDP may be: the client's own offer
// travels with the query. Over TCP, a client offers nothing of use.
func datagram(q *query) int { return max(min(q.size, maxAnswer), miekg.MinMsgSize) }

// overUDP asks with a socket of its own, so that the port is as hard to guess
// as the id (RFC 5452 section 9.2), and skips whatever is no answer to it.
func (f *forwarder) overUDP(ctx context.Context, server netip.AddrPort, q *query) ([]byte, error) {
	c, err := f.dial(ctx, "udp", server)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	defer endWith(ctx, c)()
	id, raw := withNewID(q.raw)
	if _, err := c.Write(raw); err != nil {
		return nil, fmt.Errorf("ask resolver %s: %w", server, err)
	}
	// One byte more than may be: a longer answer is seen to be cut off.
	buf := make([]byte, datagram(q)+1)
	for {
		n, err := c.Read(buf)
		if err != nil {
			return nil, fmt.Errorf("ask resolver %s: %w", server, err)
		}
		if q.accept(buf[:n], id) == nil {
			return buf[:n], nil
		}
	}
}

func (f *forwarder) overTCP(ctx context.Context, server netip.AddrPort, q *query) ([]byte, error) {
	c, err := f.dial(ctx, "tcp", server)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	defer endWith(ctx, c)()
	id, raw := withNewID(q.raw)
	if err := writeMessage(c, raw); err != nil {
		return nil, fmt.Errorf("ask resolver %s over TCP: %w", server, err)
	}
	m, err := readMessage(c, miekg.MaxMsgSize)
	if err == nil {
		err = q.accept(m, id)
	}
	if err != nil {
		return nil, fmt.Errorf("ask resolver %s over TCP: %w", server, err)
	}
	return m, nil
}

func (f *forwarder) dial(ctx context.Context, network string, server netip.AddrPort) (net.Conn, error) {
	c, err := f.dialer.DialContext(ctx, network, server.String())
	if err != nil {
		return nil, fmt.Errorf("connect to resolver: %w", err)
	}
	return c, nil
}

// endWith makes reads and writes fail once ctx is done.
func endWith(ctx context.Context, c net.Conn) (stop func() bool) {
	if deadline, ok := ctx.Deadline(); ok {
		_ = c.SetDeadline(deadline)
	}
	return context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
}

func withNewID(raw []byte) (uint16, []byte) {
	raw = slices.Clone(raw)
	_, _ = rand.Read(raw[:2]) // never fails
	return binary.BigEndian.Uint16(raw), raw
}

func timedOut(err error) bool {
	return errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded)
}
