// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/meshproxy/meshproxy/sockmap"
	"github.com/meshproxy/meshproxy/tests/meshnode"
)

// TestHang: the proxy of a stops in the middle of everything. While its
// heartbeat is fresh, connections wait for it; then they are refused at once.
func TestHang(t *testing.T) {
	l := twoFaultNodes(t, meshnode.Options{Extra: throughProxy, ProxyTimeout: sockmap.DefaultHeartbeatTimeout})
	a, b := l.net.Host("a"), l.net.Host("b")
	l.serve(b, "plain", "-name", "plain", "-tcp", "10.77.0.2:7000")
	nobody := l.call(a, "nobody", "-tcp", "10.77.0.2:7000", "-fresh", "-rate", "100")
	open := l.call(a, "client", "-tcp", "far:80", "-rate", "20", "-timeout", patience.String())

	thaw := l.freeze("a")
	began := time.Now()
	l.eventually("connections are refused", func() error {
		d := l.dial(a, "client", "-address", "10.77.0.2:8080", "-send", "hello", "-timeout", "500ms")
		if d.OK || d.Error != "ECONNREFUSED" || d.Stage != "connect" {
			return fmt.Errorf("ok=%v %s at %s", d.OK, d.Error, d.Stage)
		}
		return nil
	})
	t.Logf("connections were refused after %v, the heartbeat is stale after %v", time.Since(began), sockmap.DefaultHeartbeatTimeout)
	l.fails(a, "client", "10.77.0.1:8080", refusedAtOnce)

	from := mark(open)
	thaw()
	l.works(a, "client", "far:80")
	l.refused("a", "outbound proxy_down")
	l.logged(l.nodes["a"], "proxy_down", "source=client")
	// What was open has waited and goes on.
	l.awaitCall(open, from, "a call that succeeds", succeeded)
	l.undisturbed(open, 0)
	l.undisturbed(nobody, 0)
}

// TestPeerHangs: the other node takes connections and does nothing with them.
func TestPeerHangs(t *testing.T) {
	l := twoFaultNodes(t, meshnode.Options{Extra: "defaults: {connectTimeout: 500ms}\n"})
	a := l.net.Host("a")
	l.works(a, "client", "far:80") // there is a tunnel
	thaw := l.freeze("b")
	l.fails(a, "client", "far:80", resetLater)
	l.refused("a", "outbound connect_timeout")
	// A workload without a tunnel shakes hands with nobody.
	l.fails(a, "other", "far:80", resetLater)
	l.works(a, "client", "near:80") // a service of the node itself
	thaw()
	for _, from := range []string{"client", "other"} {
		l.works(a, from, "far:80")
	}
}

// TestStartsWhereAnotherRuns: a second process must not take over the state of
// one that is there.
func TestStartsWhereAnotherRuns(t *testing.T) {
	l := twoFaultNodes(t, meshnode.Options{})
	out, err := l.nodes["a"].Run(l.ctx(), "run", "--config", l.nodes["a"].ConfigPath())
	if err == nil || errors.Is(err, l.ctx().Err()) {
		t.Fatalf("a second process runs: %v: %s", err, out)
	}
	if !containsAll(err.Error(), []string{"another process"}) {
		t.Errorf("it says %v", err)
	}
	l.works(l.net.Host("a"), "client", "far:80")
}
