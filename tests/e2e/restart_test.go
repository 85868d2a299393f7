// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/meshproxy/meshproxy/tests/meshnode"
	"github.com/meshproxy/meshproxy/tests/supervisor"
	"github.com/meshproxy/meshproxy/tests/testnet"
	"github.com/meshproxy/meshproxy/tests/workload"
)

var errNotYet = errors.New("not yet")

// restartTime is how long a node may be away between two processes, and nobody gives
// up: a start takes many seconds on a machine that is busy with other things.
const restartTime = time.Minute

// awaited is the configuration of a node whose next process is waited for as long.
var awaited = fmt.Sprintf("restartTimeout: %v\n", restartTime)

// untiring is the configuration of those who wait for as long.
var untiring = fmt.Sprintf("defaults: {connectTimeout: %v}\n", restartTime)

// supervised starts a as a service manager does.
func (l *lab) supervised(s *supervisor.Supervisor, extra string) *meshnode.Node {
	l.Helper()
	c, err := s.Command()
	must(l.T, err)
	defer c.Close()
	return l.startAs("a", meshnode.Options{Program: c.Before, Env: c.Env, Files: c.Files, ProxyTimeout: restartTime, Extra: extra + awaited})
}

func superviseLab(t *testing.T, extra string) (*lab, *supervisor.Supervisor) {
	t.Helper()
	l := newLab(t, upgradeMesh, "a", "b")
	s, err := supervisor.New(l.net.Dir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	l.install("a", programs.meshproxy)
	l.supervised(s, extra)
	l.start("b", untiring)
	a, b := l.net.Host("a"), l.net.Host("b")
	l.serve(a, "near", "-name", "near", "-tcp", "10.77.0.1:8080")
	l.serve(b, "far", "-name", "far", "-tcp", "10.77.0.2:8080")
	return l, s
}

// TestRestartUnderSupervisor: connections that are attempted while there is no process wait for
// the next one; those that are open are drained.
func TestRestartUnderSupervisor(t *testing.T) {
	const extra = "drainTimeout: 20s\n"
	l, s := superviseLab(t, extra)
	a, b := l.net.Host("a"), l.net.Host("b")
	load := &load{lab: l, calls: map[string]*testnet.Process{
		"new out":    l.call(a, "client", "-tcp", "far:80", "-fresh", "-rate", "50", "-workers", "4", "-timeout", restartTime.String()),
		"new in":     l.call(b, "caller", "-tcp", "near:80", "-fresh", "-rate", "50", "-workers", "4", "-timeout", restartTime.String()),
		"new within": l.call(a, "client", "-tcp", "near:80", "-fresh", "-rate", "50", "-workers", "4", "-timeout", restartTime.String()),
	}}
	used := l.call(a, "client", "-tcp", "far:80", "-rate", "30", "-count", "60")
	since := load.marks()
	n := l.nodes["a"]
	if err := n.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := n.Wait(l.ctx()); err != nil {
		t.Fatalf("the process ended with %v", err)
	}
	if stored := s.Stored(); stored["node"] < 3 || stored["mesh"] < 1 || len(stored) < 3 {
		t.Errorf("stored are %v", stored)
	}
	l.supervised(s, extra)
	load.goOn()
	load.unharmed(since, patientWait)
	if err := used.Wait(l.ctx()); err != nil {
		t.Fatal(err)
	}
	if sum := sumOf(used, 0); sum.Requests != 60 || sum.Errors > 0 {
		t.Errorf("of the calls on an open connection %d succeeded and %d failed with %q", sum.Requests, sum.Errors, sum.Error)
	}
}

// TestCrashUnderSupervisor: what is attempted while a killed process is away
// waits for the next one.
func TestCrashUnderSupervisor(t *testing.T) {
	l, s := superviseLab(t, "")
	a := l.net.Host("a")
	virtual := virtualAddress(l, "client", "far:80")
	l.kill("a")
	waiting := l.background(a, "client", "hold", "-address", virtual, "-connections", "20", "-send", "hello")
	l.awaitHeld(waiting, workload.HeldConnected, 20)
	l.supervised(s, "")
	l.awaitHeld(waiting, workload.HeldAnswered, 20)
}

// TestUpgradeUnderSupervisor: the new process becomes the main one, and the store
// has its sockets.
func TestUpgradeUnderSupervisor(t *testing.T) {
	l, s := superviseLab(t, "drainTimeout: 1s\n")
	n := l.nodes["a"]
	first, stored := s.Main(), s.Stored()
	u, err := n.Admin.Upgrade(l.ctx())
	if err != nil {
		t.Fatal(err)
	}
	l.upgraded("a", 2)
	l.eventually("the new process is the main one", func() error {
		if s.Main() != u.PID || s.Ready() != 2 {
			return errNotYet
		}
		return nil
	})
	if u.PID == first {
		t.Errorf("the main process is still %d", first)
	}
	for name, count := range stored {
		if got := s.Stored()[name]; got != count {
			t.Errorf("%d sockets of %s are stored, were %d", got, name, count)
		}
	}
	// It is this process's child, as it would be systemd's.
	if err := syscall.Kill(u.PID, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if status, err := s.Reap(l.ctx(), u.PID); err != nil || !status.Exited() || status.ExitStatus() != 0 {
		t.Errorf("it ended with %v, %v", status, err)
	}
}
