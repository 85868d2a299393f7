// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/sys/unix"

	"github.com/meshproxy/meshproxy/discovery/mesh"
	"github.com/meshproxy/meshproxy/nodeproxy/identity"
	"github.com/meshproxy/meshproxy/nodeproxy/l4"
	"github.com/meshproxy/meshproxy/nodeproxy/telemetry/reason"
	"github.com/meshproxy/meshproxy/nodeproxy/tunnel"
	"github.com/meshproxy/meshproxy/nodeproxy/tunnel/h2"
)

var errNoProber = reason.Wrap(reason.NoLeaf, errors.New("no workload of this node has an identity to check with"))

// dialThroughTunnel connects an active check to an endpoint of another node:
// on the way that connections of workloads take, as one of them. An identity
// that the other node's policy denies says nothing about the endpoint, so the
// next one is tried; an endpoint that nobody here may call is of no use here.
func (n *Node) dialThroughTunnel(ctx context.Context, e *mesh.Endpoint, addr netip.AddrPort) (net.Conn, error) {
	err := errNoProber
	for _, id := range identities(n.views.load().snapshot) {
		var conn net.Conn
		if conn, err = n.dialAs(ctx, id, e, addr); reason.Of(err) != reason.PeerDenied {
			return conn, err
		}
	}
	return nil, err
}

// dialAs relays one end of a socket pair to the endpoint and returns the
// other.
func (n *Node) dialAs(ctx context.Context, as spiffeid.ID, e *mesh.Endpoint, addr netip.AddrPort) (net.Conn, error) {
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(ends[0]), "check")
	conn, err := net.FileConn(f)
	f.Close()
	if err != nil {
		unix.Close(ends[1])
		return nil, err
	}
	p := &probe{as: as, endpoint: e, addr: addr, outcome: make(chan error, 1)}
	w := n.loops[0]
	if err := w.loop.Post(func() { w.relays.Adopt(ends[1], l4.Client{}, p) }); err != nil {
		unix.Close(ends[1])
		conn.Close()
		return nil, err
	}
	select {
	case err = <-p.outcome:
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err != nil {
		conn.Close() // which also ends the relay
		return nil, err
	}
	return conn, nil
}

// probe is the router and the session of a check's connection. It keeps no
// account: checks are no traffic.
type probe struct {
	as       spiffeid.ID
	endpoint *mesh.Endpoint
	addr     netip.AddrPort
	outcome  chan error // the first one counts
}

func (p *probe) tell(err error) {
	select {
	case p.outcome <- err:
	default:
	}
}

// Route implements l4.Router.
func (p *probe) Route(*l4.Client) (l4.Route, error) { return l4.Route{Session: p}, nil }

// Next implements l4.Session.
func (p *probe) Next(failed error) (l4.Target, error) {
	if failed != nil {
		p.tell(failed)
		return l4.Target{}, failed
	}
	block, err := h2.ConnectBlock(p.addr.String())
	if err != nil {
		p.tell(err)
		return l4.Target{}, err
	}
	name := p.endpoint.SNI
	if name == "" {
		name = identity.ServerName(p.endpoint.Identity)
	}
	return l4.Target{Connect: block, Tunnel: &tunnel.Key{
		Source: p.as, Destinations: accepted(p.endpoint), Addr: p.endpoint.Tunnel, ServerName: name,
	}}, nil
}

// Connected implements l4.Session.
func (p *probe) Connected(*tunnel.Peer) { p.tell(nil) }

// Sent implements l4.Session.
func (*probe) Sent(int) {}

// Received implements l4.Session.
func (*probe) Received(int) {}

// Closed implements l4.Session.
func (p *probe) Closed(why reason.Reason, text string) {
	p.tell(reason.Wrap(why, errors.New(text)))
}
