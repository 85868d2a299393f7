// SPDX-License-Identifier: Apache-2.0

package l4

import (
	"errors"
	"net/netip"
	"time"

	"github.com/meshproxy/meshproxy/nodeproxy/telemetry/reason"
	"github.com/meshproxy/meshproxy/nodeproxy/tunnel"
	"github.com/meshproxy/meshproxy/nodeproxy/tunnel/h2"
)

// Session is one connection as the rest of the node sees it: where it may go,
// and the account of what it did. Its methods are called on the loop, Closed
// exactly once and last.
type Session interface {
	// Next returns the target to try: at first with a nil error, then with what
	// became of the one before. An error gives up.
	Next(failed error) (Target, error)
	// Connected says that the target took the connection; peer is what its
	// tunnel proved, nil without one.
	Connected(peer *tunnel.Peer)
	// Sent and Received count bytes from the source to the destination, and back.
	Sent(n int)
	Received(n int)
	// Closed says that it is over, and why: reason.None when both ends are done.
	Closed(why reason.Reason, detail string)
}

// Target is a way to an endpoint: a stream in a tunnel, a line, or a socket.
type Target struct {
	// Tunnel and Connect lead through a tunnel: whose, and the CONNECT for it.
	// Without Connect it is a line, a TLS connection for this stream alone. Both
	// are nil for a socket.
	Tunnel  *tunnel.Key
	Connect *h2.Block
	// Addr is where a socket connects to.
	Addr netip.AddrPort
	// Socket makes it, non-blocking, marked, bound, in whatever network namespace.
	// Nil means Options.Socket.
	Socket SocketFunc
	// Timeout bounds this one attempt; 0 means Options.ConnectTimeout.
	Timeout time.Duration
	// Hop, if not nil, names the hop of the socket once it is connected.
	Hop func(fd int) HopKey
}

// SocketFunc makes a non-blocking, close-on-exec TCP socket that will be
// connected to the given address.
type SocketFunc func(to netip.AddrPort) (fd int, err error)

// Route is the answer of a Router or a Gate.
type Route struct {
	Session Session
	// Limit is the workload's; nil means none.
	Limit *Limit
	// Idle ends the connection when nothing has moved for so long; 0 means
	// Options.IdleTimeout.
	Idle time.Duration
	// Hop is that of the connection that arrived at a listener.
	Hop HopKey
}

// Router decides about connections that arrive at a listener. It is called on
// the loop and must not wait.
type Router interface {
	// Route says where c goes. An error refuses it: the client sees a reset. When
	// the answer takes longer, Route calls c.Later, keeps the function that it
	// returns, and returns ErrLater.
	Route(c *Client) (Route, error)
}

// Client is a connection that has just been accepted.
type Client struct {
	// NetNS is the cookie of the network namespace whose listener took it.
	NetNS uint64
	// Remote is the client's own address, Local what the listener got.
	Remote, Local netip.AddrPort

	opening *opening
}

// ErrLater: the answer comes through the function that Client.Later returned.
var ErrLater = errors.New("route comes later")

// Later returns the function that answers instead of Route's results. It may be
// called once, from any goroutine.
func (c *Client) Later() func(Route, error) {
	o := c.opening
	return func(r Route, err error) {
		// When the loop is closed there is nobody left to answer.
		_ = o.set.loop.Post(func() { o.routed(r, err) })
	}
}

// ErrTaken: the router has taken the connection away with Client.Take.
var ErrTaken = errors.New("the connection was taken away")

// Take gives the connection to the caller, which owns its descriptor and returns
// ErrTaken. It is for connections that are another process's.
func (c *Client) Take() (fd int) { return c.opening.reg.Release() }

// Gate decides about streams that arrive in a tunnel. It is called on the loop
// and must not wait.
type Gate interface {
	// Admit says where the stream goes. An error refuses it, with the status
	// that Status finds for it.
	Admit(r *Request) (Route, error)
}

// Request is a CONNECT and the peer that sent it. It is valid during the call.
type Request struct {
	*h2.Request
	Peer *tunnel.Peer
}

// Status is the HTTP status for a refusal, as ztunnel uses them: 401 when policy
// denies, 400 when the request makes no sense here, 503 when the application
// cannot be reached.
func Status(err error) int {
	switch reason.Of(err) {
	case reason.PolicyDenied, reason.PolicyChanged, reason.IdentityMismatch, reason.PlaintextRefused, reason.LocalDenied:
		return 401
	case reason.ProtocolError, reason.NoWorkload, reason.UnknownPort, reason.TunnelRefused:
		return 400
	default:
		return 503
	}
}

// refusedBy is the reason for a status that the other node answered.
func refusedBy(status int) reason.Reason {
	switch status {
	case 401, 403:
		return reason.PeerDenied
	case 503:
		return reason.PeerUnavailable
	default:
		return reason.TunnelRefused
	}
}
