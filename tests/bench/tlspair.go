// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"

	"github.com/meshproxy/meshproxy/tests/testnet"
)

// tlsPair is the simplest pair of proxies in Go: a goroutine per direction,
// io.Copy, a crypto/tls connection per stream.
type tlsPair struct{}

func (tlsPair) name() string                          { return "go-tls" }
func (tlsPair) version(context.Context, *site) string { return runtime.Version() }

func (tlsPair) start(ctx context.Context, s *site) (*instance, error) {
	sides := s.sides()
	dial := [2]string{sides[1].listen.String(), serverOnLoopback()}
	for i, kind := range []string{"client", "server"} {
		sides[i].cmd = testnet.Command{
			Path: testnet.Self,
			Args: []string{"role", "tls-" + kind, sides[i].listen.String(), dial[i], s.pki.ca, s.pki.cert, s.pki.key},
		}
	}
	return startPair(ctx, s, "go-tls", sides)
}

// runTLSProxy is the role of one of the proxies: "tls-client" takes plain
// connections and dials TLS, "tls-server" the reverse.
func runTLSProxy(kind, listen, dial, ca, cert, key string) error {
	config, err := tlsConfig(ca, cert, key)
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", listen)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	for {
		c, err := l.Accept()
		if err != nil {
			return fmt.Errorf("accept: %w", err)
		}
		go func() {
			d, err := net.Dial("tcp", dial)
			if err != nil {
				_ = c.Close()
				return
			}
			if kind == "tls-client" {
				relay(c.(halfCloser), tls.Client(d, config))
			} else {
				relay(tls.Server(c, config), d.(halfCloser))
			}
		}()
	}
}

type halfCloser interface {
	net.Conn
	CloseWrite() error
}

func relay(a, b halfCloser) {
	done := make(chan struct{})
	go func() {
		_, _ = io.Copy(a, b)
		_ = a.CloseWrite()
		close(done)
	}()
	_, _ = io.Copy(b, a)
	_ = b.CloseWrite()
	<-done
	_, _ = a.Close(), b.Close()
}

func tlsConfig(ca, cert, key string) (*tls.Config, error) {
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		return nil, fmt.Errorf("load certificate: %w", err)
	}
	data, err := os.ReadFile(ca)
	if err != nil {
		return nil, fmt.Errorf("load CA: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(data) {
		return nil, errors.New("load CA: no certificate")
	}
	return &tls.Config{
		Certificates: []tls.Certificate{pair},
		RootCAs:      pool,
		ClientCAs:    pool,
		ClientAuth:   tls.RequireAndVerifyClientCert,
		ServerName:   peerName,
		MinVersion:   tls.VersionTLS13,
	}, nil
}
