// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/netip"
	"sync"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/meshproxy/meshproxy/discovery/mesh"
	"github.com/meshproxy/meshproxy/nodeproxy/identity"
	"github.com/meshproxy/meshproxy/nodeproxy/tunnel"
)

// Lines: mutual TLS connections for one stream each, as Consul's sidecars speak
// them, both ways.

// lineTLS: sidecars stop at TLS 1.2 as clients, and name no protocol for TCP.
var lineTLS = identity.Options{Protocols: []string{}, MinVersion: tls.VersionTLS12}

// lineIdentity makes the TLS configurations of lines that this node opens.
type lineIdentity struct{ *identity.Sessions[tunnel.Key] }

func newLineIdentity(p identity.Provider) lineIdentity {
	return lineIdentity{identity.NewSessions[tunnel.Key](p, lineTLS)}
}

// ClientConfig implements tunnel.ClientIdentity.
func (c lineIdentity) ClientConfig(ctx context.Context, key *tunnel.Key) (*tls.Config, error) {
	config, err := c.Config(ctx, *key, key.Source, key.Destinations.All(), key.ServerName)
	if err != nil {
		return nil, identityReason(err)
	}
	explainVerification(config)
	return config, nil
}

// Forget implements tunnel.ForgetfulIdentity.
func (c lineIdentity) Forget(key *tunnel.Key) { c.Sessions.Forget(*key) }

// lineServer takes lines for the workloads here: on a port for all of them, told
// apart by SNI, and on ports of their own.
type lineServer struct {
	*tunnel.Server
	node *Node
	at   netip.AddrPort // of the common port; invalid when it is off
	// common is the listener on it until accept.
	common  *net.TCPListener
	tickets *identity.Tickets

	mu      sync.Mutex
	configs map[uint16]*tls.Config // by port
	own     map[uint16]func()      // what ends listening on a workload's own port
	failed  map[uint16]string      // why one is not listened on
}

func (n *Node) startLines(ctx context.Context) error {
	s := &lineServer{
		node: n, tickets: identity.NewTickets(n.provider, lineTLS), at: n.settingsFile().Listeners.InboundMTLS,
		configs: make(map[uint16]*tls.Config), own: make(map[uint16]func()), failed: make(map[uint16]string),
	}
	seats := make([]tunnel.Seat, len(n.loops))
	for i, w := range n.loops {
		seats[i] = tunnel.Seat{Carrier: w.carrier, Lines: w.relays.GatedLines(w.gate)}
	}
	config := &tls.Config{GetConfigForClient: s.configFor, MinVersion: tls.VersionTLS12, SessionTicketsDisabled: true}
	s.Server = tunnel.NewServer(tunnel.ServerOptions{
		Config: configFunc(config), Seats: seats, Logger: n.log,
		Sockets: tunnelSockets, Handshake: shakeHands, Observe: n.observeHandshake,
	})
	n.lines = s
	if !s.at.IsValid() {
		return nil
	}
	var err error
	s.common, err = s.bind(ctx, meshScope, s.at)
	return err
}

// accept begins to take lines on the common port.
func (s *lineServer) accept() error {
	if s.common == nil {
		return nil
	}
	_, err := s.serve(s.common)
	return err
}

// bind opens the listener on a port.
func (s *lineServer) bind(ctx context.Context, scope string, at netip.AddrPort) (*net.TCPListener, error) {
	config := identity.ServerConfig(s.node.provider, lineNames{s.node.views, at.Port()}, lineTLS)
	explainVerification(config)
	s.mu.Lock()
	s.configs[at.Port()] = config
	s.mu.Unlock()
	return s.node.sockets.listenTCP(ctx, scope, listenAddress(at), s.node.capture.Control)
}

// serve takes lines from a listener, which it takes over, and returns what ends
// it.
func (s *lineServer) serve(ln *net.TCPListener) (stop func(), err error) {
	defer ln.Close() // the server has a descriptor of its own
	err = withFD(ln, func(fd int) (err error) {
		stop, err = s.ListenUntil(fd)
		return err
	})
	return stop, err
}

// listen begins to take lines at an address, and returns what ends it.
func (s *lineServer) listen(ctx context.Context, scope string, at netip.AddrPort) (stop func(), err error) {
	ln, err := s.bind(ctx, scope, at)
	if err != nil {
		return nil, err
	}
	return s.serve(ln)
}

// configFor implements tls.Config.GetConfigForClient: whom a client without SNI
// means depends on the port that it came to.
func (s *lineServer) configFor(hello *tls.ClientHelloInfo) (*tls.Config, error) {
	at, ok := hello.Conn.LocalAddr().(*net.TCPAddr)
	if !ok {
		return nil, fmt.Errorf("find port of line: local address is %T", hello.Conn.LocalAddr())
	}
	s.mu.Lock()
	config := s.configs[uint16(at.Port)]
	s.mu.Unlock()
	if config == nil {
		return nil, fmt.Errorf("find port of line: nobody takes any at %d", at.Port)
	}
	return s.tickets.For(hello, config)
}

// follow opens the ports that workloads have for themselves, and closes those
// that none has any more. A port that is taken is tried again the next time.
func (s *lineServer) follow(ctx context.Context, workloads []*mesh.Workload) {
	wanted := make(map[uint16]*mesh.Workload)
	for _, w := range workloads {
		if w.MTLSPort != 0 && w.MTLSPort != s.at.Port() {
			wanted[w.MTLSPort] = w
		}
	}
	for port, stop := range s.own {
		if wanted[port] == nil {
			stop()
			s.node.sockets.forget(lineScope(port))
			delete(s.own, port)
			s.node.log.Info("closed port of workload for mutual TLS", "port", port)
		}
	}
	for port, w := range wanted {
		if s.own[port] != nil {
			continue
		}
		stop, err := s.listen(ctx, lineScope(port), netip.AddrPortFrom(s.at.Addr(), port))
		if err != nil {
			if s.failed[port] != err.Error() {
				s.node.log.Error("open port of workload for mutual TLS", "workload", w.Name, "port", port, "error", err)
			}
			s.failed[port] = err.Error()
			continue
		}
		delete(s.failed, port)
		s.own[port] = stop
		s.node.log.Info("opened port of workload for mutual TLS", "workload", w.Name, "port", port)
	}
}

// lineNames finds the identity that a client of a port means.
type lineNames struct {
	views *views
	port  uint16
}

// Local implements identity.Local: on a workload's own port that one, by whatever
// name it has; else as for tunnels.
func (l lineNames) Local(name string) (spiffeid.ID, bool) {
	own, ok := l.views.load().snapshot.MTLSPort(l.port)
	if !ok {
		return l.views.Local(name)
	}
	if name == "" {
		return own, true
	}
	id, ok := l.views.Local(name)
	return id, ok && id == own
}
