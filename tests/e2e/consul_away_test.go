// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/meshproxy/meshproxy/nodeproxy/admin/api"
	"github.com/meshproxy/meshproxy/tests/meshnode"
	"github.com/meshproxy/meshproxy/tests/supervisor"
)

// TestConsulAwayOverUpgrade: while Consul is away, a new process takes over. It
// has the leaves of the one before, and nobody notices.
func TestConsulAwayOverUpgrade(t *testing.T) {
	t.Parallel()
	l := newIdentityLab(t)
	a := l.net.Host("a")
	l.install("a", programs.meshproxy)
	l.startNode("a", meshnode.Options{})
	l.startNode("b", meshnode.Options{})
	l.works(a, "client", "far:80")
	fresh := l.call(a, "client", "-tcp", "far:80", "-fresh", "-rate", "50")
	l.awaitCall(fresh, 0, "a call that succeeds", succeeded)
	before := l.serials("a")

	l.stopConsul()
	n := l.nodes["a"]
	l.install("a", programs.meshproxy)
	if out, err := n.Run(l.ctx(), "reload", "--config", n.ConfigPath()); err != nil {
		t.Fatalf("reload: %v: %s", err, out)
	}
	l.upgradedAway("a", 2)
	if after := l.serials("a"); after["client"] != before["client"] || before["client"] == "" {
		t.Errorf("leaves %v, before %v", after, before)
	}
	l.awaitCall(fresh, mark(fresh)+1, "a call that succeeds", succeeded)

	l.restartConsul()
	l.server.RotateCA(t)
	l.rotated(before, 2)
	l.awaitCall(fresh, mark(fresh)+1, "a call that succeeds", succeeded)
	l.undisturbed(fresh, 0)
}

// upgradedAway waits until a process of that generation serves; that Consul is
// away is a problem, so it isn't called ready.
func (l *consulLab) upgradedAway(host string, generation int) {
	l.Helper()
	l.eventually("the new process serves, and misses Consul", func() error {
		st, err := l.nodes[host].Admin.Status(l.ctx())
		if err != nil {
			return err
		}
		if st.Upgrades.Generation != generation || !strings.Contains(st.Identity.Error, "no roots from Consul's agent") {
			return errors.New("generation or problem is another one: " + st.Identity.Error)
		}
		return nil
	})
}

// TestConsulAwayOverRestart: a node restarts in the middle of an outage that
// lasts into the time when its leaves ought to be renewed. Leaves of a minute and
// a half stand for those of three days, and half a minute for hours.
func TestConsulAwayOverRestart(t *testing.T) {
	t.Parallel()
	l := newIdentityLab(t)
	l.server.ShortLeaves(t, 150*time.Second)
	a := l.net.Host("a")
	systemd, err := supervisor.New(a.Dir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(systemd.Close)
	start := func() {
		t.Helper()
		c, err := systemd.Command()
		must(t, err)
		defer c.Close()
		l.startNode("a", meshnode.Options{
			Program: c.Before, Env: c.Env, Files: c.Files, ProxyTimeout: restartTime, Extra: "drainTimeout: 1s\n" + awaited,
		})
	}
	start()
	l.startNode("b", meshnode.Options{})
	l.works(a, "client", "far:80")
	fresh := l.call(a, "client", "-tcp", "far:80", "-fresh", "-rate", "50", "-timeout", restartTime.String())
	l.awaitCall(fresh, 0, "a call that succeeds", succeeded)
	before := l.serials("a")
	l.eventually("two files with leaves are stored", func() error {
		if stored := systemd.Stored(); stored["leaves"] != 2 {
			return fmt.Errorf("%v", stored)
		}
		return nil
	})

	l.stopConsul()
	if err := l.nodes["a"].Stop(l.ctx()); err != nil {
		t.Fatal(err)
	}
	start()
	if after := l.serials("a"); after["client"] != before["client"] || before["client"] == "" {
		t.Errorf("leaves %v, before %v", after, before)
	}
	l.awaitCall(fresh, mark(fresh)+1, "a call that succeeds", succeeded)
	l.identities("a", func(ca api.CA) error {
		if !strings.Contains(strings.Join(ca.Problems, "\n"), "leaf of "+l.service("client")+" not renewed since 20") {
			return errors.New("want the leaf that ought to be renewed")
		}
		return nil
	})
	l.awaitCall(fresh, mark(fresh)+1, "a call that succeeds", succeeded)

	l.restartConsul()
	l.identities("a", func(ca api.CA) error {
		if len(ca.Problems) > 0 || len(ca.Leaves) != 1 || ca.Leaves[0].Serial == before["client"] {
			return errors.New("want another leaf, and no problem")
		}
		return nil
	})
	l.awaitCall(fresh, mark(fresh)+1, "a call that succeeds", succeeded)
	l.undisturbed(fresh, 0)
}
