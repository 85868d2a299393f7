// SPDX-License-Identifier: Apache-2.0

package tunnel

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/meshproxy/meshproxy/nodeproxy/telemetry/reason"
)

// ClientIdentity makes the TLS configuration of a connection: the leaf of
// key.Source, and a verification that accepts exactly key.Destinations. Its
// error should carry a reason (NoLeaf). It is called on goroutines.
type ClientIdentity interface {
	ClientConfig(ctx context.Context, key *Key) (*tls.Config, error)
}

// ForgetfulIdentity is a ClientIdentity that keeps sessions to resume.
type ForgetfulIdentity interface {
	// Forget drops that of key: a handshake has failed. It is called on
	// goroutines.
	Forget(key *Key)
}

// Handshake tells what one cost, and how it ended.
type Handshake struct {
	Client   bool
	Peer     Peer // as far as it is known
	Resumed  bool // a session of before
	Duration time.Duration
	Err      error
}

// PoolOptions configures a Pool. Identity is required.
type PoolOptions struct {
	Identity ClientIdentity
	// Control is called on each socket before it connects (net.Dialer.Control):
	// the place to mark the proxy's own sockets.
	Control func(network, address string, c syscall.RawConn) error
	// DialTimeout bounds TCP's part, HandshakeTimeout that of TLS; 0 means 5 s
	// and 10 s.
	DialTimeout, HandshakeTimeout time.Duration
	// Handshakes bounds those under way; pools may share one. Nil means 128
	// of its own.
	Handshakes Semaphore
	// MaxConns bounds the connections of one key, MaxPending those who wait for
	// one; 0 means 8 and 1024.
	MaxConns, MaxPending int
	Sockets              Sockets
	// Handshake replaces (*tls.Conn).HandshakeContext, if not nil, to give errors
	// their reasons.
	Handshake HandshakeFunc
	Logger    *slog.Logger
	// Observe, if not nil, hears of each handshake, on its goroutine.
	Observe func(Handshake)
}

func (o *PoolOptions) setDefaults() {
	if o.DialTimeout == 0 {
		o.DialTimeout = 5 * time.Second
	}
	if o.HandshakeTimeout == 0 {
		o.HandshakeTimeout = 10 * time.Second
	}
	if o.MaxConns == 0 {
		o.MaxConns = 8
	}
	if o.MaxPending == 0 {
		o.MaxPending = 1024
	}
	if o.Handshakes == nil {
		o.Handshakes = NewSemaphore(128)
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
}

// Semaphore bounds what happens at the same time.
type Semaphore chan struct{}

// NewSemaphore admits n at a time.
func NewSemaphore(n int) Semaphore { return make(Semaphore, n) }

func (s Semaphore) acquire(ctx context.Context) error {
	select {
	case s <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s Semaphore) release() { <-s }

// Sockets sets the sizes of the kernel's buffers of a tunnel's socket; 0 leaves
// them to the kernel, which adapts them to the path. A fixed size bounds what a
// bulk stream can put ahead of a small one: 512 KiB cost no throughput on a
// LAN and 128 KiB a quarter of it, but a long link needs more than either.
type Sockets struct{ SendBuffer, ReceiveBuffer int }

func (s Sockets) apply(nc net.Conn) {
	if s == (Sockets{}) {
		return
	}
	sc, ok := nc.(syscall.Conn)
	if !ok {
		return
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		setBuffer(int(fd), unix.SO_SNDBUFFORCE, unix.SO_SNDBUF, s.SendBuffer)
		setBuffer(int(fd), unix.SO_RCVBUFFORCE, unix.SO_RCVBUF, s.ReceiveBuffer)
	})
}

// setBuffer goes beyond net.core.[rw]mem_max where it may.
func setBuffer(fd, force, plain, size int) {
	if size > 0 && unix.SetsockoptInt(fd, unix.SOL_SOCKET, force, size) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, plain, size)
	}
}

// connect dials and shakes hands.
func (o *PoolOptions) connect(ctx context.Context, key Key, by transport) (s *secured, err error) {
	begin := time.Now()
	defer func() {
		if o.Observe == nil {
			return
		}
		h := Handshake{Client: true, Duration: time.Since(begin), Err: err}
		h.Peer.Remote, h.Peer.LocalIdentity, h.Peer.ServerName = key.Addr, key.Source, key.ServerName
		if s != nil {
			h.Peer, h.Resumed = s.peer, s.resumed
		}
		o.Observe(h)
	}()
	defer contain(o.Logger, key.Addr, &err)
	config, err := o.Identity.ClientConfig(ctx, &key)
	if err != nil {
		return nil, fmt.Errorf("get leaf of %s: %w", key.Source, err)
	}
	d := net.Dialer{Timeout: o.DialTimeout, Control: o.Control, KeepAlive: -1} // PING does it
	nc, err := d.DialContext(ctx, "tcp", key.Addr.String())
	if err != nil {
		return nil, reason.Wrap(reason.Of(err), fmt.Errorf("dial tunnel: %w", err))
	}
	o.Sockets.apply(nc)
	if by == mtls {
		keepAlive(nc)
	}
	if err := o.Handshakes.acquire(ctx); err != nil {
		nc.Close()
		return nil, reason.Wrap(reason.LimitHandshakes, err)
	}
	defer o.Handshakes.release()
	ctx, cancel := context.WithTimeout(ctx, o.HandshakeTimeout)
	defer cancel()
	defer func() {
		if f, ok := o.Identity.(ForgetfulIdentity); ok && s == nil { // after a panic, too
			f.Forget(&key)
		}
	}()
	if s, err = o.Handshake.client(ctx, nc, config, by); err != nil {
		return nil, fmt.Errorf("tunnel to %s: %w", key.Addr, err)
	}
	s.peer.ServerName = key.ServerName
	return s, nil
}
