// SPDX-License-Identifier: Apache-2.0

package consul

import (
	"slices"
	"time"

	"github.com/meshproxy/meshproxy/discovery/mesh"
)

// uncheckedFor is how long an instance stays as it was while its checks have not
// run yet: the interval and the timeout of those that agents give to sidecars.
const uncheckedFor = 15 * time.Second

// believe keeps the status that instances had before their agent was restarted:
// it calls everything critical until the checks have run, each of them after up
// to its interval (agent.loadChecks). A node that was restarted as well knows it
// from its last snapshot when it hears of a target for the first time.
func (r *run) believe(t *targetState, instances []instance, first bool) {
	waiting := false
	for i := range instances {
		in := &instances[i]
		if !in.unchecked {
			continue
		}
		before := r.before(t, in, first)
		if before == statusCritical {
			continue
		}
		if t.doubtful.IsZero() {
			t.doubtful = time.Now()
		}
		if time.Since(t.doubtful) < uncheckedFor {
			in.status = before
			waiting = true
		}
	}
	switch {
	case !waiting:
		t.doubtful = time.Time{}
	case !t.again:
		t.again = true
		r.afterwards(uncheckedFor, func() {
			t.again = false
			r.fetches.target(t, sweepWait)
		})
	}
}

// before is the status of an instance until now; critical where it is new.
func (r *run) before(t *targetState, in *instance, first bool) string {
	if i := slices.IndexFunc(t.instances, func(b instance) bool { return b.node == in.node && b.id == in.id }); i >= 0 {
		return t.instances[i].status
	}
	if service := (mesh.Name{Namespace: t.key.namespace, Name: t.key.service}); first && r.last.healthy(service, in, r.locals[in.fronts]) {
		return statusPassing
	}
	return statusCritical
}
