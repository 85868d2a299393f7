// SPDX-License-Identifier: Apache-2.0

package l4

import (
	"errors"
	"log/slog"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/meshproxy/meshproxy/nodeproxy/loop"
	"github.com/meshproxy/meshproxy/nodeproxy/telemetry/reason"
	"github.com/meshproxy/meshproxy/nodeproxy/tunnel"
)

const (
	// tick is the resolution of all timeouts here.
	tick = 250 * time.Millisecond
	// sweepParts: an established connection is looked at every so many ticks, so
	// idle timeouts are exact to 4 s.
	sweepParts = 16
	// maxVec bounds the pieces of one readv or writev.
	maxVec = 64
	// pairRead is what a pair reads at once, and so the most that it buffers in
	// one direction.
	pairRead = 128 << 10
)

// errIdle ends connections on which nothing moved.
var errIdle = reason.Wrap(reason.IdleTimeout, errors.New("idle for too long"))

// Options configures a Relays. The zero value is usable.
type Options struct {
	Logger *slog.Logger
	// Socket makes sockets to targets that bring no SocketFunc of their own; nil
	// makes plain ones.
	Socket SocketFunc
	// ConnectTimeout bounds an attempt; 0 means 5 s.
	ConnectTimeout time.Duration
	// IdleTimeout ends connections on which nothing moved for so long; 0 means
	// never.
	IdleTimeout time.Duration
	// Lines opens TLS connections for one stream each; nil when there are none.
	Lines *tunnel.Lines
	// Hops, if not nil, are in the kernel.
	Hops Hops
	// Admit, if not nil, is asked whether the node has the means for one more
	// connection; its error refuses it.
	Admit func() error
	// Refused, if not nil, is called on the loop for each connection or stream
	// that a Router or Gate, or a limit, refused. r is nil for connections, c for
	// streams; r has no more than the peer for lines.
	Refused func(c *Client, r *Request, err error)
}

// Relays hosts the connections of one loop. It belongs to its loop, save what
// says otherwise.
type Relays struct {
	loop    *loop.Loop
	pool    *tunnel.Pool
	carrier *tunnel.Carrier
	options Options

	now     uint32 // in ticks
	setups  []member
	members []member
	swept   int
	room    descriptors

	slots  [][]byte     // for Stream.Reserve
	vec    []unix.Iovec // for readv and writev
	gather gather

	hopsWanted uint32
	mixing     mixing
}

// member is a connection that the sweep looks at.
type member interface {
	session() Session
	// place is where the member keeps its index in the list it is in.
	place() *int32
	// look lets the member find out whether a timeout of its own is over.
	look(now uint32)
	// kill ends the member with a reset of both ends.
	kill(err error)
}

// New makes the relays of c's loop. Streams to other nodes are opened from
// pool, which may be nil when there are none.
func New(c *tunnel.Carrier, pool *tunnel.Pool, o Options) *Relays {
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.Socket == nil {
		o.Socket = func(to netip.AddrPort) (int, error) { return loop.Socket(to.Addr()) }
	}
	if o.ConnectTimeout == 0 {
		o.ConnectTimeout = 5 * time.Second
	}
	s := &Relays{
		loop: c.Loop(), pool: pool, carrier: c, options: o, now: 1,
		slots: make([][]byte, 0, maxVec),
		vec:   make([]unix.Iovec, 0, maxVec),
	}
	s.gather.set = s
	s.room.read()
	s.loop.Every(tick, s.sweep)
	return s
}

// Listen takes connections from the listening socket fd, which stays the
// caller's and may be given to the Relays of other loops as well. netns is
// passed on to the router.
func (s *Relays) Listen(fd int, netns uint64, r Router) (*loop.Listener, error) {
	loop.SetNoDelay(fd) // what it accepts inherits it
	return s.loop.Listen(fd, func(fd int, remote netip.AddrPort) {
		s.accept(fd, Client{NetNS: netns, Remote: remote}, r)
	})
}

// Gated makes the Acceptor that relays the streams that g admits.
func (s *Relays) Gated(g Gate) tunnel.Acceptor { return &acceptor{set: s, gate: g} }

// enter takes the place of a connection within the node's means and l.
func (s *Relays) enter(l *Limit) error {
	if admit := s.options.Admit; admit != nil {
		if err := admit(); err != nil {
			return err
		}
	}
	return l.enter()
}

// Open is the number of connections, those that are still being opened
// included.
func (s *Relays) Open() int { return len(s.setups) + len(s.members) }

// Each calls f for each connection's session.
func (s *Relays) Each(f func(Session)) {
	for _, list := range [][]member{s.setups, s.members} {
		for _, m := range list {
			if sess := m.session(); sess != nil {
				f(sess)
			}
		}
	}
}

// CloseIf resets the connections that illegal gives an error for: a policy has
// changed. It returns their number.
func (s *Relays) CloseIf(illegal func(Session) error) int {
	type sentence struct {
		m   member
		err error
	}
	var condemned []sentence
	for _, list := range [][]member{s.setups, s.members} {
		for _, m := range list {
			if sess := m.session(); sess != nil {
				if err := illegal(sess); err != nil {
					condemned = append(condemned, sentence{m, err})
				}
			}
		}
	}
	for _, c := range condemned {
		c.m.kill(c.err)
	}
	return len(condemned)
}

// sweep runs every tick: those that are being opened are looked at each time,
// the established ones in parts.
func (s *Relays) sweep() {
	s.now++
	s.room.read()
	for i := len(s.setups) - 1; i >= 0; i-- {
		if i < len(s.setups) { // ending one may end others
			s.setups[i].look(s.now)
		}
	}
	part := len(s.members)/sweepParts + 1
	for ; part > 0 && len(s.members) > 0; part-- {
		if s.swept--; s.swept < 0 || s.swept >= len(s.members) {
			s.swept = len(s.members) - 1
		}
		s.members[s.swept].look(s.now)
	}
}

// after is the tick at which a timeout that begins now is over; 0, never, for
// none.
func (s *Relays) after(d time.Duration) uint32 {
	if d <= 0 {
		return 0
	}
	return s.now + ticks(d)
}

// ticks rounds up: no timeout comes early.
func ticks(d time.Duration) uint32 { return uint32((d+tick-1)/tick) + 1 }

func enlist(list *[]member, m member) {
	*m.place() = int32(len(*list))
	*list = append(*list, m)
}

func strike(list *[]member, m member) {
	l := *list
	i, n := *m.place(), len(l)-1
	l[i] = l[n]
	*l[i].place() = i
	l[n] = nil
	*list = l[:n]
}

// socketFor makes the socket for a target.
func (s *Relays) socketFor(t *Target) (int, error) {
	if t.Socket != nil {
		return t.Socket(t.Addr)
	}
	return s.options.Socket(t.Addr)
}

func (s *Relays) timeout(t *Target) time.Duration {
	if t.Timeout > 0 {
		return t.Timeout
	}
	return s.options.ConnectTimeout
}

// idle is the idle timeout in ticks, 0 for none.
func (s *Relays) idle(r *Route) uint32 {
	d := r.Idle
	if d == 0 {
		d = s.options.IdleTimeout
	}
	if d <= 0 {
		return 0
	}
	return ticks(d)
}
