// SPDX-License-Identifier: Apache-2.0

package tunnel

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/meshproxy/meshproxy/nodeproxy/telemetry/reason"
)

// alpn is the only protocol that a tunnel negotiates (HBONE: exactly "h2").
const alpn = "h2"

// ErrALPN: the peer does not speak HTTP/2.
var ErrALPN = errors.New("peer did not negotiate h2")

// secured is a connection after its handshake, on the way to a loop.
type secured struct {
	fd   int
	tls  *tls.Conn
	mem  *memory
	peer Peer
}

// HandshakeFunc runs the handshake of a connection. An error that carries a
// reason keeps it.
type HandshakeFunc func(context.Context, *tls.Conn) error

// client secures a connection that was dialled. It closes nc.
func (f HandshakeFunc) client(ctx context.Context, nc net.Conn, config *tls.Config) (*secured, error) {
	shown := new(leaf)
	return f.shake(ctx, nc, shown, func(m *memory) *tls.Conn {
		return tls.Client(m, shown.watch(forTunnel(config)))
	})
}

// server secures a connection that was accepted. It closes nc.
func (f HandshakeFunc) server(ctx context.Context, nc net.Conn, config *tls.Config) (*secured, error) {
	shown := new(leaf)
	return f.shake(ctx, nc, shown, func(m *memory) *tls.Conn {
		c := shown.watch(forTunnel(config))
		if choose := config.GetConfigForClient; choose != nil {
			c.GetConfigForClient = func(h *tls.ClientHelloInfo) (*tls.Config, error) {
				chosen, err := choose(h)
				if chosen == nil || err != nil {
					return nil, err
				}
				return shown.watch(forTunnel(chosen)), nil
			}
		}
		return tls.Server(m, c)
	})
}

// forTunnel sets what tunnels insist on. Session resumption would carry an
// identity beyond the life of its leaf. Small records at the start of a burst
// (dynamic record sizing) are for browsers; here every DATA frame is laid out
// to fill a record.
func forTunnel(config *tls.Config) *tls.Config {
	c := config.Clone()
	c.MinVersion = tls.VersionTLS13
	c.NextProtos = []string{alpn}
	c.SessionTicketsDisabled = true
	c.ClientSessionCache = nil
	c.DynamicRecordSizingDisabled = true
	return c
}

func (f HandshakeFunc) shake(ctx context.Context, nc net.Conn, shown *leaf, secure func(*memory) *tls.Conn) (*secured, error) {
	defer nc.Close()
	m := &memory{Conn: nc}
	conn := secure(m)
	if f == nil {
		f = func(ctx context.Context, c *tls.Conn) error { return c.HandshakeContext(ctx) }
	}
	if err := f(ctx, conn); err != nil {
		return nil, shakeError(ctx, err)
	}
	state := conn.ConnectionState()
	if state.NegotiatedProtocol != alpn {
		return nil, reason.Wrap(reason.TLSHandshake, ErrALPN)
	}
	peer, err := peerOf(&state, shown.cert, nc)
	if err != nil {
		return nil, err
	}
	fd, err := extract(nc)
	if err != nil {
		return nil, err
	}
	m.Conn = nil
	return &secured{fd: fd, tls: conn, mem: m, peer: peer}, nil
}

func shakeError(ctx context.Context, err error) error {
	if timeout := net.Error(nil); ctx.Err() != nil || errors.As(err, &timeout) && timeout.Timeout() {
		return reason.Wrap(reason.HandshakeTimeout, fmt.Errorf("shake hands: %w", err))
	}
	if known := (*reason.Error)(nil); errors.As(err, &known) {
		return err
	}
	r := reason.Of(err)
	if r == reason.Internal {
		r = reason.TLSHandshake
	}
	return reason.Wrap(r, fmt.Errorf("shake hands: %w", err))
}

func peerOf(state *tls.ConnectionState, own *x509.Certificate, nc net.Conn) (Peer, error) {
	if len(state.PeerCertificates) == 0 {
		return Peer{}, reason.Wrap(reason.PeerMissing, errors.New("peer showed no certificate"))
	}
	id, err := identityOf(state.PeerCertificates[0])
	if err != nil {
		return Peer{}, reason.Wrap(reason.PeerUntrusted, err)
	}
	p := Peer{
		Identity:   id,
		Remote:     addrPort(nc.RemoteAddr()),
		Local:      addrPort(nc.LocalAddr()),
		ServerName: state.ServerName,
		Expires:    state.PeerCertificates[0].NotAfter,
	}
	if own != nil {
		p.LocalIdentity, _ = identityOf(own)
		if own.NotAfter.Before(p.Expires) {
			p.Expires = own.NotAfter
		}
	}
	return p, nil
}

func addrPort(a net.Addr) netip.AddrPort {
	t, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	ap := t.AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

// leaf remembers the certificate that this end showed, which crypto/tls does
// not tell.
type leaf struct{ cert *x509.Certificate }

// watch makes a config of one connection report its certificate.
func (l *leaf) watch(c *tls.Config) *tls.Config {
	if get := c.GetCertificate; get != nil {
		c.GetCertificate = func(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
			cert, err := get(h)
			l.note(cert)
			return cert, err
		}
	}
	if get := c.GetClientCertificate; get != nil {
		c.GetClientCertificate = func(r *tls.CertificateRequestInfo) (*tls.Certificate, error) {
			cert, err := get(r)
			l.note(cert)
			return cert, err
		}
	}
	if len(c.Certificates) == 1 {
		l.note(&c.Certificates[0])
	}
	return c
}

func (l *leaf) note(c *tls.Certificate) {
	switch {
	case c == nil:
	case c.Leaf != nil:
		l.cert = c.Leaf
	case len(c.Certificate) > 0:
		l.cert, _ = x509.ParseCertificate(c.Certificate[0])
	}
}

// extract duplicates the descriptor of a connection, which net.Conn's own
// close then leaves open. (TCPConn.File would make it blocking.)
func extract(nc net.Conn) (int, error) {
	sc, ok := nc.(syscall.Conn)
	if !ok {
		return -1, fmt.Errorf("extract descriptor: %T has none", nc)
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return -1, fmt.Errorf("extract descriptor: %w", err)
	}
	fd := -1
	var dupErr error
	err = raw.Control(func(old uintptr) {
		fd, dupErr = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0)
	})
	if err = errors.Join(err, dupErr); err != nil {
		return -1, fmt.Errorf("extract descriptor: %w", err)
	}
	return fd, nil
}
