// SPDX-License-Identifier: Apache-2.0

package h2

import (
	"bytes"
	"context"
	"crypto/sha256"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// driver runs a Conn over a net.Conn: the loop of these tests.
type driver struct {
	*owner
	nc    net.Conn
	posts chan func()
	done  sync.WaitGroup
}

func drive(t *testing.T, nc net.Conn, mk func(*Config, Events) *Conn, set func(*owner)) *driver {
	o := newOwner()
	if set != nil {
		set(o)
	}
	d := &driver{owner: o, nc: nc, posts: make(chan func())}
	o.conn = mk(o.config(), o)
	closed := make(chan struct{})
	inputs := make(chan []byte, 1024) // net.Pipe has no buffer; both ends write at once
	d.done.Go(func() {
		defer close(closed)
		for {
			b := make([]byte, 32<<10)
			n, err := nc.Read(b)
			if n > 0 {
				inputs <- b[:n]
			}
			if err != nil {
				return
			}
		}
	})
	d.done.Go(func() {
		o.conn.Start()
		for {
			for o.conn.Pending() > 0 {
				if _, err := o.conn.WriteTo(nc); err != nil {
					break
				}
			}
			select {
			case b := <-inputs:
				if err := o.conn.Feed(b); err != nil {
					t.Error(err)
				}
			case f := <-d.posts:
				f()
			case <-closed:
				o.conn.Close()
				return
			}
		}
	})
	t.Cleanup(func() {
		nc.Close()
		d.done.Wait()
	})
	return d
}

// post runs f on the loop and waits for it.
func (d *driver) post(f func()) {
	done := make(chan struct{})
	d.posts <- func() { f(); close(done) }
	<-done
}

// tunnel is the far end of a stream for a test: what it sends, and what came.
type tunnel struct {
	left   []byte
	h      io.Writer
	n      int
	end    chan struct{}
	status chan int
	reset  chan StreamError
}

func newTunnel(send []byte) *tunnel {
	return &tunnel{left: send, end: make(chan struct{}), status: make(chan int, 1), reset: make(chan StreamError, 1)}
}

func (x *tunnel) Response(s *Stream, status int, _ []hpack.HeaderField) {
	x.status <- status
	x.Writable(s)
}

func (x *tunnel) Data(s *Stream, p []byte) {
	x.n += len(p)
	_, _ = x.h.Write(p)
	s.Consumed(len(p))
}
func (x *tunnel) End(*Stream)                      { close(x.end) }
func (x *tunnel) Reset(_ *Stream, err StreamError) { x.reset <- err }
func (x *tunnel) Writable(s *Stream) {
	for len(x.left) > 0 {
		n := s.Write(x.left)
		if n == 0 {
			return
		}
		x.left = x.left[n:]
	}
	s.CloseWrite()
}

// TestClientAgainstXNet: our client, the HTTP/2 server of golang.org/x/net.
func TestClientAgainstXNet(t *testing.T) {
	a, b := net.Pipe()
	upload := bytes.Repeat([]byte("upload"), 1<<20)
	srv := &http2.Server{}
	var served sync.WaitGroup
	served.Go(func() {
		srv.ServeConn(b, &http2.ServeConnOpts{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method != "CONNECT" || r.Host != "web:80" || r.Header.Get("Baggage") != "k=v" {
				t.Errorf("server got %s %q %v", r.Method, r.Host, r.Header)
			}
			if r.Header.Get("X-Refuse") != "" {
				w.WriteHeader(http.StatusServiceUnavailable)
				return
			}
			w.WriteHeader(http.StatusOK)
			w.(http.Flusher).Flush()
			if r.Header.Get("X-Abort") != "" {
				panic(http.ErrAbortHandler)
			}
			got, err := io.ReadAll(r.Body)
			if err != nil || !bytes.Equal(got, upload) {
				t.Errorf("server read %d bytes: %v", len(got), err)
			}
			_, _ = w.Write(bytes.ToUpper(got))
		})})
	})
	defer served.Wait()
	d := drive(t, a, NewClient, nil)
	block, err := ConnectBlock("web:80")
	if err != nil {
		t.Fatal(err)
	}
	if err := block.Add("baggage", "k=v"); err != nil {
		t.Fatal(err)
	}
	open := func(x *tunnel, extra string) {
		fields := &Block{}
		if extra != "" {
			_ = fields.Add(extra, "1")
		}
		d.post(func() {
			if _, err := d.conn.Open(x, block, fields); err != nil {
				t.Error(err)
			}
		})
	}

	x := newTunnel(upload)
	sum := sha256.New()
	x.h = sum
	open(x, "")
	if got := <-x.status; got != 200 {
		t.Fatalf("status %d", got)
	}
	<-x.end
	if want := sha256.Sum256(bytes.ToUpper(upload)); !bytes.Equal(sum.Sum(nil), want[:]) {
		t.Errorf("%d bytes came back, and differ", x.n)
	}

	x = newTunnel([]byte("never read"))
	x.h = io.Discard
	open(x, "x-refuse")
	if got := <-x.status; got != 503 {
		t.Errorf("status %d", got)
	}
	<-x.end

	x = newTunnel(nil)
	x.h = io.Discard
	open(x, "x-abort")
	<-x.status
	if err := <-x.reset; !err.Remote || err.Code != InternalError {
		t.Errorf("reset is %v", err)
	}
	d.post(func() {
		if n := d.conn.Streams(); n != 0 {
			t.Errorf("%d streams are left", n)
		}
	})
	a.Close()
}

// TestServerAgainstXNet: the HTTP/2 client of golang.org/x/net, our server.
func TestServerAgainstXNet(t *testing.T) {
	a, b := net.Pipe()
	payload := bytes.Repeat([]byte("0123456789"), 500_000)
	d := drive(t, b, NewServer, func(o *owner) { o.onRequest = echoRequest })
	tr := &http2.Transport{AllowHTTP: true}
	cc, err := tr.NewClientConn(a)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	do := func(method, authority string, body io.Reader) (*http.Response, error) {
		u := &url.URL{Scheme: "https", Host: authority}
		r := (&http.Request{Method: method, URL: u, Host: authority, Header: http.Header{"Baggage": {"k=v"}}, Body: io.NopCloser(body), ContentLength: -1}).WithContext(context.Background())
		return cc.RoundTrip(r)
	}
	resp, err := do("CONNECT", "web:80", bytes.NewReader(payload))
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != 200 || !bytes.Equal(got, payload) {
		t.Errorf("status %d, %d bytes came back: %v", resp.StatusCode, len(got), err)
	}
	for authority, status := range map[string]int{"denied:80": 401, "down:80": 503} {
		pr, pw := io.Pipe() // a body that does not end
		resp, err := do("CONNECT", authority, pr)
		if err != nil {
			t.Fatal(err)
		}
		if resp.StatusCode != status {
			t.Errorf("%s: status %d", authority, resp.StatusCode)
		}
		_ = resp.Body.Close()
		_ = pw.Close()
	}
	resp, err = do("GET", "web:80", strings.NewReader(""))
	if err != nil || resp.StatusCode != 400 {
		t.Errorf("GET: %v %v", resp, err)
	} else {
		_ = resp.Body.Close()
	}
	resp, err = do("CONNECT", "reset:80", strings.NewReader("x"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err = io.ReadAll(resp.Body); err == nil || !strings.Contains(err.Error(), "CONNECT_ERROR") {
		t.Errorf("reset: %v", err)
	}
	if err := cc.Ping(context.Background()); err != nil {
		t.Error(err)
	}
	d.post(func() { d.conn.Drain() })
	if err := cc.Shutdown(context.Background()); err != nil {
		t.Error(err)
	}
}

// echoRequest sends back what a stream brings; the authority says what else to do.
func echoRequest(s *Stream, r *Request) Sink {
	switch r.Authority {
	case "denied:80":
		s.Refuse(401)
		return nil
	case "down:80":
		s.Refuse(503)
		return nil
	}
	s.Accept(nil)
	return &echo{resets: r.Authority == "reset:80"}
}

type echo struct {
	queue  []byte
	ended  bool
	resets bool
}

func (e *echo) Response(*Stream, int, []hpack.HeaderField) {}
func (e *echo) Reset(*Stream, StreamError)                 {}
func (e *echo) Data(s *Stream, p []byte) {
	if e.resets {
		s.Reset(ConnectError)
		return
	}
	e.queue = append(e.queue, p...)
	e.Writable(s)
}

func (e *echo) End(s *Stream) {
	e.ended = true
	e.Writable(s)
}

func (e *echo) Writable(s *Stream) {
	n := s.Write(e.queue)
	s.Consumed(n)
	if e.queue = e.queue[n:]; e.ended && len(e.queue) == 0 {
		s.CloseWrite()
	}
}
