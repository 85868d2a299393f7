// SPDX-License-Identifier: Apache-2.0

package tunnel

import (
	"context"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/meshproxy/meshproxy/nodeproxy/telemetry/reason"
)

// shakingPerKey bounds the handshakes of one key that are under way: a peer
// that takes connections and says nothing must not have the node's whole share.
const shakingPerKey = 32

// LineWaiter is who wants a line. Either method is called, once.
type LineWaiter interface {
	// Secured brings the line, which belongs to the waiter.
	Secured(*Line)
	// Failed says that there will be none; reason.Of(err) says why.
	Failed(err error)
}

// Lines opens lines from one loop, which it belongs to, save Close.
type Lines struct {
	carrier *Carrier
	options PoolOptions
	keys    map[Key]*dials
	drained bool

	dialing sync.WaitGroup
	ctx     context.Context
	cancel  context.CancelFunc
}

// dials are those of one key that are under way.
type dials struct {
	count int
	slots Semaphore
}

// PendingLine is an Open that waits. Its zero value waits for nothing.
type PendingLine struct {
	waiter LineWaiter
	stop   context.CancelFunc
}

// Cancel gives up the dial: the waiter will not be called.
func (p *PendingLine) Cancel() {
	if p != nil && p.waiter != nil {
		p.waiter = nil
		p.stop()
	}
}

// NewLines opens lines on c's loop. Of the options, MaxConns means nothing.
// Close it after the loop has stopped, or before.
func NewLines(c *Carrier, o PoolOptions) *Lines {
	o.setDefaults()
	l := &Lines{carrier: c, options: o, keys: make(map[Key]*dials)}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	return l
}

// Open asks for a line to key, within the timeout.
func (l *Lines) Open(key Key, timeout time.Duration, w LineWaiter) *PendingLine {
	d := l.keys[key]
	switch {
	case l.drained:
		w.Failed(ErrDraining)
		return nil
	case d == nil:
		d = &dials{slots: NewSemaphore(shakingPerKey)}
		l.keys[key] = d
	case d.count >= l.options.MaxPending:
		w.Failed(ErrPoolFull)
		return nil
	}
	d.count++
	ctx, stop := context.WithTimeout(l.ctx, timeout)
	p := &PendingLine{waiter: w, stop: stop}
	l.dialing.Go(func() {
		defer stop()
		s, err := l.dial(ctx, key, d.slots)
		posted := l.carrier.loop.Post(func() {
			if d.count--; d.count == 0 {
				delete(l.keys, key)
			}
			l.dialled(p, s, err)
		})
		if posted != nil && s != nil {
			_ = unix.Close(s.fd)
		}
	})
	return p
}

func (l *Lines) dial(ctx context.Context, key Key, slots Semaphore) (*secured, error) {
	if err := slots.acquire(ctx); err != nil {
		return nil, reason.Wrap(reason.LimitHandshakes, err)
	}
	defer slots.release()
	return l.options.connect(ctx, key, mtls)
}

// dialled brings the result to who waits for it.
func (l *Lines) dialled(p *PendingLine, s *secured, err error) {
	w := p.waiter
	p.waiter = nil
	if w == nil {
		if s != nil {
			_ = unix.Close(s.fd)
		}
		return
	}
	var line *Line
	if err == nil {
		line, err = l.carrier.adoptLine(s, nil, true)
	}
	if err != nil {
		w.Failed(err)
		return
	}
	w.Secured(line)
}

// Drain opens nothing new; what is open goes on.
func (l *Lines) Drain() { l.drained = true }

// Dialing is the number of dials under way.
func (l *Lines) Dialing() (n int) {
	for _, d := range l.keys {
		n += d.count
	}
	return n
}

// Close gives up dials under way and waits for their goroutines. The lines
// belong to the loop and end with it. Not to be called on the loop.
func (l *Lines) Close() {
	l.cancel()
	l.dialing.Wait()
}
