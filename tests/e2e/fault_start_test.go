// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"math/rand/v2"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/meshproxy/meshproxy/tests/meshnode"
)

// TestKilledWhileStarting: a node that is killed at any moment of its start
// leaves nothing that keeps the next one from starting, and never a hole.
func TestKilledWhileStarting(t *testing.T) {
	l := newLab(t, faultMesh, "a", "b")
	a, b := l.net.Host("a"), l.net.Host("b")
	l.start("b", "")
	l.serve(b, "far", "-name", "far", "-tcp", "10.77.0.2:8080")
	l.serve(b, "plain", "-name", "plain", "-tcp", "10.77.0.2:7000")
	nobody := l.call(a, "nobody", "-tcp", "10.77.0.2:7000", "-fresh", "-rate", "50")

	const rounds = 10
	captured := false
	for i := range rounds {
		p := l.run(meshnode.Options{Host: a, MeshFile: l.meshFile, CADir: l.caDir})
		// Anywhere between its first instruction and well after it is ready.
		after := time.Duration(rand.Int64N(int64(500 * time.Millisecond)))
		select {
		case <-time.After(after):
		case <-p.Done():
			t.Fatalf("start %d ended by itself: %s", i, p.Stderr().Tail(1000))
		}
		if err := p.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = p.Wait(l.ctx())
		// Once the capture was in force it stays so.
		d := l.dial(a, "client", "-address", "10.77.0.2:8080", "-send", "hello")
		if refused := !d.OK && d.Error == "ECONNREFUSED"; captured && !refused {
			t.Errorf("after kill %d at %v the client got through: %+v", i, after, d)
		} else {
			captured = captured || refused && containsAll(p.Stderr().String(), []string{"msg=ready"})
		}
	}
	l.start("a", "")
	if d := l.dial(a, "client", "-address", "far:80", "-send", "hello"); !d.OK {
		t.Errorf("after the last start: %s at %s", d.Error, d.Stage)
	}
	l.noProblem("a")
	l.undisturbed(nobody, 0)
}

// TestAbort: what systemd's watchdog sends ends the process by that signal. With
// status 2, as Go's runtime would have it, it would look like a configuration
// that is not valid, after which systemd doesn't try again.
func TestAbort(t *testing.T) {
	l := twoFaultNodes(t, meshnode.Options{})
	n := l.nodes["a"]
	if err := n.Signal(syscall.SIGABRT); err != nil {
		t.Fatal(err)
	}
	var ended *exec.ExitError
	if err := n.Wait(l.ctx()); !errors.As(err, &ended) {
		t.Fatalf("the process ended with %v", err)
	}
	if status := ended.Sys().(syscall.WaitStatus); !status.Signaled() || status.Signal() != syscall.SIGABRT || status.CoreDump() {
		t.Errorf("the process ended with %v", ended)
	}
}
