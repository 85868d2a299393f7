// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/meshproxy/meshproxy/tests/meshnode"
	"github.com/meshproxy/meshproxy/tests/testnet"
	"github.com/meshproxy/meshproxy/tests/workload"
)

// TestMemoryLimit: the memory that the proxy of a may have runs short. New
// connections are refused with the reason, what is open goes on, the node isn't
// killed, and all is well when there is some again.
func TestMemoryLimit(t *testing.T) {
	group := newMemoryGroup(t)
	l := newLab(t, faultMesh, "a", "b")
	a, b := l.net.Host("a"), l.net.Host("b")
	group.within(l, a)
	n := l.startAs("a", meshnode.Options{Program: []string{"/bin/sh", "-c", `echo $$ >` + group.dir + `/cgroup.procs; exec "$@"`, "sh"}})
	l.start("b", "")
	l.serve(b, "far", "-name", "far", "-tcp", "10.77.0.2:8080")
	open := l.call(a, "client", "-tcp", "far:80", "-rate", "50")
	old := l.hold(a, "client", "far:80", 10)

	// Nine tenths of the limit is what it has now and 8 MiB.
	group.limit((group.used() + 8<<20) / 9 * 10)
	const dials = 4000
	flood := l.background(a, "other", "hold", "-address", "10.77.0.2:8080", "-send", "hello", "-timeout", "1m", "-connections", fmt.Sprint(dials))
	l.eventually("connections are answered or refused", func() error {
		states, errors := held(flood)
		if errors["ECONNRESET"] == 0 || states[workload.HeldAnswered]+errors["ECONNRESET"] != dials {
			return fmt.Errorf("%v, %v", states, errors)
		}
		return nil
	})
	l.refused("a", "outbound limit_memory")
	l.logged(n, "limit_memory", "source=other", "the node's memory is short")
	from := mark(open)
	l.awaitCall(open, from, "a call that succeeds", succeeded)
	if states, errors := held(old); states[workload.HeldAnswered] != 10 {
		t.Errorf("connections from before: %v, %v", states, errors)
	}
	select {
	case <-n.Done():
		t.Error("the node was killed")
	default:
	}

	group.limit(1 << 40)
	if err := flood.Stop(l.ctx()); err != nil {
		t.Fatal(err)
	}
	l.eventually("connections are taken again", func() error {
		if d := l.dial(a, "other", "-address", "far:80", "-send", "hello"); !d.OK {
			return fmt.Errorf("%s at %s", d.Error, d.Stage)
		}
		return nil
	})
}

// memoryGroup is a cgroup of the memory controller, in whichever version of the
// hierarchy this machine has it.
type memoryGroup struct {
	t   *testing.T
	dir string
	v2  bool
}

const memoryV1 = "/sys/fs/cgroup/memory"

func newMemoryGroup(t *testing.T) *memoryGroup {
	t.Helper()
	if _, err := os.Stat(memoryV1 + "/memory.limit_in_bytes"); errors.Is(err, os.ErrNotExist) {
		return &memoryGroup{t: t, v2: true}
	}
	g := &memoryGroup{t: t, dir: filepath.Join(memoryV1, fmt.Sprintf("meshproxy-e2e-%d", os.Getpid()))}
	if err := os.Mkdir(g.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := testnet.Until(ctx, func() error { return os.Remove(g.dir) }); err != nil {
			t.Error(err)
		}
	})
	return g
}

// within makes the group that of the host's node, where there is one hierarchy
// for all.
func (g *memoryGroup) within(l *lab, h *testnet.Host) {
	g.t.Helper()
	if !g.v2 {
		return
	}
	g.dir = h.Cgroup(meshnode.Cgroup)
	if err := os.MkdirAll(g.dir, 0o755); err != nil {
		g.t.Fatal(err)
	}
	for at := filepath.Dir(g.dir); strings.HasPrefix(at, l.net.CgroupMount()); at = filepath.Dir(at) {
		defer func() { // from the top
			if err := os.WriteFile(at+"/cgroup.subtree_control", []byte("+memory"), 0); err != nil {
				g.t.Fatal(err)
			}
		}()
	}
}

func (g *memoryGroup) file(v1, v2 string) string {
	if g.v2 {
		return filepath.Join(g.dir, v2)
	}
	return filepath.Join(g.dir, v1)
}

func (g *memoryGroup) limit(n uint64) {
	g.t.Helper()
	file := g.file("memory.limit_in_bytes", "memory.max")
	err := os.WriteFile(file, []byte(strconv.FormatUint(n, 10)), 0)
	for errors.Is(err, unix.EINTR) {
		err = os.WriteFile(file, []byte(strconv.FormatUint(n, 10)), 0)
	}
	if err != nil {
		g.t.Fatal(err)
	}
}

func (g *memoryGroup) used() uint64 {
	g.t.Helper()
	content, err := os.ReadFile(g.file("memory.usage_in_bytes", "memory.current"))
	if err != nil {
		g.t.Fatal(err)
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(content)), 10, 64)
	if err != nil {
		g.t.Fatal(err)
	}
	return n
}
