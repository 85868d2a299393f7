// SPDX-License-Identifier: Apache-2.0

package l4

import (
	"errors"

	"github.com/meshproxy/meshproxy/nodeproxy/telemetry/reason"
)

var errOnlySockets = reason.Wrap(reason.Internal, errors.New("target of a stream from a tunnel must be a socket"))

// approach is the way of what a gate has admitted to its application: to one
// target after another, until one takes the connection.
type approach struct {
	set    *Relays
	route  Route
	target Target
	dial   *dial
	index  int32
	done   bool
}

// try dials the next target; who is on the way may be answered, or killed,
// before it returns.
func (a *approach) try(who dialer, failed error) {
	t, err := a.route.Session.Next(failed)
	if err == nil && t.Tunnel != nil {
		err = errOnlySockets
	}
	if err != nil {
		who.kill(err)
		return
	}
	a.target = t
	if d := a.set.dial(&a.target, who); !d.done {
		a.dial = d
	}
}

// leave ends the way of who: at the application, or nowhere.
func (a *approach) leave(who member) {
	a.done = true
	a.dial.cancel()
	strike(&a.set.setups, who)
}

func (a *approach) session() Session { return a.route.Session }
func (a *approach) place() *int32    { return &a.index }

func (a *approach) look(now uint32) {
	if d := a.dial; d != nil && d.overdue(now) {
		d.expire()
	}
}
