// SPDX-License-Identifier: Apache-2.0

package tunnel

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/meshproxy/meshproxy/nodeproxy/telemetry/reason"
	"github.com/meshproxy/meshproxy/nodeproxy/tunnel/record"
)

// transport is what the handshakes of one kind of connection insist on.
type transport struct {
	version uint16 // the least of TLS
	// alpn is the only protocol that is negotiated; empty negotiates none, and
	// takes what the peer offers as no promise.
	alpn string
	// resumes leaves it to the configurations whether sessions are resumed. That
	// pays where a connection carries a single stream.
	resumes bool
	// layered: package record protects what follows the handshake. That takes
	// TLS 1.3, and no tickets of ours (resumes).
	layered bool
}

var (
	// hbone: TLS 1.3 and exactly "h2", as ztunnel has it.
	hbone = transport{version: tls.VersionTLS13, alpn: "h2", layered: true}
	// mtls: Consul's sidecars stop at TLS 1.2 as clients unless they are told
	// otherwise, and the SDK offers "h2" for plain TCP.
	mtls = transport{version: tls.VersionTLS12, resumes: true}
)

// aeads are the cipher suites of TLS 1.2; those of TLS 1.3 are no choice.
var aeads = []uint16{
	tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
	tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
	tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
}

// ErrALPN: the peer does not speak HTTP/2.
var ErrALPN = errors.New("peer did not negotiate h2")

// errProbe: the peer only wanted to know whether somebody listens, as health
// checks do.
var errProbe = reason.Wrap(reason.TLSHandshake, errors.New("peer said nothing and left"))

// leftAlready says whether the peer was such a one, as most are that check the
// health of a service: they have closed before somebody accepts. To find that out
// in a handshake takes a dozen system calls more.
func leftAlready(nc net.Conn) (left bool) {
	c, ok := nc.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return false
	}
	_ = raw.Control(func(fd uintptr) {
		var first [1]byte
		n, _, err := unix.Recvfrom(int(fd), first[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		left = n == 0 && err == nil
	})
	return left
}

// secured is a connection after its handshake, on the way to a loop.
type secured struct {
	fd   int
	peer Peer
	// resumed: the handshake resumed a session.
	resumed bool
	// Of a tunnel:
	layer *record.Layer
	// Of a line:
	tls *tls.Conn
	mem *memory
}

// HandshakeFunc runs the handshake of a connection. An error that carries a
// reason keeps it.
type HandshakeFunc func(context.Context, *tls.Conn) error

// client secures a connection that was dialled. It closes nc.
func (f HandshakeFunc) client(ctx context.Context, nc net.Conn, config *tls.Config, by transport) (*secured, error) {
	h := handshake{by: by, client: true}
	return f.shake(ctx, nc, &h, func(m *memory) *tls.Conn {
		return tls.Client(m, h.watch(config))
	})
}

// server secures a connection that was accepted. It closes nc.
func (f HandshakeFunc) server(ctx context.Context, nc net.Conn, config *tls.Config, by transport) (*secured, error) {
	h := handshake{by: by}
	return f.shake(ctx, nc, &h, func(m *memory) *tls.Conn {
		c := h.watch(config)
		if choose := config.GetConfigForClient; choose != nil {
			c.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
				chosen, err := choose(hello)
				if chosen == nil || err != nil {
					return nil, err
				}
				return h.watch(chosen), nil
			}
		}
		return tls.Server(m, c)
	})
}

// handshake is what is to be learned of one, and crypto/tls does not tell.
type handshake struct {
	by      transport
	client  bool
	shown   leaf
	secrets record.Secrets
}

// watch makes config one for the transport that reports to h.
func (h *handshake) watch(config *tls.Config) *tls.Config {
	c := h.by.of(config)
	if h.by.layered {
		c.KeyLogWriter = &h.secrets
	}
	return h.shown.watch(c)
}

// of makes config one for the transport. Small records at the start of a burst
// (dynamic record sizing) are for browsers; here every DATA frame is laid out
// to fill a record.
func (by transport) of(config *tls.Config) *tls.Config {
	c := config.Clone()
	c.MinVersion = by.version
	c.CipherSuites = aeads
	c.NextProtos = nil
	if by.alpn != "" {
		c.NextProtos = []string{by.alpn}
	}
	if !by.resumes {
		c.SessionTicketsDisabled = true
		c.ClientSessionCache = nil
	}
	c.DynamicRecordSizingDisabled = true
	return c
}

func (f HandshakeFunc) shake(ctx context.Context, nc net.Conn, h *handshake, secure func(*memory) *tls.Conn) (*secured, error) {
	defer nc.Close()
	defer h.secrets.Erase()
	m, steps := &memory{Conn: nc}, &record.Steps{Conn: nc}
	if h.by.layered {
		m.Conn = steps
	}
	conn := secure(m)
	if f == nil {
		f = func(ctx context.Context, c *tls.Conn) error { return c.HandshakeContext(ctx) }
	}
	if err := f(ctx, conn); err != nil {
		if !m.heard && errors.Is(err, io.EOF) {
			err = errProbe
		}
		return nil, shakeError(ctx, err)
	}
	state := conn.ConnectionState()
	if state.NegotiatedProtocol != h.by.alpn {
		return nil, reason.Wrap(reason.TLSHandshake, ErrALPN)
	}
	peer, err := peerOf(&state, h.shown.cert, nc)
	if err != nil {
		return nil, err
	}
	s := &secured{peer: peer, resumed: state.DidResume}
	if !h.by.layered {
		s.tls, s.mem = conn, m
	} else if s.layer, err = takeOver(&state, h, steps); err != nil {
		return nil, err
	}
	if s.fd, err = extract(nc); err != nil {
		return nil, err
	}
	m.Conn = nil
	return s, nil
}

// takeOver goes on where crypto/tls ends.
func takeOver(state *tls.ConnectionState, h *handshake, steps *record.Steps) (*record.Layer, error) {
	if !steps.Between() {
		return nil, reason.Wrap(reason.TLSHandshake, errors.New("handshake ends in the middle of a record"))
	}
	layer, err := record.New(state, &h.secrets, h.client)
	return layer, reason.Wrap(reason.TLSHandshake, err)
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
// not tell. A handshake that resumes shows none and asks for none: it counts as
// the only one that the configuration has.
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
