// SPDX-License-Identifier: Apache-2.0

package balance

import (
	"testing"

	"github.com/meshproxy/meshproxy/discovery/mesh"
)

func TestPriority(t *testing.T) {
	with := func(e *mesh.Endpoint, priority uint32, health mesh.Health) *mesh.Endpoint {
		e.Priority, e.Health = priority, health
		return e
	}
	first := with(endpointAt("far", 1), 0, mesh.HealthHealthy)
	second := with(endpointAt("node", 2), 1, mesh.HealthHealthy)
	third := with(endpointAt("zone", 3), 7, mesh.HealthHealthy)
	s, b := serviceOf("", second, third, first), seeded()

	if p := mustPick(t, b, s); p.Endpoint != first {
		t.Errorf("chose %v; the first priority goes before what is nearer", p.Endpoint.Address)
	}
	if p := mustPick(t, b, s, first); p.Endpoint != second || p.Panic {
		t.Errorf("chose %v after a failure of the first", p.Endpoint.Address)
	}
	fail(b, s, first, DefaultFailures)
	if p := mustPick(t, b, s); p.Endpoint != second || p.Panic {
		t.Errorf("chose %v while the first is ejected", p.Endpoint.Address)
	}
	if p := mustPick(t, b, s, first, second); p.Endpoint != third {
		t.Errorf("chose %v when all others were tried", p.Endpoint.Address)
	}

	draining := with(endpointAt("node", 4), 0, mesh.HealthDraining)
	unhealthy := with(endpointAt("node", 5), 0, mesh.HealthUnhealthy)
	if p := mustPick(t, seeded(), serviceOf("", draining, unhealthy, third)); p.Endpoint != third {
		t.Errorf("chose %v; a draining endpoint is for when there is no other of any priority", p.Endpoint.Address)
	}
	if p := mustPick(t, seeded(), serviceOf("", draining, unhealthy, third), third); p.Endpoint != draining {
		t.Errorf("chose %v; only the draining one is left", p.Endpoint.Address)
	}
}
