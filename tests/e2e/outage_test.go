// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"path"
	"strings"
	"syscall"
	"time"

	"github.com/meshproxy/meshproxy/nodeproxy/admin/api"
	"github.com/meshproxy/meshproxy/tests/meshnode"
	"github.com/meshproxy/meshproxy/tests/testnet"
	"github.com/meshproxy/meshproxy/tests/workload"
)

// What tests of faults have in common: traffic that goes on while things break,
// and what a node says about it.

// longer is a context for what takes longer than other steps.
func (l *lab) longer(d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	l.Cleanup(cancel)
	return ctx
}

// background starts a workload's process and waits until it is ready.
func (l *lab) background(where place, cgroup, role string, args ...string) *testnet.Process {
	l.Helper()
	p, err := where.Start(testnet.Command{
		Name: role + "-" + path.Base(cgroup), Path: programs.workload, Cgroup: cgroup,
		Args: append([]string{role, "-timeout", clientTimeout}, args...),
	})
	if err != nil {
		l.Fatal(err)
	}
	l.ready(p)
	return p
}

// call starts a loop of calls, and waits until one succeeded.
func (l *lab) call(where place, cgroup string, args ...string) *testnet.Process {
	l.Helper()
	p := l.background(where, cgroup, "call", append([]string{"-interval", "100ms"}, args...)...)
	l.awaitCall(p, 0, "a call that succeeds", succeeded)
	return p
}

// mark is a position in a process's output.
func mark(p *testnet.Process) int {
	_, next := p.Stdout().Lines(0)
	return next
}

// awaitCall waits for a report after a mark.
func (l *lab) awaitCall(p *testnet.Process, from int, what string, match func(string) bool) {
	l.Helper()
	l.eventually(what+" of "+p.Name(), func() error {
		lines, _ := p.Stdout().Lines(from)
		for _, line := range lines {
			if match(line) {
				return nil
			}
		}
		return fmt.Errorf("%d reports, the last one is %q", len(lines), lastOf(lines))
	})
}

func lastOf(lines []string) string {
	if len(lines) == 0 {
		return ""
	}
	return lines[len(lines)-1]
}

// sumOf adds up what a calling loop has reported since a mark.
func sumOf(p *testnet.Process, from int) (sum workload.Stats) {
	lines, _ := p.Stdout().Lines(from)
	sum.Servers = map[string]int{}
	for _, line := range lines {
		s, ok := stats(line)
		if !ok {
			continue
		}
		sum.Requests += s.Requests
		sum.Errors += s.Errors
		sum.P99, sum.Max = max(sum.P99, s.P99), max(sum.Max, s.Max)
		if s.Error != "" {
			sum.Error = s.Error
		}
		for name, n := range s.Servers {
			sum.Servers[name] += n
		}
	}
	return sum
}

// undisturbed wants calls since a mark, and none that failed.
func (l *lab) undisturbed(p *testnet.Process, from int) {
	l.Helper()
	if s := sumOf(p, from); s.Requests == 0 || s.Errors > 0 {
		l.Errorf("%s: %d calls succeeded and %d failed, the last one with %q", p.Name(), s.Requests, s.Errors, s.Error)
	}
}

// held counts the connections of a "hold" by the latest state of each, and by
// the error that it has.
func held(p *testnet.Process) (states, errors map[string]int) {
	lines, _ := p.Stdout().Lines(0)
	latest := map[int]workload.Held{}
	for _, line := range lines {
		var h workload.Held
		if strings.Contains(line, `"event":"held"`) && json.Unmarshal([]byte(line), &h) == nil {
			latest[h.Number] = h
		}
	}
	states, errors = map[string]int{}, map[string]int{}
	for _, h := range latest {
		states[h.State]++
		if h.Error != "" {
			errors[h.Error]++
		}
	}
	return states, errors
}

// awaitHeld waits until n connections of a "hold" are in a state.
func (l *lab) awaitHeld(p *testnet.Process, state string, n int) {
	l.Helper()
	l.eventually(fmt.Sprintf("%d connections %s", n, state), func() error {
		if states, errors := held(p); states[state] != n {
			return fmt.Errorf("states %v, errors %v", states, errors)
		}
		return nil
	})
}

// hold opens n connections to a line server and waits until all are answered.
func (l *lab) hold(where place, cgroup, address string, n int) *testnet.Process {
	l.Helper()
	p := l.background(where, cgroup, "hold", "-address", address, "-send", "hello", "-connections", fmt.Sprint(n))
	l.awaitHeld(p, workload.HeldAnswered, n)
	return p
}

// cut waits until the connection of a "hold" was closed by its other end, and
// says how long after the reason that was.
func (l *lab) cut(p *testnet.Process, reason time.Time) {
	l.Helper()
	l.awaitHeld(p, workload.HeldEnded, 1)
	// A direct connection is destroyed in place (tcp_abort): ECONNABORTED.
	if _, errors := held(p); errors["EOF"]+errors["ECONNRESET"]+errors["ECONNABORTED"] != 1 {
		l.Errorf("%s: %v, want the end, a reset or an abort", p.Name(), errors)
	}
	l.Logf("%s: closed after %v", p.Name(), time.Since(reason).Round(time.Millisecond))
}

// What a client sees of a connection that is refused in the kernel, and of one
// that the proxy took and could not bring anywhere: its reset may be noticed by
// any call.
const (
	refusedAtOnce = "ECONNREFUSED at connect"
	resetLater    = "ECONNRESET at read"
)

// fails dials and wants it to fail in a way. What hangs fails in another one,
// that of the client's timeout; how long it takes is printed.
func (l *lab) fails(where place, cgroup, address, want string) {
	l.Helper()
	began := time.Now()
	d := l.dial(where, cgroup, "-address", address, "-send", "hello")
	if d.Error == "ECONNRESET" {
		d.Stage = "read"
	}
	if got := d.Error + " at " + d.Stage; d.OK || got != want {
		l.Errorf("%s to %s: ok=%v, %s; want %s", cgroup, address, d.OK, got, want)
	}
	l.Logf("%s to %s fails after %v", cgroup, address, time.Since(began))
}

// works dials until it succeeds, and returns the server's name.
func (l *lab) works(where place, cgroup, address string) (server string) {
	l.Helper()
	l.eventually(cgroup+" reaches "+address, func() error {
		d := l.dial(where, cgroup, "-address", address, "-send", "hello")
		if !d.OK {
			return fmt.Errorf("%s at %s", d.Error, d.Stage)
		}
		server = seen(l.T, d).Server
		return nil
	})
	return server
}

// status asks a node.
func (l *lab) status(host string) api.Status {
	l.Helper()
	st, err := l.nodes[host].Admin.Status(l.ctx())
	if err != nil {
		l.Fatal(err)
	}
	return st
}

// refusals are a node's, by direction and reason.
func (l *lab) refusals(host string) map[string]uint64 {
	l.Helper()
	counts := map[string]uint64{}
	for _, r := range l.status(host).Refusals {
		counts[r.Direction+" "+r.Reason.String()] += r.Count
	}
	return counts
}

// refused waits until a node has counted a refusal such as "outbound
// connect_refused".
func (l *lab) refused(host, what string) {
	l.Helper()
	l.eventually("node "+host+" counts "+what, func() error {
		if counts := l.refusals(host); counts[what] == 0 {
			return fmt.Errorf("counts %v", counts)
		}
		return nil
	})
}

// logged waits for a line in a node's log or access log that has all the parts.
func (l *lab) logged(n *meshnode.Node, parts ...string) {
	l.Helper()
	l.eventually(fmt.Sprintf("log line with %q", parts), func() error {
		for _, out := range []*testnet.Output{n.Stderr(), n.Stdout()} {
			lines, _ := out.Lines(0)
			for _, line := range lines {
				if containsAll(line, parts) {
					return nil
				}
			}
		}
		return fmt.Errorf("none")
	})
}

func containsAll(s string, parts []string) bool {
	for _, p := range parts {
		if !strings.Contains(s, p) {
			return false
		}
	}
	return true
}

// kill kills a node as kill -9 does, and waits until it is gone.
func (l *lab) kill(host string) {
	l.Helper()
	n := l.nodes[host]
	n.Admin.Close()
	if err := n.Kill(); err != nil {
		l.Fatal(err)
	}
	_ = n.Wait(l.ctx()) // the status says that it was killed
}

// freeze stops a node in the middle of whatever it does; it returns what lets
// it go on.
func (l *lab) freeze(host string) (thaw func()) {
	l.Helper()
	n := l.nodes[host]
	if err := n.Signal(syscall.SIGSTOP); err != nil {
		l.Fatal(err)
	}
	l.eventually("node "+host+" stops", func() error {
		if s := processState(l, n.Pid()); s != "T" {
			return fmt.Errorf("its state is %s", s)
		}
		return nil
	})
	return func() {
		l.Helper()
		if err := n.Signal(syscall.SIGCONT); err != nil {
			l.Fatal(err)
		}
	}
}
