// SPDX-License-Identifier: Apache-2.0

package reason_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"math/big"
	"net"
	"testing"
	"time"

	"github.com/meshproxy/meshproxy/nodeproxy/telemetry/reason"
)

// TestOfHandshake runs real handshakes: what crypto/tls wraps its alerts in is
// not part of its documented API.
func TestOfHandshake(t *testing.T) {
	now := time.Now()
	expired := selfSigned(t, now.Add(-2*time.Hour), now.Add(-time.Hour))
	valid := selfSigned(t, now.Add(-time.Hour), now.Add(time.Hour))
	for _, test := range []struct {
		name                   string
		clientLeaf             []tls.Certificate
		trusted                *x509.CertPool
		wantServer, wantClient reason.Reason
	}{
		{"no certificate", nil, poolOf(valid), reason.PeerMissing, reason.PeerMissing},
		{"expired", []tls.Certificate{expired}, poolOf(expired), reason.TLSExpired, reason.TLSExpired},
		{"untrusted", []tls.Certificate{valid}, poolOf(expired), reason.PeerUntrusted, reason.PeerUntrusted},
	} {
		t.Run(test.name, func(t *testing.T) {
			server := &tls.Config{
				Certificates: []tls.Certificate{valid}, ClientCAs: test.trusted,
				ClientAuth: tls.RequireAnyClientCert, MinVersion: tls.VersionTLS13,
			}
			if test.clientLeaf != nil {
				server.ClientAuth = tls.RequireAndVerifyClientCert
			}
			client := &tls.Config{InsecureSkipVerify: true, Certificates: test.clientLeaf, MinVersion: tls.VersionTLS13}
			serverErr, clientErr := handshake(t, server, client)
			if got := reason.Of(serverErr); got != test.wantServer {
				t.Errorf("server: Of(%v) = %v, want %v", serverErr, got, test.wantServer)
			}
			if got := reason.Of(clientErr); got != test.wantClient {
				t.Errorf("client: Of(%v) = %v, want %v", clientErr, got, test.wantClient)
			}
		})
	}
}

func handshake(t *testing.T, server, client *tls.Config) (serverErr, clientErr error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	done := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			done <- err
			return
		}
		defer c.Close()
		done <- tls.Server(c, server).Handshake()
	}()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	conn := tls.Client(c, client)
	// In TLS 1.3 the client learns of the server's verdict with its first read.
	if clientErr = conn.Handshake(); clientErr == nil {
		_, clientErr = conn.Read(make([]byte, 1))
	}
	return <-done, clientErr
}

func selfSigned(t *testing.T, from, to time.Time) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(from.Unix()), NotBefore: from, NotAfter: to,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

func poolOf(c tls.Certificate) *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(c.Leaf)
	return pool
}
