// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/meshproxy/meshproxy/nodeproxy/identity"
	"github.com/meshproxy/meshproxy/nodeproxy/l4"
	"github.com/meshproxy/meshproxy/nodeproxy/loop"
	"github.com/meshproxy/meshproxy/nodeproxy/telemetry/reason"
	"github.com/meshproxy/meshproxy/nodeproxy/tunnel"
)

// tunnelSockets: 512 KiB cost no throughput on a LAN and bound what a bulk
// stream can put ahead of a small one.
var tunnelSockets = tunnel.Sockets{SendBuffer: 512 << 10, ReceiveBuffer: 512 << 10}

const (
	// maxTunnels is how many connections the streams of one source to one
	// endpoint may share: 12,800 of them to a ztunnel, which takes 200 on each.
	maxTunnels = 64
	// heartbeatInterval is how often a loop proves that it turns.
	heartbeatInterval = 250 * time.Millisecond
	// stuck is how long a loop may be silent before the node counts as hung.
	stuck = 2 * time.Second
	// bufferedPerWorkload bounds what waits for a workload's slow readers.
	bufferedPerWorkload = 256 << 20
)

// worker is one loop with what it hosts.
type worker struct {
	node    *Node
	loop    *loop.Loop
	carrier *tunnel.Carrier
	pool    *tunnel.Pool
	lines   *tunnel.Lines
	relays  *l4.Relays
	router  *router
	gate    *gate
	turned  atomic.Int64 // Unix nanoseconds of the last tick
}

// loopCount leaves half of the processors to the workloads. More loops cost a
// machine that is busy anyway 12 to 15 %; fewer would bound a large one.
func loopCount() int { return max(1, runtime.GOMAXPROCS(0)/2) }

// leaveProcessors makes sure that the loops, which hold their Ps, leave some to
// everything else.
func leaveProcessors(loops int) {
	if runtime.GOMAXPROCS(0) <= loops {
		runtime.GOMAXPROCS(loops + 1)
	}
}

func (n *Node) startLoops(context.Context) error {
	// Those of lines are apart: there are many more of them.
	handshakes, lineHandshakes := tunnel.NewSemaphore(128), tunnel.NewSemaphore(256)
	lineSessions := newLineIdentity(n.provider)
	count := loopCount()
	leaveProcessors(count)
	for i := range count {
		w := &worker{node: n}
		var err error
		w.loop, err = loop.New(loop.Options{
			Name: fmt.Sprintf("loop-%d", i), Logger: n.log,
			Tick: w.tick, TickInterval: heartbeatInterval, HoldProcessor: true,
		})
		if err != nil {
			return err
		}
		shard := n.metrics.Shard()
		w.carrier = tunnel.NewCarrier(w.loop, tunnel.Options{
			Logger: n.log, Lifetime: tunnel.Lifetime{CloseExpired: true, Grace: n.settingsFile().Identity.ExpiredGrace},
		})
		w.pool = tunnel.NewPool(w.carrier, tunnel.PoolOptions{
			Identity: clientIdentity{n.provider}, Control: n.capture.Control, Handshake: shakeHands,
			Handshakes: handshakes, Sockets: tunnelSockets, Observe: n.observeHandshake, Logger: n.log,
			MaxConns: maxTunnels,
		})
		w.lines = tunnel.NewLines(w.carrier, tunnel.PoolOptions{
			Identity: lineSessions, Control: n.capture.Control, Handshake: shakeHands,
			Handshakes: lineHandshakes, Sockets: tunnelSockets, Observe: n.observeHandshake, Logger: n.log,
		})
		w.relays = l4.New(w.carrier, w.pool, l4.Options{Logger: n.log, Admit: n.pressure.admit, Lines: w.lines, Hops: hops{n}})
		w.router, w.gate = newRouter(n, shard), &gate{node: n, shard: shard}
		w.turned.Store(time.Now().UnixNano())
		n.loops = append(n.loops, w)
	}
	for _, w := range n.loops {
		n.tasks.Go(w.loop.Run)
	}
	return nil
}

// tick runs on the loop. The heartbeat is everybody's: a loop that hangs takes
// its connections with it, so capture must see the node as hung.
func (w *worker) tick() {
	w.turned.Store(time.Now().UnixNano())
	if w.node.ready.Load() && !w.node.draining.Load() && w.node.stuckLoop() == nil {
		if err := w.node.capture.Heartbeat(); err != nil {
			w.node.log.Error("write heartbeat", "error", err)
		}
	}
}

// stuckLoop returns an error that names a loop that does not turn.
func (n *Node) stuckLoop() error {
	now := time.Now().UnixNano()
	for _, w := range n.loops {
		if silent := time.Duration(now - w.turned.Load()); silent > stuck {
			return fmt.Errorf("%s has not turned for %v", w.loop.Name(), silent.Round(time.Millisecond))
		}
	}
	return nil
}

// do runs f on the loop and waits for it.
func (w *worker) do(f func()) error {
	done := make(chan struct{})
	if err := w.loop.Post(func() { defer close(done); f() }); err != nil {
		return err
	}
	select {
	case <-done:
		return nil
	case <-w.loop.Done():
		return loop.ErrClosed
	}
}

// listen accepts from the listeners of a namespace.
func (w *worker) listen(ns *namespace) error {
	var failed error
	err := w.do(func() {
		for _, ln := range ns.listeners.outbound {
			failed = errors.Join(failed, w.listenOn(ns, ln, w.router))
		}
		if ln := ns.listeners.plain; ln != nil {
			failed = errors.Join(failed, w.listenOn(ns, ln, plainRouter{w.gate}))
		}
	})
	return errors.Join(err, failed)
}

func (w *worker) listenOn(ns *namespace, ln *net.TCPListener, r l4.Router) error {
	return withFD(ln, func(fd int) error {
		l, err := w.relays.Listen(fd, ns.cookie, r)
		if err != nil {
			return err
		}
		ns.accepting = append(ns.accepting, func() { _ = w.loop.Post(l.Close) })
		return nil
	})
}

func (w *worker) seat() tunnel.Seat {
	return tunnel.Seat{Carrier: w.carrier, Acceptor: w.relays.Gated(w.gate)}
}

// revalidate closes what the policy in force does not allow any more.
func (w *worker) revalidate() {
	v := w.node.views.load()
	_ = w.loop.Post(func() {
		closed := w.relays.CloseIf(func(s l4.Session) error { return illegal(v, s) })
		if closed > 0 {
			w.node.log.Info("closed connections that policy does not allow any more", "loop", w.loop.Name(), "connections", closed)
		}
	})
}

func (w *worker) open() (open int) {
	_ = w.do(func() { open = w.relays.Open() })
	return open
}

// readFrom asks on the loop, and waits no longer than a scrape may take; it is
// the zero value then.
func readFrom[T any](w *worker, ask func() T) (value T) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	answer := make(chan T, 1)
	if w.loop.Post(func() { answer <- ask() }) != nil {
		return value
	}
	select {
	case value = <-answer:
	case <-ctx.Done():
	case <-w.loop.Done():
	}
	return value
}

func (w *worker) poolStats() tunnel.PoolStats { return readFrom(w, w.pool.Stats) }

func (w *worker) remotes() map[tunnel.Remote]tunnel.Tunnels {
	return readFrom(w, func() map[tunnel.Remote]tunnel.Tunnels {
		sum := make(map[tunnel.Remote]tunnel.Tunnels)
		w.carrier.Remotes(sum)
		return sum
	})
}

// drain opens no new tunnels; what is open goes on.
func (w *worker) drain() { _ = w.loop.Post(func() { w.pool.Drain(); w.lines.Drain() }) }

func (w *worker) close() {
	w.pool.Close()
	w.lines.Close()
	w.loop.Close()
	<-w.loop.Done()
}

// clientIdentity makes the TLS configurations of tunnels to other nodes.
type clientIdentity struct{ provider identity.Provider }

// ClientConfig implements tunnel.ClientIdentity.
func (c clientIdentity) ClientConfig(_ context.Context, key *tunnel.Key) (*tls.Config, error) {
	config := identity.ClientConfig(c.provider, key.Source, key.Destinations.All(), key.ServerName, identity.Options{})
	explainVerification(config)
	return config, nil
}

// shakeHands is a handshake whose errors say what package identity knows.
func shakeHands(ctx context.Context, c *tls.Conn) error {
	_, err := identity.Handshake(ctx, c)
	return identityReason(err)
}

// explainVerification gives the errors of verification the reasons that metrics
// and logs know.
func explainVerification(config *tls.Config) {
	verify := config.VerifyConnection
	config.VerifyConnection = func(state tls.ConnectionState) error {
		return identityReason(verify(state))
	}
}

func identityReason(err error) error {
	if err == nil {
		return nil
	}
	for _, known := range []struct {
		err    error
		reason reason.Reason
	}{
		{identity.ErrIdentityMismatch, reason.IdentityMismatch},
		{identity.ErrUnknownServerName, reason.IdentityMismatch},
		{identity.ErrNoServerName, reason.IdentityMismatch},
		{identity.ErrExpired, reason.TLSExpired},
		{identity.ErrNotYetValid, reason.TLSExpired},
		{identity.ErrUntrusted, reason.PeerUntrusted},
		{identity.ErrNoCertificate, reason.PeerMissing},
		{identity.ErrNoLeaf, reason.NoLeaf},
	} {
		if errors.Is(err, known.err) {
			return reason.Wrap(known.reason, err)
		}
	}
	return err
}

func configFunc(c *tls.Config) func() *tls.Config { return func() *tls.Config { return c } }
