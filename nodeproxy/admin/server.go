// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"golang.org/x/net/netutil"

	"github.com/meshproxy/meshproxy/nodeproxy/telemetry"
)

// Limits of every listener. None of them has a client that needs more.
const (
	maxConns          = 64
	maxHeaderBytes    = 16 << 10
	maxBodyBytes      = 64 << 10
	readHeaderTimeout = 5 * time.Second
	readTimeout       = 10 * time.Second
	writeTimeout      = 30 * time.Second
	idleTimeout       = 60 * time.Second
	// shutdownTimeout is what an answer under way gets when the node stops.
	shutdownTimeout = time.Second
)

// Options configure Start.
type Options struct {
	// Socket is the path of the admin socket; its directory exists.
	Socket string
	// MetricsAddress and ReadinessAddress are TCP addresses; empty means
	// none.
	MetricsAddress, ReadinessAddress string
	Node                             Node
	Metrics                          *telemetry.Metrics
	// Level is the level of the node's log.
	Level *slog.LevelVar
	Log   *slog.Logger
	// Listen, if not nil, returns what an earlier process of the node listened
	// on, or what anew opens.
	Listen func(network, address string, anew func() (net.Listener, error)) (net.Listener, error)

	readTimeout time.Duration // tests shorten it
}

// Server is the three listeners. Close stops it.
type Server struct {
	log       *slog.Logger
	socket    *socketListener
	stop      context.CancelFunc
	servers   []*http.Server
	listeners map[string]net.Addr
	serving   sync.WaitGroup
}

// The names of the listeners.
const (
	ListenerAdmin     = "admin"
	ListenerMetrics   = "metrics"
	ListenerReadiness = "readiness"
)

// Start opens the listeners and serves them until Close. ErrSocketInUse means
// that another node answers on the admin socket.
func Start(o Options) (_ *Server, err error) {
	ctx, stop := context.WithCancel(context.Background())
	s := &Server{log: o.Log, stop: stop, listeners: make(map[string]net.Addr)}
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	if o.readTimeout == 0 {
		o.readTimeout = readTimeout
	}
	if o.Listen == nil {
		o.Listen = func(_, _ string, anew func() (net.Listener, error)) (net.Listener, error) { return anew() }
	}
	if s.socket, err = listenSocket(&o); err != nil {
		return nil, fmt.Errorf("open admin socket %s: %w", o.Socket, err)
	}
	s.serve(ctx, ListenerAdmin, s.socket, &http.Server{
		Handler:     authorize(newHandler(&o)),
		ConnContext: withPeer,
		ReadTimeout: o.readTimeout,
		// No WriteTimeout: pprof and the watch of connections take long on
		// purpose; the others have a deadline by withDeadline.
	})
	if err := s.serveTCP(ctx, &o, ListenerMetrics, o.MetricsAddress, metricsHandler(o.Metrics)); err != nil {
		return nil, err
	}
	if err := s.serveTCP(ctx, &o, ListenerReadiness, o.ReadinessAddress, healthHandler(o.Node)); err != nil {
		return nil, err
	}
	return s, nil
}

func (s *Server) serveTCP(ctx context.Context, o *Options, name, address string, h http.Handler) error {
	if address == "" {
		return nil
	}
	l, err := o.Listen("tcp", address, func() (net.Listener, error) {
		var lc net.ListenConfig
		// A scraper needs no multipath, and the kernel keeps such sockets from
		// sockmaps.
		lc.SetMultipathTCP(false)
		return lc.Listen(ctx, "tcp", address)
	})
	if err != nil {
		return fmt.Errorf("open %s listener: %w", name, err)
	}
	s.serve(ctx, name, l, &http.Server{Handler: h, ReadTimeout: readTimeout, WriteTimeout: writeTimeout})
	return nil
}

func (s *Server) serve(ctx context.Context, name string, l net.Listener, h *http.Server) {
	h.ReadHeaderTimeout = readHeaderTimeout
	h.IdleTimeout = idleTimeout
	h.MaxHeaderBytes = maxHeaderBytes
	h.ErrorLog = slog.NewLogLogger(s.log.Handler(), slog.LevelWarn)
	h.BaseContext = func(net.Listener) context.Context { return ctx }
	s.servers = append(s.servers, h)
	s.listeners[name] = l.Addr()
	s.serving.Go(func() {
		if err := h.Serve(netutil.LimitListener(l, maxConns)); !errors.Is(err, http.ErrServerClosed) {
			s.log.Error("serve "+name, "error", err)
		}
	})
}

// Addr returns the address of a listener, or nil when there is none of that
// name.
func (s *Server) Addr(name string) net.Addr { return s.listeners[name] }

// Leave is Close for a node whose next process goes on with the same listeners:
// the socket stays where it is.
func (s *Server) Leave() {
	s.socket.leave()
	s.Close()
}

// Close stops the listeners, ends what streams, and waits for it.
func (s *Server) Close() {
	s.stop()
	ctx, cancel := context.WithTimeout(context.Background(), shutdownTimeout)
	defer cancel()
	for _, h := range s.servers {
		if err := h.Shutdown(ctx); err != nil {
			_ = h.Close() // whoever is too slow is cut off
		}
	}
	s.serving.Wait()
}
