// SPDX-License-Identifier: Apache-2.0

package record

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"math/big"
	"net"
	"os"
	"testing"
	"time"
)

// patience is how long anything may take: the machine may be busy with other tests.
const patience = 2 * time.Minute

// certificate is for both ends; nothing verifies it.
func certificate(t testing.TB) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, DNSNames: []string{"test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// own is one end of a connection whose records this package protects.
type own struct {
	net.Conn
	layer *Layer
	buf   []byte // what is read, not opened yet
	ready []byte // payload
	suite uint16
}

// secure shakes hands on nc, and takes over.
func secure(nc net.Conn, cert tls.Certificate, client bool) (*own, error) {
	secrets, steps := new(Secrets), &Steps{Conn: nc}
	config := &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}, InsecureSkipVerify: true,
		KeyLogWriter: secrets, SessionTicketsDisabled: true,
	}
	tc := tls.Server(steps, config)
	if client {
		tc = tls.Client(steps, config)
	}
	if err := tc.Handshake(); err != nil {
		return nil, err
	}
	if !steps.Between() {
		return nil, errors.New("in the middle of a record")
	}
	state := tc.ConnectionState()
	layer, err := New(&state, secrets, client)
	return &own{Conn: nc, layer: layer, suite: state.CipherSuite}, err
}

func (o *own) Write(p []byte) (int, error) {
	for n := 0; n < len(p); {
		k := min(len(p)-n, MaxPayload)
		rec, err := o.layer.Seal(nil, append(p[n:n+k:n+k], 0))
		if err != nil {
			return n, err
		}
		if _, err := o.Conn.Write(rec); err != nil {
			return n, err
		}
		n += k
	}
	return len(p), nil
}

// CloseWrite sends close_notify.
func (o *own) CloseWrite() error {
	_, err := o.Conn.Write(o.layer.Close(nil))
	return err
}

func (o *own) Read(p []byte) (int, error) {
	for len(o.ready) == 0 {
		payload, n, err := o.layer.Open(o.buf)
		if err != nil {
			return 0, err
		}
		o.buf, o.ready = o.buf[n:], payload
		if n == 0 {
			more := make([]byte, 10000) // cuts records anywhere
			k, err := o.Conn.Read(more)
			if err != nil {
				return 0, err
			}
			o.buf = append(o.buf[:len(o.buf):len(o.buf)], more[:k]...)
		}
		if o.layer.Owes() {
			answer, err := o.layer.Answer(nil)
			if err != nil {
				return 0, err
			}
			if _, err := o.Conn.Write(answer); err != nil {
				return 0, err
			}
		}
	}
	n := copy(p, o.ready)
	o.ready = o.ready[n:]
	return n, nil
}

// pair is a TCP connection.
func pair(t testing.TB) (a, b net.Conn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if a, err = net.Dial("tcp", ln.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if b, err = ln.Accept(); err != nil {
		t.Fatal(err)
	}
	for _, c := range []net.Conn{a, b} {
		c.SetDeadline(time.Now().Add(patience))
		t.Cleanup(func() { c.Close() })
	}
	return a, b
}

// still is a net.Conn in memory: what is fed is read, then there is nothing yet.
type still struct {
	net.Conn
	in []byte
}

func (s *still) Read(p []byte) (int, error) {
	if len(s.in) == 0 {
		return 0, os.ErrDeadlineExceeded
	}
	n := copy(p, s.in)
	s.in = s.in[n:]
	return n, nil
}

func (s *still) Write(p []byte) (int, error) { return len(p), nil }

var _ io.ReadWriter = (*own)(nil)
