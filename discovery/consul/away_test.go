// SPDX-License-Identifier: Apache-2.0

package consul_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/hashicorp/consul/api"

	"github.com/meshproxy/meshproxy/discovery"
	"github.com/meshproxy/meshproxy/discovery/mesh"
	peer "github.com/meshproxy/meshproxy/tests/peers/consul"
)

// pair is a local service and one on another node.
func pair(t *testing.T, s *peer.Server) *following {
	t.Helper()
	register(t, s, "n2", "10.0.0.2", "db", 5432, nil)
	s.Register(t, &api.AgentServiceRegistration{ID: "web-1", Name: "web", Port: 8080})
	f := start(t, optionsFor(t, s, ""))
	f.until("web and db", hasBoth)
	return f
}

func hasBoth(u discovery.Update, err error) bool {
	db := service(u, "db")
	return err == nil && workload(u, "web") != nil && db != nil && len(db.Endpoints) == 1 && db.Endpoints[0].Health == mesh.HealthHealthy
}

// keeps fails the test unless the view is still there, and the failure is as
// expected.
func (f *following) keeps(what string) {
	f.t.Helper()
	// One that ends may say something else first.
	u := f.until("an error with "+what, func(_ discovery.Update, err error) bool {
		return err != nil && strings.Contains(err.Error(), what)
	})
	if !hasBoth(u, nil) {
		f.t.Errorf("what was known is gone: %s", describe(u))
	}
}

func (f *following) catchesUp(s *peer.Server) {
	f.t.Helper()
	f.until("the view to be fresh", hasBoth)
	f.stays(nil)
	register(f.t, s, "n3", "10.0.0.3", "db", 5432, nil)
	f.until("a change after it", func(u discovery.Update, err error) bool {
		return err == nil && len(remote(u, "db")) == 2
	})
}

func TestAgentAway(t *testing.T) {
	t.Parallel()
	s := peer.Start(t, peer.Options{Node: "n1"})
	f := pair(t, s)
	f.stays(func(u discovery.Update) bool { return hasBoth(u, nil) })
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	f.keeps("cannot be reached")
	if err := s.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.catchesUp(s)
}

// TestServersAway: the agent is there, and has nobody to ask.
func TestServersAway(t *testing.T) {
	t.Parallel()
	server := peer.Start(t, peer.Options{Node: "s1"})
	agent := peer.Start(t, peer.Options{Node: "n1", Join: server})
	f := pair(t, agent)
	if err := server.Stop(); err != nil {
		t.Fatal(err)
	}
	f.keeps("")
	if err := server.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.catchesUp(agent)
}

// TestLeaderLost: of three servers the leader ends, then another one, so that
// there is no leader any more; what is known stays in force, and what changes
// under each new leader is heard of.
func TestLeaderLost(t *testing.T) {
	t.Parallel()
	servers := peer.StartCluster(t, peer.Options{}, []string{"s1", "s2", "s3"}, nil)
	agent := peer.Start(t, peer.Options{Node: "n1", Join: servers[0]})
	f := pair(t, agent)
	f.stays(func(u discovery.Update) bool { return hasBoth(u, nil) })
	leader, err := servers.Leader(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := leader.Kill(); err != nil {
		t.Fatal(err)
	}
	second, err := servers.Leader(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	register(t, second, "n4", "10.0.0.4", "cache", 6379, nil)
	f.until("a service of the second leader's time", func(u discovery.Update, err error) bool {
		return err == nil && tunnels(u, "cache") == "0:10.0.0.4"
	})

	if err := second.Kill(); err != nil {
		t.Fatal(err)
	}
	f.keeps("")
	f.until("the absence of a leader", func(_ discovery.Update, err error) bool {
		return err != nil && strings.Contains(err.Error(), "no leader")
	})
	// What comes back has been away, and may know less than the node does.
	if err := leader.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := servers.Leader(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.catchesUp(agent)
}

// TestRestore: the servers' state is replaced by an older one, with older
// indexes. A question that was asked with a newer one at that very moment is
// answered when its time is up.
func TestRestore(t *testing.T) {
	t.Parallel()
	s := peer.Start(t, peer.Options{Node: "n1"})
	f := pair(t, s)
	before, _, err := s.Client().Snapshot().Save((&api.QueryOptions{}).WithContext(t.Context()))
	if err != nil {
		t.Fatal(err)
	}
	defer before.Close()
	for i := range 50 { // so that the index is far ahead
		s.Intend(t, "nobody", fmt.Sprintf("nothing-%d", i), api.IntentionActionAllow)
	}
	register(t, s, "n3", "10.0.0.3", "db", 5432, nil)
	f.until("the second instance", func(u discovery.Update, err error) bool { return len(remote(u, "db")) == 2 })
	if err := s.Client().Snapshot().Restore((&api.WriteOptions{}).WithContext(t.Context()), before); err != nil {
		t.Fatal(err)
	}
	f.until("what was before", hasBoth)
	f.catchesUp(s)
}

func TestAgentHangs(t *testing.T) {
	t.Parallel()
	s := peer.Start(t, peer.Options{Dev: true, Node: "n1"})
	f := pair(t, s)
	if err := s.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.keeps("does not answer")
	if err := s.Resume(); err != nil {
		t.Fatal(err)
	}
	f.catchesUp(s)
}

// TestAnotherCluster: the agent comes back with nothing in it, another trust
// domain, and indexes that begin anew.
func TestAnotherCluster(t *testing.T) {
	t.Parallel()
	s := peer.Start(t, peer.Options{Dev: true, Node: "n1"})
	f := pair(t, s)
	u, _ := f.now()
	before := workload(u, "web").Identity.TrustDomain()
	if err := s.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.until("an empty mesh", func(u discovery.Update, err error) bool {
		return err == nil && len(u.Workloads) == 0 && service(u, "db") == nil
	})
	register(t, s, "n2", "10.0.0.2", "db", 5432, nil)
	s.Register(t, &api.AgentServiceRegistration{ID: "web-1", Name: "web", Port: 8080})
	u = f.until("web and db again", hasBoth)
	if after := workload(u, "web").Identity.TrustDomain(); after == before {
		t.Errorf("trust domain %s stayed", after)
	}
	f.catchesUp(s)
}
