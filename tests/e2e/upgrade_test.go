// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/meshproxy/meshproxy/nodeproxy/admin/api"
	"github.com/meshproxy/meshproxy/tests/meshnode"
	"github.com/meshproxy/meshproxy/tests/testnet"
	"github.com/meshproxy/meshproxy/tests/workload"
)

// upgradeMesh has servers and clients on both nodes, and one in a container of a.
const upgradeMesh = `
authorization: {default: allow}
nodes: [{name: a, address: 10.77.0.1}, {name: b, address: 10.77.0.2}]
workloads:
  - {name: client, node: a, match: [{cgroup: "{{.Cgroup "a" "client"}}"}]}
  - {name: near, node: a, match: [{cgroup: "{{.Cgroup "a" "near"}}"}], inbound: permissive, inboundLocal: deny}
  - {name: boxed, node: a, match: [{cgroupPrefix: "{{.Cgroup "a" "box"}}"}]}
  - {name: caller, node: b, match: [{cgroup: "{{.Cgroup "b" "caller"}}"}]}
  - {name: far, node: b, match: [{cgroup: "{{.Cgroup "b" "far"}}"}]}
services:
  - {name: near, ports: [{port: 80}], endpoints: [{address: 10.77.0.1, port: 8080, node: a, workload: near}]}
  - {name: far, ports: [{port: 80}], endpoints: [{address: 10.77.0.2, port: 8080, node: b, workload: far}]}
`

// install puts a program where a node of its own runs it from, as a package
// manager does: by renaming.
func (l *lab) install(host, program string) (path string) {
	l.Helper()
	path = filepath.Join(l.net.Dir(), "bin-"+host)
	l.installed[host] = path
	from, err := os.Open(program)
	if err != nil {
		l.Fatal(err)
	}
	defer from.Close()
	next, err := os.OpenFile(path+".new", os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o755)
	if err != nil {
		l.Fatal(err)
	}
	if _, err := io.Copy(next, from); err != nil {
		l.Fatal(err)
	}
	if err := next.Close(); err != nil {
		l.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		l.Fatal(err)
	}
	return path
}

// upgradeLab runs upgradeMesh; a's program can be replaced.
func upgradeLab(t *testing.T, program string, o meshnode.Options) *lab {
	t.Helper()
	l := newLab(t, upgradeMesh, "a", "b")
	l.install("a", program)
	l.startAs("a", o)
	l.start("b", "")
	a, b := l.net.Host("a"), l.net.Host("b")
	l.serve(a, "near", "-name", "near", "-tcp", "10.77.0.1:8080")
	l.serve(b, "far", "-name", "far", "-tcp", "10.77.0.2:8080")
	return l
}

// load is traffic of every kind through node a.
type load struct {
	*lab
	calls map[string]*testnet.Process
	held  []*testnet.Process
}

// loaded starts traffic: new connections all the time, connections that are used
// and connections that are only open; to another node, from it, and within.
func (l *lab) loaded() *load {
	l.Helper()
	a, b := l.net.Host("a"), l.net.Host("b")
	box, err := a.Container("box")
	if err != nil {
		l.Fatal(err)
	}
	load := &load{lab: l, calls: map[string]*testnet.Process{}}
	l.works(box, "boxed", "far:80") // the proxy has come to the namespace
	for name, c := range map[string]struct {
		where           place
		cgroup, address string
	}{
		"out":    {a, "client", "far:80"},
		"in":     {b, "caller", "near:80"},
		"within": {a, "client", "near:80"},
		"boxed":  {box, "boxed", "far:80"},
	} {
		load.calls["new "+name] = l.call(c.where, c.cgroup, "-tcp", c.address, "-fresh", "-rate", "50", "-workers", "4", "-timeout", restartTime.String())
		load.calls["used "+name] = l.call(c.where, c.cgroup, "-tcp", c.address, "-rate", "50")
		if name != "boxed" {
			load.held = append(load.held, l.hold(c.where, c.cgroup, c.address, 10))
		}
	}
	return load
}

// unharmed wants no call that failed and none that took longer than is allowed,
// and prints what they took.
func (l *load) unharmed(since map[string]int, longest time.Duration) {
	l.Helper()
	for name, p := range l.calls {
		s := sumOf(p, since[name])
		l.Logf("%-12s %5d calls, %d failed, longest %v", name, s.Requests, s.Errors, time.Duration(s.Max)*time.Microsecond)
		if s.Requests == 0 || s.Errors > 0 {
			l.Errorf("%s: %d calls succeeded and %d failed, the last one with %q", name, s.Requests, s.Errors, s.Error)
		}
		if time.Duration(s.Max)*time.Microsecond > longest {
			l.Errorf("%s: a call took %v", name, time.Duration(s.Max)*time.Microsecond)
		}
	}
	for _, p := range l.held {
		if states, errors := held(p); states[workload.HeldAnswered] != 10 {
			l.Errorf("%s: connections are %v, %v", p.Name(), states, errors)
		}
	}
}

// marks are positions in the output of all calls.
func (l *load) marks() map[string]int {
	m := map[string]int{}
	for name, p := range l.calls {
		m[name] = mark(p)
	}
	return m
}

// goOn waits until every call has been answered again.
func (l *load) goOn() {
	l.Helper()
	for _, p := range l.calls {
		l.awaitCall(p, mark(p), "a call that succeeds", succeeded)
	}
}

// patientWait is the longest that a call may take while the machine is busy with
// other things; what it really took is printed.
const patientWait = restartTime

// upgraded waits until a process of that generation serves.
func (l *lab) upgraded(host string, generation int) api.Status {
	l.Helper()
	var st api.Status
	l.eventually(fmt.Sprintf("generation %d serves", generation), func() error {
		var err error
		if st, err = l.nodes[host].Admin.Status(l.ctx()); err != nil {
			return err
		}
		if st.Upgrades.Generation != generation || st.State != api.StateReady {
			return fmt.Errorf("generation %d is %s", st.Upgrades.Generation, st.State)
		}
		return nil
	})
	return st
}

// TestUpgrade: under load, a new process takes over, and another one after it
// while the first still drains.
func TestUpgrade(t *testing.T) {
	l := upgradeLab(t, programs.meshproxy, meshnode.Options{Extra: "drainTimeout: 10s\n"})
	n := l.nodes["a"]
	load := l.loaded()
	first := l.upgraded("a", 1)
	since := load.marks()
	for generation := 2; generation <= 3; generation++ {
		l.install("a", programs.meshproxy)
		out, err := n.Run(l.ctx(), "reload", "--config", n.ConfigPath())
		if err != nil || !strings.Contains(string(out), "serves") {
			t.Fatalf("reload: %v: %s", err, out)
		}
		st := l.upgraded("a", generation)
		if st.PID == first.PID || st.Upgrades.Predecessor == nil || st.Upgrades.At.IsZero() {
			t.Errorf("pid %d, upgrades %+v", st.PID, st.Upgrades)
		}
		load.goOn()
	}
	load.unharmed(since, patientWait)
}

// TestUpgradeFails: a new process that cannot take over changes nothing, and the
// one that was there says why.
func TestUpgradeFails(t *testing.T) {
	l := upgradeLab(t, programs.meshproxy, meshnode.Options{Extra: "upgradeTimeout: 8s\n"})
	n := l.nodes["a"]
	load := l.loaded()
	before := l.upgraded("a", 1)
	since := load.marks()
	for _, tc := range []struct{ name, program, says string }{
		{"ends", "#!/bin/sh\nexit 7\n", "gone"},
		{"hangs", "#!/bin/sh\nexec sleep 60\n", "not ready in time"},
		{"no program", "\x00", "exec format error"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l := l.in(t)
			text := filepath.Join(l.net.Dir(), "program")
			if err := os.WriteFile(text, []byte(tc.program), 0o755); err != nil {
				t.Fatal(err)
			}
			l.install("a", text)
			out, err := l.net.Host("a").Run(l.ctx(), testnet.Command{
				Name: "reload", Path: programs.meshproxy, Args: []string{"reload", "--config", n.ConfigPath()},
			})
			if err == nil || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("reload says %v: %s", err, out)
			}
			st := l.status("a")
			if st.PID != before.PID || !strings.Contains(st.Upgrades.LastError, tc.says) {
				t.Errorf("pid %d, was %d, upgrades %+v", st.PID, before.PID, st.Upgrades)
			}
			l.reports("a", "upgrade", tc.says)
		})
	}
	good, err := os.ReadFile(n.ConfigPath())
	if err != nil {
		t.Fatal(err)
	}
	// From now on it is the machine that may be slow, not the program.
	good = bytes.Replace(good, []byte("upgradeTimeout: 8s\n"), fmt.Appendf(nil, "upgradeTimeout: %v\n", restartTime), 1)
	loaded := l.status("a").Config.LoadedAt
	if err := os.WriteFile(n.ConfigPath(), good, 0o600); err != nil {
		t.Fatal(err)
	}
	l.eventually("the configuration is read again", func() error {
		if !l.status("a").Config.LoadedAt.After(loaded) {
			return errNotYet
		}
		return nil
	})
	l.install("a", programs.meshproxy)
	l.serve(l.net.Host("a"), "nobody", "-tcp", "127.0.0.1:7999")
	for _, tc := range []struct{ name, extra, says string }{
		{"configuration is not valid", "colour: blue\n", "colour"},
		{"state is elsewhere", "bpf: {instance: other}\n", "bpf.instance"},
		// Noticed when the first process has given way already.
		{"port is taken", "listeners: {metrics: 127.0.0.1:7999}\n", "7999"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l := l.in(t)
			text := append(slices.Clone(good), tc.extra...)
			if strings.HasPrefix(tc.extra, "bpf:") {
				text = bytes.Replace(good, []byte("instance: a\n"), []byte("instance: other\n"), 1)
			}
			if err := os.WriteFile(n.ConfigPath(), text, 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := n.Admin.Upgrade(l.ctx()); err == nil || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("upgrade says %v", err)
			}
			if st := l.status("a"); st.PID != before.PID {
				t.Errorf("pid %d, was %d", st.PID, before.PID)
			}
			load.goOn()
		})
	}
	if err := os.WriteFile(n.ConfigPath(), good, 0o600); err != nil {
		t.Fatal(err)
	}
	load.goOn()
	load.unharmed(since, patientWait)
	u, err := n.Admin.Upgrade(l.ctx())
	if err != nil || u.Generation != 2 || u.PID == before.PID {
		t.Fatalf("upgrade: %+v, %v", u, err)
	}
	if st := l.upgraded("a", 2); st.Upgrades.LastError != "" {
		t.Errorf("upgrades %+v", st.Upgrades)
	}
	load.goOn()
	load.unharmed(since, patientWait)
}

// TestUpgradeToAnotherLayout: to a program whose structures in the kernel are
// others, and back.
func TestUpgradeToAnotherLayout(t *testing.T) {
	other := buildOtherLayout(t)
	t.Run("through the proxy", func(t *testing.T) { upgradeToAnotherLayout(t, other) })
	t.Run("without the proxy", func(t *testing.T) { directToAnotherLayout(t, other) })
}

func upgradeToAnotherLayout(t *testing.T, other string) {
	l := upgradeLab(t, programs.meshproxy, meshnode.Options{Extra: "drainTimeout: 10s\n"})
	load := l.loaded()
	l.upgraded("a", 1)
	since := load.marks()
	state := filepath.Join(l.net.Host("a").BPFFS(), "meshproxy", "*", "*")
	before, err := filepath.Glob(state)
	if err != nil || len(before) != 1 {
		t.Fatalf("pinned are %v, %v", before, err)
	}
	for i, program := range []string{other, programs.meshproxy} {
		l.install("a", program)
		if _, err := l.nodes["a"].Admin.Reload(l.ctx()); err != nil {
			t.Fatal(err)
		}
		l.upgraded("a", i+2)
		load.goOn()
		l.eventually("the state is that of the other layout alone", func() error {
			pins, err := filepath.Glob(state)
			if err != nil || len(pins) != 1 || filepath.Base(pins[0]) != []string{"v99", filepath.Base(before[0])}[i] {
				return fmt.Errorf("pinned are %v, %v", pins, err)
			}
			return nil
		})
	}
	load.unharmed(since, patientWait)
}
