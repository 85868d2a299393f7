// SPDX-License-Identifier: Apache-2.0

package l4

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/meshproxy/meshproxy/nodeproxy/loop"
	"github.com/meshproxy/meshproxy/nodeproxy/telemetry/reason"
)

var errConnectTimeout = reason.Wrap(reason.ConnectTimeout, errors.New("connect: no answer in time"))

// dialer waits for a dial.
type dialer interface {
	// dialled brings a connected socket, or the error. seen is the readiness that
	// its next handler will not be told of.
	dialled(reg loop.Registration, seen loop.Events, err error)
	kill(error)
}

// dial is a connect(2) under way.
type dial struct {
	set    *Relays
	target Target
	owner  dialer
	reg    loop.Registration
	due    uint32
	done   bool
}

// dial connects a socket to t. The owner may be answered before it returns; the
// result can be cancelled until then.
func (s *Relays) dial(t *Target, owner dialer) *dial {
	d := &dial{set: s, target: *t, owner: owner, due: s.after(s.timeout(t))}
	fd, err := s.socketFor(t)
	if err != nil {
		d.finish(0, fmt.Errorf("make socket: %w", err))
		return d
	}
	if err := s.room.allow(fd); err != nil {
		_ = unix.Close(fd)
		d.finish(0, err)
		return d
	}
	loop.SetNoDelay(fd)
	e := loop.Connect(fd, t.Addr)
	if e == unix.EINPROGRESS && t.Addr.Addr().IsLoopback() {
		// Over loopback the handshake has usually happened within the call.
		e = loop.Connect(fd, t.Addr)
	}
	if e != 0 && e != unix.EISCONN && e != unix.EINPROGRESS && e != unix.EALREADY {
		_ = unix.Close(fd)
		d.finish(0, fmt.Errorf("connect: %w", e))
		return d
	}
	if d.reg, err = s.loop.Register(fd, d); err != nil {
		_ = unix.Close(fd)
		d.finish(0, err)
		return d
	}
	if e == 0 || e == unix.EISCONN {
		d.finish(0, nil)
	}
	return d
}

// Ready implements loop.Handler.
func (d *dial) Ready(ev loop.Events) {
	if d.done || !ev.Has(loop.Writable|loop.Failed|loop.Hangup) {
		return
	}
	switch e := loop.Connect(d.reg.FD(), d.target.Addr); e {
	case 0, unix.EISCONN:
		d.finish(ev, nil)
	case unix.EALREADY, unix.EINPROGRESS:
	default:
		d.finish(0, fmt.Errorf("connect: %w", e))
	}
}

func (d *dial) finish(seen loop.Events, err error) {
	d.done = true
	if err != nil {
		d.reg.Close()
		err = reason.Wrap(reason.Of(err), err)
	}
	d.owner.dialled(d.reg, seen, err)
}

// Abort implements loop.Aborter.
func (d *dial) Abort(err error) {
	d.done = true
	d.owner.kill(ended(err))
}

// overdue reports whether the connect has taken too long.
func (d *dial) overdue(now uint32) bool { return d != nil && !d.done && d.due != 0 && now >= d.due }

// expire ends the connect as if the network had given up.
func (d *dial) expire() { d.finish(0, errConnectTimeout) }

// cancel ends the connect without an answer; on nil it does nothing.
func (d *dial) cancel() {
	if d != nil && !d.done {
		d.done = true
		d.reg.Close()
	}
}
