// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/meshproxy/meshproxy/tests/testnet"
	"github.com/meshproxy/meshproxy/tests/workload"
)

// cgroupMesh has workloads by each kind of selector, whose explicit upstream
// tells which of them a process is in.
const cgroupMesh = `
authorization: {default: allow}
nodes: [{name: a, address: 10.77.0.1}, {name: b, address: 10.77.0.2}]
workloads:
  - {name: unit, node: a, match: [{unit: "web@*.service"}], upstreams: [{listen: "127.0.0.1:9", service: unit}]}
  - {name: prefix, node: a, match: [{cgroupPrefix: "{{.Cgroup "a" "system.slice/db-"}}"}], upstreams: [{listen: "127.0.0.1:9", service: prefix}]}
  - {name: outer, node: a, match: [{cgroup: "{{.Cgroup "a" "outer"}}"}], upstreams: [{listen: "127.0.0.1:9", service: outer}]}
  - {name: inner, node: a, match: [{cgroup: "{{.Cgroup "a" "outer/delegated/inner"}}"}], upstreams: [{listen: "127.0.0.1:9", service: inner}]}
  - {name: clerk, node: a, match: [{user: "4243"}], upstreams: [{listen: "127.0.0.1:9", service: clerk}]}
  - {name: server, node: a, match: [{cgroup: "{{.Cgroup "a" "server"}}"}]}
services:
  - {name: unit, ports: [{port: 80}], endpoints: [{address: 10.77.0.1, port: 7001, node: a, workload: server}]}
  - {name: prefix, ports: [{port: 80}], endpoints: [{address: 10.77.0.1, port: 7002, node: a, workload: server}]}
  - {name: outer, ports: [{port: 80}], endpoints: [{address: 10.77.0.1, port: 7003, node: a, workload: server}]}
  - {name: inner, ports: [{port: 80}], endpoints: [{address: 10.77.0.1, port: 7004, node: a, workload: server}]}
  - {name: clerk, ports: [{port: 80}], endpoints: [{address: 10.77.0.1, port: 7005, node: a, workload: server}]}
`

// upstreams are the servers of the workloads' explicit upstreams, each with the
// name of its workload.
func (l *lab) upstreams() {
	l.Helper()
	for i, name := range []string{"unit", "prefix", "outer", "inner", "clerk"} {
		l.serve(l.net.Host("a"), "server", "-name", name, "-tcp", fmt.Sprintf("10.77.0.1:%d", 7001+i))
	}
}

// removeCgroup removes a cgroup, as systemd does with that of a unit that ended,
// and those below it.
func (l *lab) removeCgroup(host string, below ...string) {
	l.Helper()
	for _, b := range below {
		dir := l.net.Host(host).Cgroup(b)
		l.eventually("remove "+dir, func() error {
			if err := unix.Rmdir(dir); err != nil && err != unix.ENOENT { // EBUSY: the process is being reaped
				return err
			}
			return nil
		})
	}
}

// TestStartRace starts processes that dial as the first thing they do, in
// cgroups that have only just been made. Those of workloads are all captured,
// of the others not one.
func TestStartRace(t *testing.T) {
	const each = 200
	l := newLab(t, cgroupMesh, "a", "b")
	a := l.net.Host("a")
	n := l.start("a", throughProxy)
	l.upstreams()
	before := l.status("a").Capture.Captured

	// dial returns whether the mesh carried the connection: then its socket is
	// connected to the proxy on loopback.
	dial := func(cgroup string) (captured bool, err error) {
		out, err := a.Run(l.ctx(), testnet.Command{
			Name: "race", Path: programs.workload, Cgroup: cgroup, Args: []string{"dial-once", "-address", "10.77.0.1:7001", "-send", "hello"},
		})
		if err != nil {
			return false, fmt.Errorf("%w: %s", err, out)
		}
		var d workload.Dialed
		if err := json.Unmarshal(out, &d); err != nil {
			return false, err
		}
		l.removeCgroup("a", cgroup)
		return strings.HasPrefix(d.Local, "127.0.0.1:"), nil
	}
	var running sync.WaitGroup
	for k := range 4 {
		running.Go(func() {
			for i := k; i < each; i += 4 {
				mine := fmt.Sprintf([]string{"system.slice/web@%d.service", "system.slice/db-%d.service"}[i/4%2], i)
				others := fmt.Sprintf([]string{"system.slice/other@%d.service", "system.slice/dbx-%d.service"}[i/4%2], i)
				for cgroup, want := range map[string]bool{mine: true, others: false} {
					if got, err := dial(cgroup); err != nil || got != want {
						t.Errorf("%s: captured %v, %v; want %v", cgroup, got, err, want)
					}
				}
			}
		})
	}
	running.Wait()
	if got := l.status("a").Capture.Captured - before; got != each {
		t.Errorf("the kernel counts %d captured connections, want %d", got, each)
	}
	l.eventually("the cgroups are forgotten", func() error {
		for _, w := range parsed[[]struct{ Cgroups []string }](shell{l, n.ConfigPath()}, "workloads", "unit", "prefix") {
			if len(w.Cgroups) > 0 {
				return fmt.Errorf("%v", w.Cgroups)
			}
		}
		return nil
	})
}

// TestCgroups: which workload a process is in, wherever its cgroup is and
// however often it was made.
func TestCgroups(t *testing.T) {
	l := newLab(t, cgroupMesh, "a", "b")
	a := l.net.Host("a")
	if err := os.MkdirAll(a.Cgroup("outer/old/er"), 0o755); err != nil {
		t.Fatal(err)
	}
	l.start("a", "")
	l.upstreams()
	for _, tc := range []struct {
		name, cgroup string
		uid          uint32
		want         string
	}{
		{"older than the mesh", "outer/old/er", 0, "outer"},
		{"new and nested", "outer/new/er/still", 0, "outer"},
		{"delegated to another workload", "outer/delegated/inner", 0, "inner"},
		{"below that one", "outer/delegated/inner/x", 0, "inner"},
		{"beside that one", "outer/delegated/x", 0, "outer"},
		{"template unit in a slice of slices", "system.slice/system-web.slice/web@1.service/worker", 0, "unit"},
		{"prefix", "system.slice/db-1.service", 0, "prefix"},
		{"user", "user.slice/user-4243.slice", 4243, "clerk"},
		{"user within a workload's cgroup", "outer/sub", 4243, "outer"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l := l.in(t)
			for range 3 { // each time the cgroup is another one
				if s := seen(t, l.dialAs(a, tc.cgroup, tc.uid, "-address", "127.0.0.1:9", "-send", "hello")); s.Server != tc.want {
					t.Errorf("process is in workload %q, want %q", s.Server, tc.want)
				}
				l.removeCgroup("a", tc.cgroup)
			}
		})
	}
	t.Run("no workload", func(t *testing.T) {
		for _, cgroup := range []string{"outermost", "system.slice/web.service", "system.slice/dba.service"} {
			if d := l.in(t).dial(a, cgroup, "-address", "127.0.0.1:9", "-send", "hello"); d.Error != "ECONNREFUSED" {
				t.Errorf("%s: ok=%v %s", cgroup, d.OK, d.Error)
			}
		}
	})
}

// TestRestartedWorkload: a workload that is started again is in a cgroup of the
// same name with another id. It is as protected, and as reachable, as before.
func TestRestartedWorkload(t *testing.T) {
	l := newLab(t, reloadMesh, "a", "b")
	a, b := l.net.Host("a"), l.net.Host("b")
	l.start("a", "")
	l.start("b", "")
	calls := func() {
		t.Helper()
		if got := l.works(a, "client", "far:80"); got != "far" {
			t.Errorf("served by %q", got)
		}
		l.fails(a, "nobody", "10.77.0.2:8080", "ECONNREFUSED at connect")
	}
	id := func() uint64 {
		t.Helper()
		var st unix.Stat_t
		if err := unix.Stat(b.Cgroup("far"), &st); err != nil {
			t.Fatal(err)
		}
		return st.Ino
	}
	ids := map[uint64]bool{}
	for range 3 {
		server := l.serve(b, "far", "-name", "far", "-tcp", "0.0.0.0:8080")
		ids[id()] = true
		calls()
		if err := server.Stop(l.ctx()); err != nil {
			t.Fatal(err)
		}
		l.removeCgroup("b", "far")
	}
	if len(ids) != 3 {
		t.Errorf("the cgroup had %d ids, want 3", len(ids))
	}
}
