// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"strings"
	"testing"

	"github.com/meshproxy/meshproxy/nodeproxy/admin/api"
	"github.com/meshproxy/meshproxy/tests/meshnode"
	"github.com/meshproxy/meshproxy/tests/testnet"
)

// hopsLab is limitMesh with nodes that splice the connections between
// applications and the proxy, with no more than the capabilities of their unit.
func hopsLab(t *testing.T) (l *lab, server *testnet.Process) {
	t.Helper()
	l = newLab(t, limitMesh, "a", "b")
	server = l.serve(l.net.Host("b"), "far", "-name", "far", "-tcp", "10.77.0.2:8080")
	for _, host := range []string{"a", "b"} {
		l.startHops(host)
	}
	// The first connections show how client and server read, and are not spliced.
	l.eventually("connections are spliced on both nodes", func() error {
		before := map[string]api.SplicedHops{"a": l.splice("a").Hops, "b": l.splice("b").Hops}
		l.exchange(1, 2, 100)
		for host, was := range before {
			if after := l.splice(host).Hops; after.Spliced == was.Spliced {
				return fmt.Errorf("on %s: %+v", host, after)
			}
		}
		return nil
	})
	return l, server
}

func (l *lab) startHops(host string) {
	l.Helper()
	l.startAs(host, meshnode.Options{UID: nodeUser, Capabilities: nodeCapabilities, Extra: "spliceHops: auto"})
	if h := l.splice(host).Hops; !h.On {
		l.Fatalf("hops are not spliced on %s: %s", host, h.Reason)
	}
}

// exchange makes calls of one size over some connections and wants all to
// succeed.
func (l *lab) exchange(workers, calls, size int) {
	l.Helper()
	out, err := l.net.Host("a").Run(l.ctx(), testnet.Command{
		Name: fmt.Sprintf("call-%d", size), Path: programs.workload, Cgroup: "other",
		Args: []string{
			"call", "-tcp", "far:80", "-rate", "0", "-workers", fmt.Sprint(workers), "-count", fmt.Sprint(calls),
			"-body", strings.Repeat("x", size), "-interval", "1h", "-timeout", patience.String(),
		},
	})
	if err != nil || !strings.Contains(string(out), fmt.Sprintf(`"requests":%d,`, workers*calls)) {
		l.Errorf("%d calls of %d bytes: %v: %s", workers*calls, size, err, out[max(0, len(out)-600):])
	}
}

// since is what has gone directly since an earlier look.
func since(now, before api.SplicedHops) api.SplicedHops {
	now.Spliced -= before.Spliced
	now.Left -= before.Left
	now.FromApplications -= before.FromApplications
	now.FromProxy -= before.FromProxy
	return now
}

// TestHops: messages of all sizes, whose data goes directly, by TCP, or both
// ways one after the other; small ones go directly.
func TestHops(t *testing.T) {
	l, _ := hopsLab(t)
	for _, size := range []int{1, 4000, 20_000, 60_000} {
		before := map[string]api.SplicedHops{"a": l.splice("a").Hops, "b": l.splice("b").Hops}
		l.exchange(16, 100, size)
		for _, host := range []string{"a", "b"} {
			h := since(l.splice(host).Hops, before[host])
			t.Logf("%d bytes on %s: %+v", size, host, h)
			if h.Spliced != 16 {
				t.Errorf("%d connections were spliced on %s", h.Spliced, host)
			}
			if all := uint64(16 * 100 * size); size == 4000 && (h.FromApplications < all/2 || h.FromProxy < all/2) {
				t.Errorf("little went directly on %s: %+v", host, h)
			}
		}
	}
}

// TestHopsKilled: the client, the server and both proxies are killed while data
// is under way; what follows works, and is spliced.
func TestHopsKilled(t *testing.T) {
	l, server := hopsLab(t)
	a, b := l.net.Host("a"), l.net.Host("b")
	load := func() *testnet.Process {
		return l.call(a, "other", "-tcp", "far:80", "-rate", "0", "-workers", "8", "-body", strings.Repeat("y", 50_000))
	}
	spliced := func() {
		l.Helper()
		l.eventually("new connections are spliced", func() error {
			before := map[string]api.SplicedHops{"a": l.splice("a").Hops, "b": l.splice("b").Hops}
			l.exchange(4, 50, 3000)
			for host, was := range before {
				if h := since(l.splice(host).Hops, was); h.Spliced == 0 || h.FromApplications == 0 || h.FromProxy == 0 {
					return fmt.Errorf("on %s: %+v", host, h)
				}
			}
			return nil
		})
	}
	client := load()
	if err := client.Kill(); err != nil {
		t.Fatal(err)
	}
	spliced()

	// This one goes on calling while all else dies, one after the other.
	client = load()
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	<-server.Done() // its port is free only then
	l.serve(b, "far", "-name", "far", "-tcp", "10.77.0.2:8080")
	l.awaitCall(client, mark(client), "a call that succeeds", succeeded)
	spliced()
	for _, host := range []string{"b", "a"} {
		l.kill(host)
		l.startHops(host)
		l.works(a, "other", "far:80")
		l.awaitCall(client, mark(client), "a call that succeeds", succeeded)
		spliced()
	}
}
