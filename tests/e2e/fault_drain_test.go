// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	bpflink "github.com/cilium/ebpf/link"

	"github.com/meshproxy/meshproxy/tests/meshnode"
	"github.com/meshproxy/meshproxy/tests/testnet"
	"github.com/meshproxy/meshproxy/tests/workload"
)

// drainsLong is the configuration of nodes whose connections end when a test ends
// them.
var drainsLong = fmt.Sprintf("drainTimeout: %v\n", patience)

// TestDrain: SIGTERM while connections are used. They go on, new ones are
// refused at once, and the process ends when the last one has.
func TestDrain(t *testing.T) {
	for _, node := range []string{"a", "b"} {
		t.Run("of "+node, func(t *testing.T) {
			l := twoFaultNodes(t, meshnode.Options{Extra: drainsLong}, drainsLong)
			a, n := l.net.Host("a"), l.nodes[node]
			calls := l.call(a, "client", "-tcp", "far:80", "-rate", "30")
			if err := n.Signal(os.Interrupt); err != nil {
				t.Fatal(err)
			}
			l.logged(n, "msg=draining")
			want := refusedAtOnce
			if node == "b" {
				want = resetLater // it's the other node that knows
			}
			l.fails(a, "client", "10.77.0.2:8080", want)
			l.fails(a, "other", "10.77.0.2:8080", want)
			select {
			case <-n.Done():
				t.Fatal("it ended before its connections")
			default:
			}
			l.awaitCall(calls, mark(calls), "a call that succeeds", succeeded)
			l.undisturbed(calls, 0)
			if err := calls.Stop(l.ctx()); err != nil {
				t.Fatal(err)
			}
			if err := n.Wait(l.ctx()); err != nil {
				t.Errorf("the process ended with %v", err)
			}
			l.start(node, "")
			l.works(a, "client", "far:80")
		})
	}
}

// TestDrainTimeout: connections that don't end are closed when the time is up.
func TestDrainTimeout(t *testing.T) {
	l := twoFaultNodes(t, meshnode.Options{Extra: "drainTimeout: 1s\n"})
	a, n := l.net.Host("a"), l.nodes["a"]
	open := l.hold(a, "client", "far:80", 5)
	began := time.Now()
	if err := n.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := n.Wait(l.ctx()); err != nil {
		t.Errorf("the process ended with %v", err)
	}
	took := time.Since(began)
	t.Logf("draining took %v, the limit is 1s", took)
	if took < time.Second {
		t.Error("the limit was not kept")
	}
	l.awaitHeld(open, workload.HeldEnded, 5)
	l.logged(n, "closing connections that did not finish", "connections=5")
}

// TestLeave: after "leave" there is no trace in the kernel, and workloads
// connect as if there had never been a mesh.
func TestLeave(t *testing.T) {
	l := newLab(t, crashMesh, "a", "b")
	a, b := l.net.Host("a"), l.net.Host("b")
	l.start("a", "")
	l.serve(b, "far", "-name", "far", "-tcp", "10.77.0.2:8080")
	pins := filepath.Join(a.BPFFS(), "meshproxy")
	links := linksBelow(l, pins)
	if len(links) < 10 {
		t.Fatalf("only %d links are pinned", len(links))
	}
	if out, err := l.nodes["a"].Run(l.ctx(), "leave", "--config", l.nodes["a"].ConfigPath()); err == nil {
		t.Errorf("leave works while the node runs: %s", out)
	}
	if err := l.nodes["a"].Stop(l.ctx()); err != nil {
		t.Fatal(err)
	}
	if left := linksBelow(l, pins); len(left) != len(links) {
		t.Errorf("a stop leaves %d links of %d", len(left), len(links))
	}
	l.fails(a, "client", "10.77.0.2:8080", refusedAtOnce)

	if err := l.nodes["a"].Leave(l.ctx()); err != nil {
		t.Fatal(err)
	}
	for id, name := range links {
		l.eventually("link "+name+" is gone", func() error { // the kernel ends it later, on a thread of its own
			left, err := bpflink.NewFromID(id)
			if err == nil {
				left.Close()
				return fmt.Errorf("%d is still there", id)
			}
			if !errors.Is(err, os.ErrNotExist) {
				return err
			}
			return nil
		})
	}
	attached(l, a)
	if entries, err := os.ReadDir(pins); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("in the BPF file system there is %v (%v)", entries, err)
	}
	d := l.dial(a, "client", "-address", "10.77.0.2:8080", "-send", "hello")
	if s := seen(t, d); s.Accepted != d.Local || s.Peer != d.Local {
		t.Errorf("the server saw %s and %s, the client is %s", s.Accepted, s.Peer, d.Local)
	}
	// The ports are anybody's again.
	l.serve(a, "nobody", "-tcp", "127.0.0.1:15001", "-tcp", "127.0.0.1:15006")
	if err := l.nodes["a"].Leave(l.ctx()); err != nil {
		t.Errorf("leaving twice: %v", err)
	}
}

// linksBelow are the pinned links, by number.
func linksBelow(l *lab, dir string) map[bpflink.ID]string {
	l.Helper()
	links := map[bpflink.ID]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || filepath.Base(filepath.Dir(path)) != "links" {
			return err
		}
		pinned, err := bpflink.LoadPinnedLink(path, nil)
		if err != nil {
			return err
		}
		defer pinned.Close()
		info, err := pinned.Info()
		if err != nil {
			return err
		}
		links[info.ID] = d.Name()
		return nil
	})
	if err != nil {
		l.Fatal(err)
	}
	return links
}

// attached wants no programs at the host's cgroup.
func attached(l *lab, h *testnet.Host) {
	l.Helper()
	root, err := os.Open(h.Cgroup())
	if err != nil {
		l.Fatal(err)
	}
	defer root.Close()
	for _, at := range []ebpf.AttachType{
		ebpf.AttachCGroupInet4Connect, ebpf.AttachCGroupInet6Connect, ebpf.AttachCGroupInet4Bind, ebpf.AttachCGroupInet6Bind,
		ebpf.AttachCgroupInet4GetPeername, ebpf.AttachCgroupInet6GetPeername, ebpf.AttachCGroupSockOps,
		ebpf.AttachCGroupUDP4Sendmsg, ebpf.AttachCGroupUDP6Sendmsg, ebpf.AttachCGroupUDP4Recvmsg, ebpf.AttachCGroupUDP6Recvmsg,
	} {
		found, err := bpflink.QueryPrograms(bpflink.QueryOptions{Target: int(root.Fd()), Attach: at})
		if err != nil {
			l.Fatalf("query %v: %v", at, err)
		}
		if len(found.Programs) > 0 {
			l.Errorf("%v: programs %v", at, found.Programs)
		}
	}
}
