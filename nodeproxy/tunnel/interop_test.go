// SPDX-License-Identifier: Apache-2.0

package tunnel_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/url"
	"testing"

	"github.com/meshproxy/meshproxy/nodeproxy/tunnel"
	"github.com/meshproxy/meshproxy/nodeproxy/tunnel/h2"
	"github.com/meshproxy/meshproxy/nodeproxy/tunnel/tunneltest"
)

// bulk is more than any window or buffer on the way.
var bulk = bytes.Repeat([]byte("0123456789abcdef"), 24<<20/16)

// An independent client: net/http's transport (x/net/http2's code). It half-closes by ending the
// request's body.
func TestForeignClient(t *testing.T) {
	ca := tunneltest.NewCA(t)
	s := newServer(t, ca, tunnel.Options{}, func(via tunnel.Tunnel, st *h2.Stream, r *h2.Request) h2.Sink {
		if r.Authority != "10.1.2.3:80" || r.Field("x-test") != "yes" {
			st.Refuse(400)
			return nil
		}
		return echo(via, st, r)
	}, nil)
	key := keyTo(s.addr, "a", "server")
	config, err := ca.ClientConfig(t.Context(), &key)
	if err != nil {
		t.Fatal(err)
	}
	tr := &http.Transport{
		ForceAttemptHTTP2: true,
		DialTLSContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&tls.Dialer{Config: config}).DialContext(ctx, "tcp", s.addr.String())
		},
	}
	defer tr.CloseIdleConnections()
	connect := func(host string, body io.Reader) *http.Response {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		t.Cleanup(cancel)
		req := (&http.Request{
			Method: http.MethodConnect, Host: host, URL: &url.URL{Scheme: "https", Host: host},
			Header: http.Header{"X-Test": {"yes"}}, Body: io.NopCloser(body), ContentLength: -1,
		}).WithContext(ctx)
		resp, err := tr.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { resp.Body.Close() })
		return resp
	}
	if resp := connect("10.9.9.9:1", http.NoBody); resp.StatusCode != 400 {
		t.Error("status", resp.StatusCode)
	}
	resp := connect("10.1.2.3:80", bytes.NewReader(bulk))
	if resp.StatusCode != 200 {
		t.Fatal("status", resp.StatusCode)
	}
	got, err := io.ReadAll(resp.Body)
	if err != nil || !bytes.Equal(got, bulk) {
		t.Errorf("%d bytes of %d, %v", len(got), len(bulk), err)
	}
	drained := make(chan error, 1)
	go func() { drained <- s.Drain(t.Context()) }()
	if err := wait(t, drained, "the drain"); err != nil {
		t.Error(err)
	}
}

// An independent server: net/http's.
func TestForeignServer(t *testing.T) {
	ca := tunneltest.NewCA(t)
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodConnect || r.Host != "10.0.0.1:80" {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		w.WriteHeader(http.StatusOK)
		w.(http.Flusher).Flush()
		buf := make([]byte, 64<<10)
		for {
			n, err := r.Body.Read(buf)
			if _, werr := w.Write(buf[:n]); werr != nil {
				t.Error(werr)
				return
			}
			w.(http.Flusher).Flush()
			if err != nil {
				return
			}
		}
	})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{
		Handler:   handler,
		TLSConfig: ca.ServerConfig(func(string) spiffeID { return tunneltest.ID("server") }),
	}
	served := make(chan error, 1)
	go func() { served <- server.ServeTLS(ln, "", "") }()
	defer func() {
		server.Close()
		<-served
	}()
	addr := ln.Addr().(*net.TCPAddr).AddrPort()
	c := newClient(t, tunnel.Options{}, tunnel.PoolOptions{Identity: ca})
	key := keyTo(addr, "a", "server")
	first := c.open(key, patience).must()
	first.ping("hello")

	p := &pump{caller: newCaller(c), left: bulk, got: make(chan []byte, 1)}
	b := block(t)
	c.do(func() { c.pool.Open(key, b, patience, p) })
	if got := wait(t, p.got, "the echo"); !bytes.Equal(got, bulk) {
		t.Errorf("%d bytes of %d", len(got), len(bulk))
	}
	first.ping("still there")
	first.hangUp()
	if st := c.stats(); st.Dials != 1 {
		t.Errorf("%+v", st)
	}
	c.do(c.pool.Drain)
	c.until("the drain", func() bool { return c.pool.Stats().Keys == 0 })
}

// pump sends bytes as the windows allow, ends, and gathers what comes back.
type pump struct {
	*caller
	left, have []byte
	got        chan []byte
}

func (p *pump) Opened(s *h2.Stream, via tunnel.Tunnel) { p.caller.Opened(s, via); p.Writable(s) }
func (p *pump) Data(s *h2.Stream, b []byte) {
	p.have = append(p.have, b...)
	s.Consumed(len(b))
}
func (p *pump) End(*h2.Stream) { p.got <- p.have }

func (p *pump) Writable(s *h2.Stream) {
	p.left = p.left[s.Write(p.left):]
	if len(p.left) == 0 && !s.WriteClosed() {
		s.CloseWrite()
	}
}
