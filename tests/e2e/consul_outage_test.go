// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"testing"
	"time"

	consulapi "github.com/hashicorp/consul/api"

	"github.com/meshproxy/meshproxy/nodeproxy/admin/api"
	"github.com/meshproxy/meshproxy/tests/meshnode"
	"github.com/meshproxy/meshproxy/tests/peers/consul"
	"github.com/meshproxy/meshproxy/tests/supervisor"
	"github.com/meshproxy/meshproxy/tests/testnet"
)

// outage is how long Consul is away in TestConsulOutage; E2E_OUTAGE=10m makes it
// as long as one that people remember.
func outage(t *testing.T) time.Duration {
	t.Helper()
	text := os.Getenv("E2E_OUTAGE")
	if text == "" {
		return 20 * time.Second
	}
	d, err := time.ParseDuration(text)
	must(t, err)
	return d
}

// TestConsulOutage: all that the nodes know and are comes from Consul, which is
// gone for a while, and a node restarts in the middle. No connection is lost,
// neither of those that are attempted nor of those that are open.
func TestConsulOutage(t *testing.T) {
	t.Parallel()
	l := newConsulServices(t)
	a, b := l.net.Host("a"), l.net.Host("b")
	systemd, err := supervisor.New(a.Dir())
	must(t, err)
	t.Cleanup(systemd.Close)
	start := func() *meshnode.Node {
		t.Helper()
		c, err := systemd.Command()
		must(t, err)
		defer c.Close()
		o := l.ofServices("a")
		o.Program, o.Env, o.Files, o.ProxyTimeout = c.Before, c.Env, c.Files, restartTime
		o.Extra += "drainTimeout: 20s\n" + awaited
		return l.startAs("a", o)
	}
	for _, service := range []string{"client", "far"} {
		l.server.Write(l, &consulapi.ServiceResolverConfigEntry{Kind: consulapi.ServiceResolver, Name: service, ConnectTimeout: restartTime})
	}
	node := start()
	l.startServicesOn("b")
	l.serve(a, "client", "-name", "client", "-tcp", "10.77.0.1:7000")
	l.reaches(a, "client", "127.0.0.1:9191", "far")
	l.reaches(b, "far", "client.virtual.consul:7000", "client")
	fresh := []string{"-fresh", "-rate", "50", "-workers", "4", "-timeout", restartTime.String()}
	load := &load{lab: l.lab, calls: map[string]*testnet.Process{
		"new out": l.call(a, "client", append(fresh, "-tcp", "127.0.0.1:9191")...),
		"new in":  l.call(b, "far", append(fresh, "-tcp", "client.virtual.consul:7000")...),
	}}
	since := load.marks()

	l.fresh("a")
	began, lasts := time.Now(), outage(t)
	l.stopConsul()
	load.goOn()
	gone := l.stale("a", "cannot be reached", began)
	l.waitUntil(began.Add(lasts / 3))
	// Its open connection has something to say until after the process is told
	// to end.
	used := l.call(a, "client", "-tcp", "127.0.0.1:9191", "-rate", "30", "-count", "60")
	must(t, node.Signal(syscall.SIGTERM))
	if err := node.Wait(l.ctx()); err != nil {
		t.Fatalf("the process ended with %v", err)
	}
	start()
	must(t, used.Wait(l.ctx()))
	if sum := sumOf(used, 0); sum.Requests != 60 || sum.Errors > 0 {
		t.Errorf("of the calls on an open connection %d succeeded and %d failed with %q", sum.Requests, sum.Errors, sum.Error)
	}
	load.goOn()
	load.calls["open from the restart on"] = l.call(a, "client", "-tcp", "127.0.0.1:9191", "-rate", "20")
	if again := l.stale("a", "cannot be reached", began); !again.Equal(gone) {
		t.Errorf("stale since %v, after a restart since %v", gone, again)
	}
	l.waitUntil(began.Add(lasts))

	// The agent first: the server would call a node critical that is not there.
	must(t, l.agents["a"].Launch())
	must(t, l.agents["b"].Restart(l.longer(consulStarts)))
	must(t, l.agents["a"].Await(l.longer(consulStarts)))
	t.Logf("Consul was away for %v", time.Since(began).Round(time.Second))
	l.fresh("a")
	l.agents["b"].Deregister(t, "near")
	l.eventually("a change after it", func() error {
		if e := l.endpoints("a", "near"); len(e) != 0 {
			return fmt.Errorf("endpoints %+v", e)
		}
		return nil
	})
	before := l.serials("a")
	l.server.RotateCA(t)
	l.rotated(before, 2)
	load.goOn()
	load.unharmed(since, restartTime)
}

// consulStarts bounds what Consul takes to start and to find a leader.
const consulStarts = 3 * time.Minute

func (l *lab) waitUntil(at time.Time) {
	timer := time.NewTimer(time.Until(at))
	defer timer.Stop()
	<-timer.C
}

// stale waits until the node says that what it knows from Consul is of before, and
// why. It returns since when, which is between the end of Consul and now.
func (l *consulLab) stale(host, why string, ended time.Time) (since time.Time) {
	l.Helper()
	l.eventually(host+" to miss Consul", func() error {
		src, err := l.source(host)
		if err != nil {
			return err
		}
		if !src.Stale || !containsAll(src.Error, []string{why}) {
			return fmt.Errorf("source %+v, want one that is stale because of %q", src, why)
		}
		since = src.Since
		return nil
	})
	if now := time.Now(); since.Before(ended) || since.After(now) {
		l.Errorf("%s is stale since %v; Consul ended at %v, and now it is %v", host, since, ended, now)
	}
	l.Logf("%s is stale since %v after Consul's end began", host, since.Sub(ended).Round(time.Millisecond))
	return since
}

// fresh waits until the node follows Consul again, for services and identities.
func (l *consulLab) fresh(host string) {
	l.Helper()
	l.eventually(host+" to follow Consul again", func() error {
		src, err := l.source(host)
		if err == nil && (src.Stale || src.Error != "") {
			err = fmt.Errorf("source %+v", src)
		}
		return err
	})
	l.identities(host, func(ca api.CA) error {
		if len(ca.Problems) > 0 {
			return errors.New("want no problem")
		}
		return nil
	})
}

func (l *consulLab) source(host string) (api.Source, error) {
	s, err := l.nodes[host].Admin.Status(l.ctx())
	if err != nil {
		return api.Source{}, err
	}
	for _, src := range s.Sources {
		if src.Name == "consul" {
			return src, nil
		}
	}
	return api.Source{}, fmt.Errorf("no source consul among %+v", s.Sources)
}

// TestConsulLeaderLost: the leader of three servers ends, and then one more, so
// that nobody leads. Traffic goes on; the CA rotates under the second leader;
// status says since when nobody leads.
func TestConsulLeaderLost(t *testing.T) {
	t.Parallel()
	l := newConsulCluster(t)
	l.services()
	l.startServices()
	a := l.net.Host("a")
	l.reaches(a, "client", "127.0.0.1:9191", "far")
	load := &load{lab: l.lab, calls: map[string]*testnet.Process{
		"new":  l.call(a, "client", "-tcp", "127.0.0.1:9191", "-fresh", "-rate", "50", "-timeout", restartTime.String()),
		"used": l.call(a, "client", "-tcp", "127.0.0.1:9191", "-rate", "20"),
	}}
	since := load.marks()
	must(t, l.cluster.Lead(l.longer(consulStarts), l.agents["c"]))
	must(t, l.agents["c"].Kill())
	leader, err := l.cluster.Leader(l.longer(consulStarts))
	must(t, err)
	load.goOn()
	l.fresh("a")
	before := l.serials("a")
	leader.RotateCA(t)
	l.rotated(before, 2)

	l.fresh("a")
	killed := time.Now()
	must(t, l.agents["b"].Kill())
	l.stale("a", "no leader", killed)
	load.goOn()
	for _, host := range []string{"b", "c"} {
		// Neither has a leader before the other one is there.
		must(t, l.agents[host].Launch())
	}
	leader, err = l.cluster.Leader(l.longer(consulStarts))
	must(t, err)
	l.fresh("a")
	before = l.serials("a")
	leader.RotateCA(t)
	l.rotated(before, 3)
	l.agents["b"].Intend(t, "client", "far", consulapi.IntentionActionAllow)
	load.goOn()
	load.unharmed(since, patientWait)
}

// newConsulCluster is a lab of three hosts, each with a server of one datacenter.
func newConsulCluster(t *testing.T) *consulLab {
	t.Helper()
	names := []string{"a", "b", "c"}
	l := &consulLab{lab: newLab(t, "{}", names...), agents: make(map[string]*consul.Server)}
	hosts := make([]*testnet.Host, len(names))
	for i, name := range names {
		hosts[i] = l.net.Host(name)
	}
	l.cluster = consul.StartCluster(t, consul.Options{}, names, hosts)
	for i, name := range names {
		l.agents[name] = l.cluster[i]
	}
	l.server = l.agents["a"]
	l.learnTrustDomain()
	return l
}
