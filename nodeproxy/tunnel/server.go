// SPDX-License-Identifier: Apache-2.0

package tunnel

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/meshproxy/meshproxy/nodeproxy/telemetry/reason"
	"github.com/meshproxy/meshproxy/nodeproxy/tunnel/h2"
)

// Acceptor decides about the streams that peers open. It is called on the loop
// of its Seat and must not wait: it returns the stream's sink, or nil after
// s.Refuse. The status is sent by s.Accept or s.Refuse, now or later.
type Acceptor interface {
	Accept(via Tunnel, s *h2.Stream, r *h2.Request) h2.Sink
}

// LineAcceptor takes the lines that peers open, each with the one stream that
// it carries. It is called on the loop of its Seat and must not wait. The line
// belongs to it.
type LineAcceptor interface{ AcceptLine(*Line) }

// Seat is a loop that takes a server's connections.
type Seat struct {
	Carrier  *Carrier
	Acceptor Acceptor
	// Lines, if not nil, makes each connection a line; there are no streams for
	// Acceptor then. All seats of a server have it, or none.
	Lines LineAcceptor
}

// ServerOptions configures a Server. Config and Seats are required.
type ServerOptions struct {
	// Config demands and verifies client certificates, and chooses the leaf by
	// SNI. It is asked for once per connection.
	Config func() *tls.Config
	Seats  []Seat
	// HandshakeTimeout: 0 means 10 s.
	HandshakeTimeout time.Duration
	// MaxHandshakes are under way at most; accepting waits beyond that. 0 means
	// 512. MaxHandshakesPerPeer come from one IP address, further ones are closed;
	// 0 means 256, which leaves room for a node whose workloads all reconnect.
	MaxHandshakes, MaxHandshakesPerPeer int
	Sockets                             Sockets
	// Handshake replaces (*tls.Conn).HandshakeContext, if not nil, to give errors
	// their reasons.
	Handshake HandshakeFunc
	Logger    *slog.Logger
	// Observe, if not nil, hears of each handshake, on its goroutine.
	Observe func(Handshake)
}

// Server accepts tunnels. Its methods may be called from any goroutine.
type Server struct {
	options ServerOptions
	by      transport
	ctx     context.Context
	cancel  context.CancelFunc
	tasks   sync.WaitGroup
	slots   Semaphore
	next    atomic.Uint32 // seat
	// refusals and pauses bound what is logged of them.
	refusals, pauses quota

	mu        sync.Mutex
	listeners map[net.Listener]struct{}
	shaking   map[netip.Addr]int
	open      int
	stopped   bool
	idle      chan struct{} // closed when stopped and open is 0
}

// NewServer makes a server; Serve gives it listeners.
func NewServer(o ServerOptions) *Server {
	if o.HandshakeTimeout == 0 {
		o.HandshakeTimeout = 10 * time.Second
	}
	if o.MaxHandshakes == 0 {
		o.MaxHandshakes = 512
	}
	if o.MaxHandshakesPerPeer == 0 {
		o.MaxHandshakesPerPeer = 256
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	s := &Server{
		options:   o,
		slots:     NewSemaphore(o.MaxHandshakes),
		listeners: make(map[net.Listener]struct{}),
		shaking:   make(map[netip.Addr]int),
		idle:      make(chan struct{}),
	}
	if s.by = hbone; o.Seats[0].Lines != nil {
		s.by = mtls
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s
}

// Listen accepts from the listening socket fd, which stays the caller's, until
// Drain or Close.
func (s *Server) Listen(fd int) error {
	_, err := s.ListenUntil(fd)
	return err
}

// ListenUntil is Listen, and returns what ends it earlier.
func (s *Server) ListenUntil(fd int) (stop func(), err error) {
	own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("duplicate listener: %w", err)
	}
	f := os.NewFile(uintptr(own), "tunnel listener")
	ln, err := net.FileListener(f)
	_ = f.Close()
	if err != nil {
		return nil, fmt.Errorf("listen for tunnels: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		_ = ln.Close()
		return nil, ErrDraining
	}
	s.listeners[ln] = struct{}{}
	s.tasks.Go(func() { s.accept(ln) })
	return func() { s.unlisten(ln) }, nil
}

func (s *Server) unlisten(ln net.Listener) {
	s.mu.Lock()
	defer s.mu.Unlock()
	_ = ln.Close()
	delete(s.listeners, ln)
}

// Connections is the number of tunnels that are open.
func (s *Server) Connections() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.open
}

// acceptRest is how long accepting rests when there are no descriptors.
const acceptRest = 100 * time.Millisecond

func (s *Server) accept(ln net.Listener) {
	for {
		if s.slots.acquire(s.ctx) != nil {
			return
		}
		nc, err := ln.Accept()
		if err != nil {
			s.slots.release()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if suppressed, ok := s.pauses.take(time.Now()); ok {
				s.options.Logger.Warn("pause accepting tunnels", "listener", ln.Addr(), "for", acceptRest, "error", err, "suppressed", suppressed)
			}
			select {
			case <-time.After(acceptRest):
				continue
			case <-s.ctx.Done():
				return
			}
		}
		s.tasks.Go(func() {
			defer s.slots.release()
			s.welcome(nc)
		})
	}
}

// welcome shakes hands and moves the connection to a loop.
func (s *Server) welcome(nc net.Conn) {
	begin := time.Now()
	remote := addrPort(nc.RemoteAddr())
	sec, err := s.shake(nc, remote)
	if errors.Is(err, errProbe) {
		s.options.Logger.Debug("tunnel probed", "remote", remote)
		return
	}
	if s.options.Observe != nil {
		h := Handshake{Peer: Peer{Remote: remote}, Duration: time.Since(begin), Err: err}
		if sec != nil {
			h.Peer, h.Resumed = sec.peer, sec.resumed
		}
		s.options.Observe(h)
	}
	if err != nil {
		if suppressed, ok := s.refusals.take(time.Now()); ok {
			s.options.Logger.Warn("refuse tunnel", "remote", remote, "reason", reason.Of(err), "error", err, "suppressed", suppressed)
		}
		return
	}
	s.seat(sec)
}

func (s *Server) shake(nc net.Conn, remote netip.AddrPort) (sec *secured, err error) {
	defer nc.Close() // who goes on has another descriptor of it
	defer contain(s.options.Logger, remote, &err)
	if leftAlready(nc) {
		return nil, errProbe
	}
	from := remote.Addr()
	if !s.enter(from) {
		return nil, reason.Wrap(reason.LimitHandshakes, fmt.Errorf("too many handshakes with %s", from))
	}
	defer s.exit(from)
	s.options.Sockets.apply(nc)
	if s.by == mtls {
		keepAlive(nc)
	}
	ctx, cancel := context.WithTimeout(s.ctx, s.options.HandshakeTimeout)
	defer cancel()
	return s.options.Handshake.server(ctx, nc, s.options.Config(), s.by)
}

func (s *Server) enter(from netip.Addr) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.shaking[from] >= s.options.MaxHandshakesPerPeer {
		return false
	}
	s.shaking[from]++
	return true
}

func (s *Server) exit(from netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.shaking[from]--; s.shaking[from] == 0 {
		delete(s.shaking, from)
	}
}

// seat gives the connection to the loops in turn.
func (s *Server) seat(sec *secured) {
	seat := s.options.Seats[int(s.next.Add(1))%len(s.options.Seats)]
	s.mu.Lock()
	s.open++
	s.mu.Unlock()
	err := seat.Carrier.loop.Post(func() {
		if seat.Lines != nil {
			s.seatLine(seat, sec)
			return
		}
		c, err := seat.Carrier.adopt(sec, &hosted{s, seat.Acceptor}, false)
		if err != nil {
			s.options.Logger.Warn("adopt tunnel", "error", err)
			s.left()
			return
		}
		if s.ctx.Err() != nil || s.stopping() {
			c.drain()
		}
	})
	if err != nil {
		_ = unix.Close(sec.fd)
		s.left()
	}
}

// seatLine gives a connection to the seat as a line. A server that stops lets
// it go on as it does with streams.
func (s *Server) seatLine(seat Seat, sec *secured) {
	l, err := seat.Carrier.adoptLine(sec, lineOf{s}, false)
	if err != nil {
		s.options.Logger.Warn("adopt tunnel", "error", err)
		s.left()
		return
	}
	defer seat.Carrier.loop.Contain(l)
	seat.Lines.AcceptLine(l)
}

// lineOf is the role of a server's lines.
type lineOf struct{ server *Server }

func (r lineOf) ended() { r.server.left() }

func (s *Server) stopping() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stopped
}

func (s *Server) left() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open--
	s.signal()
}

// signal is called with mu held.
func (s *Server) signal() {
	if s.stopped && s.open == 0 {
		select {
		case <-s.idle:
		default:
			close(s.idle)
		}
	}
}

// Leave accepts nothing new and asks the peers to go elsewhere (GOAWAY). What is
// open goes on.
func (s *Server) Leave() {
	s.stop()
	s.each((*conn).drain)
}

// Drain is Leave, and waits for the open streams. When ctx ends first, Drain
// returns its error; Close ends the rest.
func (s *Server) Drain(ctx context.Context) error {
	s.Leave()
	select {
	case <-s.idle:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("drain tunnels: %w", ctx.Err())
	}
}

// Close ends everything and waits for the server's goroutines. Not to be called
// on a loop.
func (s *Server) Close() {
	s.stop()
	s.cancel()
	s.tasks.Wait()
	s.each(func(c *conn) { c.fail(ErrDraining) })
	for _, seat := range s.options.Seats {
		_ = seat.Carrier.loop.Post(func() {
			for l := range seat.Carrier.lines {
				if l.role == (lineOf{s}) {
					l.fail(ErrDraining)
				}
			}
		})
	}
}

func (s *Server) stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stopped = true
	for ln := range s.listeners {
		_ = ln.Close()
	}
	clear(s.listeners)
	s.signal()
}

// each calls f for the server's connections, each on its loop, some time soon.
func (s *Server) each(f func(*conn)) {
	for _, seat := range s.options.Seats {
		_ = seat.Carrier.loop.Post(func() {
			for c := range seat.Carrier.conns {
				if h, ok := c.role.(*hosted); ok && h.server == s {
					f(c)
				}
			}
		})
	}
}

// Retire drains the connections whose peers match.
func (s *Server) Retire(match func(*Peer) bool) {
	s.each(func(c *conn) {
		if match(&c.peer) {
			c.drain()
		}
	})
}

// hosted is the role of a server's connections.
type hosted struct {
	server   *Server
	acceptor Acceptor
}

func (h *hosted) request(c *conn, s *h2.Stream, r *h2.Request) h2.Sink {
	return h.acceptor.Accept(Tunnel{c}, s, r)
}

func (h *hosted) changed(*conn) {}

func (h *hosted) gone(*conn, error) { h.server.left() }
