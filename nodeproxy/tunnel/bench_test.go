// SPDX-License-Identifier: Apache-2.0

package tunnel_test

import (
	"fmt"
	"runtime"
	"testing"

	"github.com/meshproxy/meshproxy/nodeproxy/tunnel"
	"github.com/meshproxy/meshproxy/nodeproxy/tunnel/tunneltest"
)

// BenchmarkTunnels measures what an idle tunnel takes of the heap, both ends
// together: a node with a thousand workloads has thousands of them.
func BenchmarkTunnels(b *testing.B) {
	const tunnels = 500
	ca := tunneltest.NewCA(b)
	s := newServer(b, ca, tunnel.Options{}, echo, nil)
	c := newClient(b, tunnel.Options{}, tunnel.PoolOptions{Identity: ca})
	for i := range tunnels {
		if _, err := ca.Leaf(tunneltest.ID(fmt.Sprint(i))); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		before := inUse()
		for i := range tunnels {
			w := c.open(keyTo(s.addr, fmt.Sprint(i), "server"), patience).must()
			w.ping("hello")
			w.hangUp()
		}
		b.ReportMetric(float64(inUse()-before)/tunnels/1024, "KiB/tunnel")
		b.ReportMetric(float64(s.Connections()), "tunnels")
	}
}

func inUse() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
