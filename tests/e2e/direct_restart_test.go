// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/meshproxy/meshproxy/nodeproxy/admin/api"
	"github.com/meshproxy/meshproxy/tests/testnet"
)

// absenceMesh has servers of one node, by IPv4, by IPv6 and in a container, a
// client beside them and one in the container, and one that policy denies all.
const absenceMesh = `
authorization: {default: allow}
nodes: [{name: a, address: 10.77.0.1}]
workloads:
  - {name: client, match: [{cgroup: "{{.Cgroup "a" "client"}}"}]}
  - {name: barred, match: [{cgroup: "{{.Cgroup "a" "barred"}}"}]}
  - {name: near, match: [{cgroup: "{{.Cgroup "a" "near"}}"}]}
  - {name: boxed, match: [{cgroupPrefix: "{{.Cgroup "a" "box"}}"}]}
services:
  - {name: four, ports: [{port: 80}], endpoints: [{address: 10.77.0.1, port: 8080, node: a, workload: near}]}
  - {name: six, ports: [{port: 80}], endpoints: [{address: "fd00:77::1", port: 8086, node: a, workload: near}]}
  - {name: boxed, ports: [{port: 80}], endpoints: [{address: %s, port: 8080, node: a, workload: boxed}]}
policies:
  - {name: not-barred, action: deny, from: [{identity: "spiffe://mesh.internal/ns/default/sa/barred"}]}
`

// absence is load on the direct way of a node, whose proxy goes away for this
// reason or that.
type absence struct {
	*lab
	routes []route
	// used are calls over one connection each, fresh are over a new one each time.
	used, fresh []routeCall
	// barred are those of the workload that may make none.
	barred *testnet.Process
}

// route is from a workload to an endpoint of the node.
type route struct {
	name    string
	where   place
	cgroup  string
	address string
}

type routeCall struct {
	*testnet.Process
	name string
}

func newAbsence(t *testing.T) *absence {
	t.Helper()
	l := newLab(t, "nodes: []", "a")
	a := l.net.Host("a")
	box, err := a.Container("box")
	if err != nil {
		t.Fatal(err)
	}
	l.writeMesh(fmt.Sprintf(absenceMesh, box.Addr4()))
	l.install("a", programs.meshproxy)
	w := &absence{lab: l}
	w.startNode()
	l.serve(a, "near", "-echo", "10.77.0.1:8080", "-echo", "[fd00:77::1]:8086")
	l.serve(box, "app", "-echo", "0.0.0.0:8080")
	four := l.virtualIP("a", "four") + ":80"
	w.routes = []route{
		{"out of the container", box, "app", four}, // the kernel tells of the container
		{"into the container", a, "client", l.virtualIP("a", "boxed") + ":80"},
		{"IPv4", a, "client", four},
		{"IPv6", a, "client", "[" + l.virtualIPs("a", "six")[1] + "]:80"},
		{"endpoint's own address", a, "client", "10.77.0.1:8080"},
	}
	for _, r := range w.routes {
		w.learn(r)
	}
	w.hold("since before")
	w.areSpliced()
	for _, r := range w.routes {
		w.fresh = append(w.fresh, w.begin(r, "fresh", "-fresh", "-rate", "30"))
	}
	w.barred = w.background(a, "barred", "call", "-echo", four, "-fresh", "-rate", "20", "-interval", "100ms")
	return w
}

func (w *absence) startNode() {
	w.Helper()
	w.start("a", "splicing: auto\ndrainTimeout: 1s\n")
	if s := w.splice("a"); !s.On {
		w.Fatalf("splicing is off: %s", s.Reason)
	}
}

func (w *absence) begin(r route, kind string, args ...string) routeCall {
	w.Helper()
	return routeCall{w.call(r.where, r.cgroup, append(args, "-echo", r.address)...), kind + ", " + r.name}
}

// learn calls until a connection is spliced: the first ones show how both ends
// read, and a container's may come too early to go directly.
func (l *lab) learn(r route) {
	l.Helper()
	l.eventually(r.name+" is spliced", func() error {
		before := l.splice("a")
		out, err := r.where.Run(l.ctx(), testnet.Command{
			Name: "learn", Path: programs.workload, Cgroup: r.cgroup, Args: []string{"call", "-echo", r.address, "-count", "3"},
		})
		if err != nil {
			l.Fatalf("%v: %s", err, out)
		}
		if after := l.splice("a"); after.Spliced == before.Spliced {
			return fmt.Errorf("%+v", after)
		}
		return nil
	})
}

// hold begins calls over one connection on each route.
func (w *absence) hold(kind string) {
	w.Helper()
	for _, r := range w.routes {
		w.used = append(w.used, w.begin(r, kind, "-rate", "50"))
	}
}

// areSpliced wants the connections that are used to be listed, all of them spliced.
func (w *absence) areSpliced() {
	w.Helper()
	w.areListed("splice")
}

// areListed wants the connections that are used to be listed, by that path unless it
// is empty; those of fresh calls are gone soon.
func (w *absence) areListed(path string) {
	w.Helper()
	before := time.Now()
	w.eventually("connections are listed", func() error {
		all, err := w.nodes["a"].Admin.Connections(w.ctx(), api.ConnectionFilter{})
		if err != nil {
			return err
		}
		listed := 0
		for _, c := range all.Connections {
			if c.Opened.After(before) {
				continue
			}
			if path != "" && c.Path != path || c.Service == "" || c.SourceIdentity == "" || c.DestinationIdentity == "" {
				return fmt.Errorf("%+v", c)
			}
			listed++
		}
		if listed != len(w.used) {
			return fmt.Errorf("%d are, want %d", listed, len(w.used))
		}
		return nil
	})
}

func (w *absence) calls() []routeCall { return slices.Concat(w.used, w.fresh) }

// goOn waits until everybody has got further, and who is denied was refused again.
func (w *absence) goOn() {
	w.Helper()
	for range 3 {
		for _, c := range w.calls() {
			w.awaitCall(c.Process, mark(c.Process), "a call that succeeds", succeeded)
		}
		w.awaitCall(w.barred, mark(w.barred), "a call that fails", failed)
	}
}

// unharmed wants no call to have failed, save for those that have to.
func (w *absence) unharmed() {
	w.Helper()
	for _, c := range w.calls() {
		s := sumOf(c.Process, 0)
		w.Logf("%-40s %5d calls, %d failed, longest %v", c.name, s.Requests, s.Errors, time.Duration(s.Max)*time.Microsecond)
		if s.Errors > 0 {
			w.Errorf("%s: %d calls failed, the last one with %q", c.name, s.Errors, s.Error)
		}
	}
	if s := sumOf(w.barred, 0); s.Requests > 0 || s.Error != "ECONNREFUSED" {
		w.Errorf("%d calls that policy denies succeeded, %d failed, the last one with %q", s.Requests, s.Errors, s.Error)
	}
}

// deny changes the policy, and cut waits until all that was open is closed for that.
func (w *absence) deny() (cut func()) {
	w.Helper()
	var marks []int
	for _, c := range w.used {
		marks = append(marks, mark(c.Process))
	}
	w.writeMesh(strings.Replace(w.mesh, "default: allow", "default: deny", 1))
	changed := time.Now()
	return func() {
		w.Helper()
		w.eventually("nothing is open", func() error {
			if s := w.splice("a"); s.Active != 0 {
				return fmt.Errorf("%+v", s)
			}
			return nil
		})
		w.Logf("nothing is open %v after the file was changed", time.Since(changed))
		for i, c := range w.used {
			w.awaitCall(c.Process, marks[i], "a call that fails", failed)
		}
	}
}

// stop stops the node as a service manager does.
func (l *lab) stop(host string) {
	l.Helper()
	n := l.nodes[host]
	n.Admin.Close()
	if err := n.Stop(l.ctx()); err != nil {
		l.Fatal(err)
	}
}

// TestDirectWithoutProxy: the proxy of a loaded node is killed, or stopped, stays
// away and comes back. Spliced connections go on, new direct ones are made, both
// byte for byte, and what is denied stays so. The next process knows of all of them,
// and closes them when policy changes.
func TestDirectWithoutProxy(t *testing.T) {
	for name, end := range map[string]func(*lab, string){"killed": (*lab).kill, "stopped": (*lab).stop} {
		t.Run(name, func(t *testing.T) {
			w := newAbsence(t)
			end(w.lab, "a")
			w.goOn()
			w.hold("since meanwhile")
			w.goOn()
			w.startNode()
			w.goOn()
			w.unharmed()
			w.areSpliced()
			w.deny()()
		})
	}
}

// TestPolicyChangesWithoutProxy: what became illegal while no process was there is
// closed by the next one.
func TestPolicyChangesWithoutProxy(t *testing.T) {
	w := newAbsence(t)
	w.kill("a")
	w.hold("since meanwhile")
	cut := w.deny()
	w.goOn() // nobody knows yet
	w.unharmed()
	w.startNode()
	cut()
}

// TestDirectUpgrade: another process takes over.
func TestDirectUpgrade(t *testing.T) {
	w := newAbsence(t)
	w.goOn()
	w.upgrade(programs.meshproxy)
	w.unharmed()
	w.areSpliced()
	w.deny()()
}

// directToAnotherLayout: connections that were opened by the programs of another
// layout go on, are listed, and are closed when policy changes; be the upgrade
// orderly or not, and the next process killed or not.
func directToAnotherLayout(t *testing.T, other string) {
	for _, tc := range []struct {
		name string
		next func(w *absence)
	}{
		{"upgraded", func(w *absence) { w.upgrade(other) }},
		{"upgraded and killed", func(w *absence) {
			w.upgrade(other)
			w.killLast()
			w.startNode()
		}},
		{"upgraded and back", func(w *absence) {
			w.upgrade(other)
			w.upgrade(programs.meshproxy)
		}},
		{"killed before", func(w *absence) {
			w.kill("a")
			w.install("a", other)
			w.startNode()
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newAbsence(t)
			w.goOn()
			tc.next(w)
			w.goOn()
			for _, c := range w.used {
				w.undisturbed(c.Process, 0)
			}
			w.areListed("")
			// One that ends is forgotten.
			if err := w.used[0].Stop(w.ctx()); err != nil {
				t.Fatal(err)
			}
			w.used = w.used[1:]
			w.areListed("")
			w.deny()()
		})
	}
}

// killLast kills the process that has taken over, which the lab has not started.
func (w *absence) killLast() {
	w.Helper()
	pid := w.status("a").PID
	w.nodes["a"].Admin.Close()
	// A pidfd tells of the end when all threads have ended: the process's memory is
	// gone, as /proc shows it, before its lock is.
	process, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		w.Fatal(err)
	}
	defer unix.Close(process)
	if err := unix.PidfdSendSignal(process, unix.SIGKILL, nil, 0); err != nil {
		w.Fatal(err)
	}
	w.eventually("it is gone", func() error {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(process), Events: unix.POLLIN}}, 0)
		if err == nil && n == 0 {
			return fmt.Errorf("process %d is there", pid)
		}
		return err
	})
}

// upgrade has another program take over, and waits until the one before has ended.
func (w *absence) upgrade(program string) {
	w.Helper()
	w.install("a", program)
	u, err := w.nodes["a"].Admin.Upgrade(w.ctx())
	if err != nil {
		w.Fatal(err)
	}
	w.hold("since the upgrade")
	w.goOn()
	w.eventually("the process before has ended", func() error {
		if st := w.status("a"); st.PID != u.PID || st.Upgrades.Predecessor != nil {
			return fmt.Errorf("%+v", st.Upgrades)
		}
		return nil
	})
	w.goOn()
}
