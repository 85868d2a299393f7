// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"
)

// addresses is a flag that may be given several times.
type addresses []string

func (a *addresses) String() string     { return strings.Join(*a, ",") }
func (a *addresses) Set(s string) error { *a = append(*a, s); return nil }

// server is the role "serve".
type server struct {
	name     string
	out      *reporter
	accepted bool // report each connection
	closed   bool // and how the client ended it
	closeEOF bool // echo: close both directions at the client's half-close
	wg       sync.WaitGroup

	mu    sync.Mutex
	conns map[net.Conn]struct{}
	done  bool
}

func serve(ctx context.Context, args []string, out *reporter) error {
	s := &server{out: out, conns: map[net.Conn]struct{}{}}
	fs := flag.NewFlagSet("serve", flag.ContinueOnError)
	fs.StringVar(&s.name, "name", "", "name in answers")
	fs.BoolVar(&s.accepted, "report-accepted", false, "report each TCP connection")
	fs.BoolVar(&s.closed, "report-closed", false, "report how clients ended TCP connections")
	fs.BoolVar(&s.closeEOF, "close-on-eof", false, "echo: close at once when the client has shut down its direction")
	kinds := map[string]func(net.Conn){
		"tcp": s.line, "echo": s.echo, "sink": s.sink, "source": s.source,
		"silent": s.silent, "reset": s.reset,
	}
	help := map[string]string{
		"tcp":    "answers each line with a line of JSON that says who called; the line RESET resets, HALFCLOSE shuts down this direction",
		"echo":   "returns every byte, and the end of the stream after it",
		"sink":   "reads to the end, then sends the number of bytes",
		"source": "sends zeros until the client closes",
		"silent": "accepts and reads, never answers or closes",
		"reset":  "resets after the first byte",
	}
	listen := map[string]*addresses{"http": {}}
	fs.Var(listen["http"], "http", "address; answers requests with JSON that says who called")
	for kind := range kinds {
		listen[kind] = &addresses{}
		fs.Var(listen[kind], kind, "address; "+help[kind])
	}
	if err := parse(fs, args); err != nil {
		return err
	}

	web := &http.Server{Handler: http.HandlerFunc(s.serveHTTP), ConnContext: withConn, ReadHeaderTimeout: 10 * time.Second}
	var listeners []net.Listener
	defer s.wg.Wait()
	defer s.stop(&listeners, web)
	ready := Ready{Event: EventReady, Listeners: map[string][]string{}}
	for kind, addrs := range listen {
		for _, addr := range *addrs {
			l, err := net.Listen("tcp", addr)
			if err != nil {
				return fmt.Errorf("listen: %w", err)
			}
			listeners = append(listeners, l)
			ready.Listeners[kind] = append(ready.Listeners[kind], l.Addr().String())
			s.wg.Go(func() {
				if kind == "http" {
					_ = web.Serve(l)
					return
				}
				s.acceptLoop(l, kind, kinds[kind])
			})
		}
	}
	if len(listeners) == 0 {
		return fmt.Errorf("%w: serve: no address", errUsage)
	}
	out.report(ready)
	<-ctx.Done()
	return nil
}

func (s *server) stop(listeners *[]net.Listener, web *http.Server) {
	_ = web.Close()
	for _, l := range *listeners {
		_ = l.Close()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.done = true
	for c := range s.conns {
		_ = c.Close()
	}
}

func (s *server) acceptLoop(l net.Listener, kind string, handle func(net.Conn)) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		s.mu.Lock()
		if s.done {
			s.mu.Unlock()
			_ = c.Close()
			return
		}
		s.conns[c] = struct{}{}
		s.mu.Unlock()
		if s.accepted {
			s.out.report(Accepted{Event: EventAccepted, Kind: kind, Peers: peersOf(c, true)})
		}
		s.wg.Go(func() {
			h := &heard{TCPConn: c.(*net.TCPConn)}
			handle(h)
			if s.closed && h.end != nil {
				s.out.report(Closed{Event: EventClosed, Kind: kind, Error: errorName(h.end), Received: h.received})
			}
			_ = c.Close()
			s.mu.Lock()
			delete(s.conns, c)
			s.mu.Unlock()
		})
	}
}

// heard remembers what a handler was told of the client.
type heard struct {
	*net.TCPConn
	received int64
	end      error
}

// Read implements net.Conn.
func (h *heard) Read(p []byte) (int, error) {
	n, err := h.TCPConn.Read(p)
	h.received += int64(n)
	if err != nil && !errors.Is(err, net.ErrClosed) && h.end == nil {
		h.end = err
	}
	return n, err
}

type connKey struct{}

func withConn(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, c)
}

func (s *server) serveHTTP(w http.ResponseWriter, r *http.Request) {
	seen := Seen{Server: s.name, Method: r.Method, Host: r.Host, Path: r.URL.Path}
	if c, ok := r.Context().Value(connKey{}).(net.Conn); ok {
		seen.Peers = peersOf(c, true)
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, 64<<10))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	seen.Body = string(body)
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(seen)
}

// line answers lines.
func (s *server) line(c net.Conn) {
	tcp := c.(*heard)
	seen := Seen{Server: s.name, Peers: peersOf(c, true)}
	lines := bufio.NewScanner(c)
	half := false
	for lines.Scan() {
		switch text := lines.Text(); text {
		case "RESET":
			_ = tcp.SetLinger(0)
			return
		case "HALFCLOSE":
			_ = tcp.CloseWrite()
			half = true
		default:
			if half {
				continue // it hears, and cannot answer
			}
			seen.Body = text
			if json.NewEncoder(c).Encode(seen) != nil {
				return
			}
		}
	}
}

func (s *server) echo(c net.Conn) {
	if s.closeEOF {
		buf := make([]byte, 64<<10)
		for {
			n, err := c.Read(buf)
			if err != nil {
				return
			}
			if _, err := c.Write(buf[:n]); err != nil {
				return
			}
		}
	}
	_, _ = io.Copy(onlyWriter{c}, onlyReader{c})
	_ = c.(*heard).CloseWrite()
}

// onlyReader and onlyWriter keep io.Copy from splicing in the kernel: an
// application's bytes pass through its memory.
type (
	onlyReader struct{ io.Reader }
	onlyWriter struct{ io.Writer }
)

func (s *server) sink(c net.Conn) {
	n, err := io.Copy(io.Discard, onlyReader{c})
	if err == nil {
		fmt.Fprintf(c, "%d\n", n)
	}
}

func (s *server) source(c net.Conn) {
	buf := make([]byte, 256<<10)
	for {
		if _, err := c.Write(buf); err != nil {
			return
		}
	}
}

func (s *server) silent(c net.Conn) { _, _ = io.Copy(io.Discard, c) }

func (s *server) reset(c net.Conn) {
	_, _ = c.Read(make([]byte, 1))
	_ = c.(*heard).SetLinger(0)
}
