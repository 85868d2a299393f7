// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// Server answers queries on any number of listeners, which come and go. All
// methods may be called from any goroutine.
type Server struct {
	options  Options
	settings atomic.Pointer[Settings]
	forward  *forwarder
	queries  *limiter
	streams  *limiter

	ctx    context.Context
	cancel context.CancelFunc
	// reading ends before ctx does in a drain.
	reading     context.Context
	stopReading context.CancelFunc
	// serving counts the goroutines of all listeners.
	serving sync.WaitGroup

	mu     sync.Mutex
	closed bool
	// own are the addresses of the listeners. Several namespaces may have the
	// same one.
	own map[netip.AddrPort]int
}

// New makes a server without listeners.
func New(o Options) (*Server, error) {
	o.complete()
	s := &Server{
		options: o,
		queries: newLimiter(o.MaxForwarded, o.MaxForwardedPerClient),
		streams: newLimiter(o.MaxConnections, o.MaxConnectionsPerClient),
		own:     map[netip.AddrPort]int{},
	}
	s.forward = newForwarder(o, s.isOwn)
	if err := s.Apply(o.Settings); err != nil {
		return nil, err
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.reading, s.stopReading = context.WithCancel(s.ctx)
	return s, nil
}

// Apply replaces the settings. Queries that have been received are answered
// under the old ones.
func (s *Server) Apply(settings Settings) error {
	if err := settings.complete(); err != nil {
		return err
	}
	s.forward.use(settings.Upstreams)
	s.settings.Store(&settings)
	return nil
}

// ServePacket answers the queries that arrive at c, until stop is called or
// the server is closed. It owns c from now on, also after an error. stop
// closes c and waits until nothing uses it any more.
//
// The scope tells apart clients of the same address in different namespaces.
func (s *Server) ServePacket(scope string, c net.PacketConn) (stop func(), err error) {
	unread := func() { _ = c.SetReadDeadline(time.Unix(1, 0)) }
	return s.serve(c.LocalAddr(), c.Close, unread, func(l *listening) { s.servePackets(l, scope, c) })
}

// ServeStream answers the queries on connections that l accepts, in all else
// like ServePacket.
func (s *Server) ServeStream(scope string, l net.Listener) (stop func(), err error) {
	return s.serve(l.Addr(), l.Close, func() { _ = l.Close() }, func(at *listening) { s.serveStreams(at, scope, l) })
}

// Drain takes no further queries from any listener; those that were received are
// answered. Another process may listen on the same sockets and gets the rest.
func (s *Server) Drain() { s.stopReading() }

// Pending is the number of queries that wait for an answer of a resolver.
func (s *Server) Pending() int { return s.queries.taken() }

// Close stops all listeners and waits for them.
func (s *Server) Close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.cancel()
	s.serving.Wait()
}

// listening is what the goroutines of one listener share.
type listening struct {
	ctx     context.Context
	reading context.Context
	sync.WaitGroup
}

// serve runs a listener until its context ends. unread makes run return early.
func (s *Server) serve(at net.Addr, closeIt func() error, unread func(), run func(*listening)) (func(), error) {
	address, err := addrPort(at)
	if err == nil && address.Addr().IsUnspecified() {
		err = ErrUnspecified
	}
	if err == nil {
		err = s.add(address)
	}
	if err != nil {
		_ = closeIt()
		return nil, fmt.Errorf("serve DNS on %v: %w", at, err)
	}
	ctx, cancel := context.WithCancel(s.ctx)
	l := &listening{ctx: ctx, reading: s.reading}
	unwatch := context.AfterFunc(ctx, func() { _ = closeIt() })
	stay := context.AfterFunc(s.reading, unread)
	ended := make(chan struct{})
	go func() {
		defer s.serving.Done()
		defer close(ended)
		run(l)
		stay()
		if s.reading.Err() == nil {
			cancel()
		}
		l.Wait()
		cancel()
		// When the listener is closed by now, this is one time too many.
		unwatch()
		_ = closeIt()
		s.remove(address)
	}()
	return func() {
		cancel()
		<-ended
	}, nil
}

func (s *Server) add(at netip.AddrPort) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return ErrClosed
	}
	s.serving.Add(1)
	s.own[at]++
	return nil
}

func (s *Server) remove(at netip.AddrPort) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.own[at]--; s.own[at] == 0 {
		delete(s.own, at)
	}
}

// isOwn reports whether a resolver's address is one of the listeners'.
func (s *Server) isOwn(at netip.AddrPort) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.own[at] > 0
}

func addrPort(a net.Addr) (netip.AddrPort, error) {
	var at netip.AddrPort
	switch a := a.(type) {
	case *net.UDPAddr:
		at = a.AddrPort()
	case *net.TCPAddr:
		at = a.AddrPort()
	default:
		return at, fmt.Errorf("address of network %s", a.Network())
	}
	return netip.AddrPortFrom(at.Addr().Unmap(), at.Port()), nil
}

// pause waits before a listener is asked again after an error, and reports
// whether to go on. Errors like a lack of descriptors last for a while.
func (l *listening) pause(after *time.Duration) bool {
	if l.reading.Err() != nil {
		return false
	}
	*after = min(max(*after*2, 5*time.Millisecond), time.Second)
	timer := time.NewTimer(*after)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-l.ctx.Done():
		return false
	}
}
