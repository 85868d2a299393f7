// SPDX-License-Identifier: Apache-2.0

package consul_test

import (
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/meshproxy/meshproxy/discovery"
	"github.com/meshproxy/meshproxy/discovery/consul"
	"github.com/meshproxy/meshproxy/discovery/mesh"
	peer "github.com/meshproxy/meshproxy/tests/peers/consul"
)

// churned are many more services than have blocking queries of their own.
const churned = 200

// TestChurn: the health of all services changes at once, again and again. Every
// change arrives, and the agent has no more connections than a source may have.
func TestChurn(t *testing.T) {
	t.Parallel()
	s := peer.Start(t, peer.Options{Dev: true, Node: "n1"})
	s.Register(t, &api.AgentServiceRegistration{ID: "web-1", Name: "web", Port: 8080})
	for i := range churned {
		register(t, s, "n2", "10.0.0.2", churnedName(i), 5000+i, nil)
	}
	o := optionsFor(t, s, "")
	o.Logger = slog.New(slog.DiscardHandler)
	f := start(t, o)
	f.untilWithin("all services", func(u discovery.Update) bool { return inState(u, mesh.HealthHealthy) == churned })

	most := 0
	for round, state := range []string{api.HealthCritical, api.HealthWarning, api.HealthCritical, api.HealthPassing} {
		want := mesh.HealthHealthy
		if state == api.HealthCritical {
			want = mesh.HealthUnhealthy
		}
		began := time.Now()
		setAll(t, s, state)
		written := time.Now()
		var took []time.Duration
		f.untilWithin(state, func(u discovery.Update) bool {
			most = max(most, connectionsTo(t, s.HTTPAddr.Port()))
			for n := inState(u, want); len(took) < n; {
				took = append(took, time.Since(began))
			}
			return len(took) == churned
		})
		t.Logf("round %d, all %s: written in %v; seen from the first write on: half %v, all %v",
			round, state, written.Sub(began).Round(time.Millisecond), took[churned/2].Round(time.Millisecond), took[churned-1].Round(time.Millisecond))
	}
	t.Logf("%d connections to the agent at most, of %d that may be", most, consul.MaxConnections)
	if most > consul.MaxConnections+1 { // one is the test's
		t.Errorf("%d connections to the agent", most)
	}
}

func churnedName(i int) string { return fmt.Sprintf("churned-%03d", i) }

// untilWithin is until with a view that has no error.
func (f *following) untilWithin(what string, ok func(discovery.Update) bool) {
	f.t.Helper()
	f.until(what, func(u discovery.Update, err error) bool { return err == nil && ok(u) })
}

// inState counts the churned services whose instance has that health.
func inState(u discovery.Update, h mesh.Health) (count int) {
	for _, s := range u.Services {
		if strings.HasPrefix(s.Name.Name, "churned-") && len(s.Endpoints) == 1 && s.Endpoints[0].Health == h {
			count++
		}
	}
	return count
}

// setAll changes all checks, as many at a time as a transaction takes.
func setAll(t *testing.T, s *peer.Server, state string) {
	t.Helper()
	var ops api.TxnOps
	for i := range churned {
		name := churnedName(i)
		ops = append(ops, &api.TxnOp{Check: &api.CheckTxnOp{Verb: api.CheckSet, Check: api.HealthCheck{
			Node: "n2", CheckID: name, Name: name, Status: state, ServiceID: name + "-sidecar-proxy",
		}}})
	}
	for some := range slices.Chunk(ops, 64) {
		if ok, resp, _, err := s.Client().Txn().Txn(some, nil); err != nil || !ok {
			t.Fatalf("change checks: %v, %+v", err, resp)
		}
	}
}

// connectionsTo counts the connections that are open to a port of loopback.
func connectionsTo(t *testing.T, port uint16) (count int) {
	t.Helper()
	text, err := os.ReadFile("/proc/self/net/tcp")
	if err != nil {
		t.Fatal(err)
	}
	const established = "01"
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) > 3 && f[3] == established && strings.HasSuffix(f[2], fmt.Sprintf(":%04X", port)) {
			count++
		}
	}
	return count
}
