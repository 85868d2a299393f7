// SPDX-License-Identifier: Apache-2.0

// Package nethttp is either end of a tunnel with the HTTP/2 of net/http and
// golang.org/x/net: an implementation that shares no code with the product.
//
// It is a proxy for TCP connections, as far as net/http can be one: a server's
// handler that returns has ended both directions of its stream, and a client
// gives up its request when the answer has ended. So neither end lets a client
// go on after the application's end.
package nethttp

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"sync"

	"golang.org/x/net/http2"
)

// DialFunc connects to an address.
type DialFunc func(ctx context.Context, network, address string) (net.Conn, error)

// Client opens tunnels.
type Client struct{ transport *http2.Transport }

// NewClient makes a client whose connections all go to the node, through dial.
func NewClient(dial DialFunc, node string, config *tls.Config) *Client {
	return &Client{&http2.Transport{
		TLSClientConfig: config,
		DialTLSContext: func(ctx context.Context, network, _ string, _ *tls.Config) (net.Conn, error) {
			raw, err := dial(ctx, network, node)
			if err != nil {
				return nil, err
			}
			c := tls.Client(raw, config)
			if err := c.HandshakeContext(ctx); err != nil {
				_ = raw.Close()
				return nil, err
			}
			return c, nil
		},
	}}
}

// Close closes the connections that are idle.
func (c *Client) Close() { c.transport.CloseIdleConnections() }

// Carry takes a TCP connection through a tunnel to the authority, until both
// directions have ended. It closes conn.
func (c *Client) Carry(ctx context.Context, conn *net.TCPConn, authority string) error {
	defer conn.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	request := &http.Request{
		Method: http.MethodConnect, URL: &url.URL{Scheme: "https", Host: authority}, Host: authority,
		Body: io.NopCloser(onlyReader{conn}), ContentLength: -1, Header: http.Header{},
	}
	resp, err := c.transport.RoundTrip(request.WithContext(ctx))
	if err != nil {
		abort(conn)
		return fmt.Errorf("connect to %s: %w", authority, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		abort(conn)
		return &StatusError{resp.StatusCode}
	}
	if _, err := io.Copy(onlyWriter{conn}, resp.Body); err != nil {
		abort(conn)
		return fmt.Errorf("carry from %s: %w", authority, err)
	}
	return conn.CloseWrite()
}

// StatusError is an answer that is no tunnel.
type StatusError struct{ Status int }

func (e *StatusError) Error() string { return fmt.Sprintf("answered %d", e.Status) }

// abort resets a connection.
func abort(c *net.TCPConn) {
	_ = c.SetLinger(0)
	_ = c.Close()
}

// Server ends tunnels.
type Server struct {
	// Dial connects to an application.
	Dial DialFunc
	// MaxStreams that a connection may have at once.
	MaxStreams uint32

	mu     sync.Mutex
	opened int
}

// Connections is how many tunnels were accepted.
func (s *Server) Connections() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.opened
}

// Serve accepts tunnels until the listener is closed.
func (s *Server) Serve(ln net.Listener, config *tls.Config) {
	h2 := &http2.Server{MaxConcurrentStreams: s.MaxStreams}
	for {
		raw, err := ln.Accept()
		if err != nil {
			return
		}
		s.mu.Lock()
		s.opened++
		s.mu.Unlock()
		go func() {
			c := tls.Server(raw, config)
			defer c.Close()
			if c.Handshake() == nil {
				h2.ServeConn(c, &http2.ServeConnOpts{Handler: s})
			}
		}()
	}
}

// ServeHTTP carries one stream to the application that it asks for.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodConnect {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	nc, err := s.Dial(r.Context(), "tcp", r.Host)
	if err != nil {
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	app := nc.(*net.TCPConn)
	defer app.Close()
	w.WriteHeader(http.StatusOK)
	flusher := w.(http.Flusher)
	flusher.Flush()
	go func() {
		_, err := io.Copy(onlyWriter{app}, r.Body)
		if err == nil {
			err = app.CloseWrite()
		}
		if err != nil { // the stream was reset
			abort(app)
		}
	}()
	if _, err = io.Copy(flushing{w, flusher}, onlyReader{app}); err != nil {
		panic(http.ErrAbortHandler) // resets the stream
	}
}

// flushing sends what it is given at once.
type flushing struct {
	io.Writer
	http.Flusher
}

func (f flushing) Write(p []byte) (int, error) {
	n, err := f.Writer.Write(p)
	f.Flush()
	return n, err
}

// onlyReader and onlyWriter keep io.Copy from taking short cuts.
type (
	onlyReader struct{ io.Reader }
	onlyWriter struct{ io.Writer }
)
