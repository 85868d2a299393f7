// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"testing"
	"time"

	"github.com/meshproxy/meshproxy/nodeproxy/identity/embedded"
	"github.com/meshproxy/meshproxy/tests/meshnode"
	"github.com/meshproxy/meshproxy/tests/testnet"
)

// TestRotation: the CA gets a new root while calls are made, on connections of
// their own and on one that stays. None of them fails, and tunnels of the time
// after have leaves of the new root.
func TestRotation(t *testing.T) {
	t.Parallel() // it waits most of the time
	l := twoFaultNodes(t, meshnode.Options{})
	a := l.net.Host("a")
	fresh := l.call(a, "client", "-tcp", "far:80", "-fresh", "-rate", "100")
	stays := l.call(a, "client", "-tcp", "far:80", "-rate", "50")
	for round := range 3 {
		// For as long as one of them may be behind the other in hearing of it.
		root, err := embedded.Rotate(l.caDir, embedded.RotateOptions{Propagation: 10 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		l.eventually(fmt.Sprintf("rotation %d: both nodes sign with the new root", round), func() error {
			for _, host := range []string{"a", "b"} {
				ca, err := l.nodes[host].Admin.CA(l.ctx())
				if err != nil {
					return err
				}
				signing := false
				for _, r := range ca.Roots {
					signing = signing || r.Fingerprint == root.Fingerprint && r.State == "signing"
				}
				if !signing {
					return fmt.Errorf("roots of %s: %+v", host, ca.Roots)
				}
			}
			return nil
		})
		// A tunnel that is made now has new leaves at both ends.
		from := map[int]string{0: "other", 1: "near"}[round]
		if from != "" {
			if d := l.dial(a, from, "-address", "far:80", "-send", "hello"); !d.OK {
				t.Errorf("rotation %d: %s: %s at %s", round, from, d.Error, d.Stage)
			}
		}
		for _, p := range []*testnet.Process{fresh, stays} {
			l.awaitCall(p, mark(p)+1, "a call that succeeds", succeeded)
		}
	}
	l.undisturbed(fresh, 0)
	l.undisturbed(stays, 0)
}

// TestLeavesExpire: leaves that live for seconds are replaced under load. A tunnel whose leaf is over makes room for another
// without disturbing calls on connections of their own; a connection that stays
// lives on in it for the grace that policy gives.
func TestLeavesExpire(t *testing.T) {
	t.Parallel()
	l := newLab(t, faultMesh, "a", "b")
	a, b := l.net.Host("a"), l.net.Host("b")
	l.shortLeaves()
	l.start("a", "")
	l.start("b", "")
	l.serve(b, "far", "-name", "far", "-tcp", "10.77.0.2:8080")
	fresh := l.call(a, "client", "-tcp", "far:80", "-fresh", "-rate", "50")
	stays := l.call(a, "client", "-tcp", "far:80", "-rate", "20")
	for _, p := range []*testnet.Process{fresh, stays} {
		l.awaitCall(p, 0, "a call that succeeds", succeeded)
	}
	// The leaf that is in use ends before, and another one after.
	first := time.Now().Add(shortLeaf)
	if err := testnet.Until(l.longer(2*time.Minute), func() error {
		ca, err := l.nodes["a"].Admin.CA(l.ctx())
		if err != nil {
			return err
		}
		for _, leaf := range ca.Leaves {
			if leaf.Workload == "client" && leaf.NotAfter.After(first.Add(time.Second)) && time.Now().After(first) {
				return nil
			}
		}
		return fmt.Errorf("leaves are %+v", ca.Leaves)
	}); err != nil {
		t.Fatal(err)
	}
	for _, p := range []*testnet.Process{fresh, stays} {
		l.awaitCall(p, mark(p)+1, "a call that succeeds", succeeded)
		l.undisturbed(p, 0)
	}
}
