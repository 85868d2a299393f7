// SPDX-License-Identifier: Apache-2.0

package tunnel

import (
	"context"
	"errors"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/meshproxy/meshproxy/nodeproxy/loop"
	"github.com/meshproxy/meshproxy/nodeproxy/telemetry/reason"
	"github.com/meshproxy/meshproxy/nodeproxy/tunnel/h2"
)

// Errors of Open.
var (
	// ErrPoolFull: too many wait for the same peer already.
	ErrPoolFull = reason.Wrap(reason.LimitStreams, errors.New("too many streams wait for a tunnel"))
	// ErrOpenTimeout: no stream could be opened before the deadline.
	ErrOpenTimeout = reason.Wrap(reason.ConnectTimeout, errors.New("no tunnel in time"))
	// ErrDraining: the pool opens nothing new.
	ErrDraining = reason.Wrap(reason.Draining, errors.New("tunnels are draining"))
)

// Waiter is who wants a stream. Either Opened or Failed is called, once, maybe
// before Open returns; after Opened, the Sink's methods.
type Waiter interface {
	h2.Sink
	// Opened says that the CONNECT is on its way; Response is next.
	Opened(s *h2.Stream, via Tunnel)
	// Failed says that there will be no stream; reason.Of(err) says why, and
	// whether the endpoint is to blame.
	Failed(err error)
}

// Tunnel is the connection that a stream runs in.
type Tunnel struct{ conn *conn }

// Peer is what the handshake proved. It is read-only and stays valid.
func (t Tunnel) Peer() *Peer { return &t.conn.peer }

// Err says why the tunnel is lost, when a stream was reset because it is; nil
// while it stands.
func (t Tunnel) Err() error { return t.conn.err }

// Pending is an Open that waits. Its zero value waits for nothing.
type Pending struct {
	waiter   Waiter
	block    *h2.Block
	deadline time.Duration
}

// Cancel forgets the waiter: neither Opened nor Failed will be called.
func (p *Pending) Cancel() {
	if p != nil {
		p.waiter, p.block = nil, nil
	}
}

// Pool opens streams from one loop, sharing connections by Key. It belongs to
// its loop, save Close.
type Pool struct {
	carrier *Carrier
	options PoolOptions
	peers   map[Key]*peer
	drained bool

	dialing sync.WaitGroup
	ctx     context.Context
	cancel  context.CancelFunc
	stats   PoolStats
}

// PoolStats are a pool's figures.
type PoolStats struct {
	Keys, Connections, Streams, Pending, Dialing int
	Dials, DialErrors                            uint64
}

// NewPool makes a pool on c's loop. Close it after the loop has stopped, or
// before.
func NewPool(c *Carrier, o PoolOptions) *Pool {
	o.setDefaults()
	p := &Pool{carrier: c, options: o, peers: make(map[Key]*peer)}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	c.loop.Every(lookAround/4, p.expire)
	return p
}

// Open asks for a stream to key, with the CONNECT that block holds. Concurrent
// first opens share one handshake. When nothing had to be waited for, w has
// been called and the result is nil; otherwise it can be cancelled.
func (p *Pool) Open(key Key, block *h2.Block, timeout time.Duration, w Waiter) *Pending {
	if p.drained {
		w.Failed(ErrDraining)
		return nil
	}
	t := p.peers[key]
	if t == nil {
		t = &peer{pool: p, key: key}
		p.peers[key] = t
	}
	if len(t.pending) == 0 && t.open(block, w) {
		t.grow()
		return nil
	}
	if err := t.backoff.refuses(p.carrier.loop.Now()); err != nil && len(t.conns) == 0 {
		w.Failed(err)
		return nil
	}
	if len(t.pending) >= p.options.MaxPending {
		w.Failed(ErrPoolFull)
		return nil
	}
	q := &Pending{waiter: w, block: block, deadline: p.carrier.loop.Now() + timeout}
	t.pending = append(t.pending, q)
	t.grow()
	return q
}

// Retire drains the connections whose peers match: their streams go on, new
// ones take new connections. For leaves that were replaced, and trust that was
// withdrawn; with either, a handshake that failed may succeed at once.
func (p *Pool) Retire(match func(*Key, *Peer) bool) {
	for _, t := range p.peers {
		t.backoff = backoff{}
		for _, c := range t.members() {
			if match(&t.key, &c.peer) {
				c.drain()
			}
		}
	}
}

// Drain opens nothing new and lets what is open finish.
func (p *Pool) Drain() {
	p.drained = true
	for _, t := range p.peers {
		t.fail(ErrDraining)
		for _, c := range t.members() {
			c.drain()
		}
	}
}

// Stats returns the figures of now.
func (p *Pool) Stats() PoolStats {
	s := p.stats
	for _, t := range p.peers {
		if !t.idle() {
			s.Keys++
		}
		s.Connections += len(t.conns)
		s.Pending += len(t.pending)
		s.Dialing += t.dialing
		for _, c := range t.conns {
			s.Streams += c.h2.Streams()
		}
	}
	return s
}

// Close gives up dials under way and waits for their goroutines. The
// connections belong to the loop and end with it. Not to be called on the loop.
func (p *Pool) Close() {
	p.cancel()
	p.dialing.Wait()
}

// expire fails those that waited too long.
func (p *Pool) expire() {
	now := p.carrier.loop.Now()
	for _, t := range p.peers {
		t.expire(now)
	}
}

// dial connects on a goroutine and brings the result to the loop.
func (p *Pool) dial(t *peer) {
	t.dialing++
	p.stats.Dials++
	p.dialing.Go(func() {
		s, err := p.options.connect(p.ctx, t.key, hbone)
		posted := p.carrier.loop.Post(func() {
			t.dialing--
			if err == nil {
				err = t.adopt(s)
			}
			if err != nil {
				p.stats.DialErrors++
			}
			t.dialled(err)
		})
		if errors.Is(posted, loop.ErrClosed) && s != nil {
			_ = unix.Close(s.fd)
		}
	})
}
