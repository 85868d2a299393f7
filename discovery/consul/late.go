// SPDX-License-Identifier: Apache-2.0

package consul

import (
	"errors"
	"time"

	"github.com/hashicorp/consul/api"
)

// The agent answers about targets from views of its own, to which its servers send
// what changed (agent/submatview). Where an agent or a server has little processor
// time, a view lags behind what a server answers to another question; and while it
// subscribes, at first and after a server has ended its stream, it is empty.

const (
	// changeWait is how long one question waits for a view that lags.
	changeWait = time.Second
	// lateTries is how often it is asked after that, with pauses from latePause to
	// maxPause. A change that still does not show is none of this target's: what
	// is left is for sweeps.
	lateTries = 6
	latePause = 200 * time.Millisecond
)

var errUnseen = errors.New("the Consul agent has not heard from its servers about some services")

// lateness is what is done about a view that lags.
type lateness struct {
	unseen bool // its last answer was that of an empty one
	asking bool // it will be asked again
	tries  int  // how often it was
}

// here reports whether the checks of a target are among those that are watched.
func (r *run) here(t *targetState) bool { return t.key.datacenter == r.home.datacenter }

// behind reports whether the last answer is older than what is known of.
func (t *targetState) behind() bool { return t.late.unseen || t.since > t.index }

// unseen reports whether an answer is none: that of a view without anything in it
// yet. No raft index is below 2 (setIndex in agent/http.go), and services without
// an instance have one. What is known of the target stays; where nothing is, and
// it goes on, it is as it seems.
func (r *run) unseen(t *targetState, instances []instance, meta *api.QueryMeta) bool {
	t.late.unseen = meta.QueryBackend == streaming && meta.LastIndex <= 1 && len(instances) == 0 &&
		(len(t.instances) > 0 || t.late.tries < lateTries)
	if t.late.unseen {
		t.late.tries++
		r.failed(t.query(), errUnseen)
		r.catchUp(t)
	}
	return t.late.unseen
}

// catchUp has a target asked for once more whose view lags. Its own query, if it
// has one, waits for what is to come.
func (r *run) catchUp(t *targetState) {
	switch l := &t.late; {
	case t.stop != nil || l.asking:
		return
	case !t.behind():
		l.tries = 0
		return
	case l.tries >= lateTries && !l.unseen:
		t.since, l.tries = 0, 0
		return
	}
	pause := min(latePause<<min(t.late.tries, lateTries), maxPause)
	if !t.late.unseen {
		t.late.tries++
	}
	t.late.asking = true
	r.afterwards(pause, func() {
		t.late.asking = false
		if r.targets[t.key] == t && t.stop == nil && t.behind() {
			r.fetches.target(t, 0)
		}
	})
}
