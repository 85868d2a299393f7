// SPDX-License-Identifier: Apache-2.0

package l4_test

import (
	"fmt"
	"io"
	"net/netip"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/meshproxy/meshproxy/nodeproxy/l4"
	"github.com/meshproxy/meshproxy/nodeproxy/telemetry/reason"
	"github.com/meshproxy/meshproxy/nodeproxy/tunnel"
)

// window is how long a figure is measured.
const window = time.Second

// BenchmarkPath measures client → outbound loop → tunnel → inbound loop →
// server over loopback, beside the same without anything between, and through
// one loop without a tunnel. Run it with -benchtime=1x; CPU is what both nodes
// took. Trust ratios between lines of one run.
func BenchmarkPath(b *testing.B) {
	app := serveLoad(b)
	ways := []struct {
		name  string
		front func(b *testing.B) netip.AddrPort
	}{
		{"none", func(*testing.B) netip.AddrPort { return app }},
		{"pair", func(b *testing.B) netip.AddrPort { return cheap(b, app, direct) }},
		{"tunnel", func(b *testing.B) netip.AddrPort { return cheap(b, app, newMesh) }},
		{"line", func(b *testing.B) netip.AddrPort { return cheap(b, app, newLineMesh) }},
	}
	for _, kind := range []string{"ping1", "ping32", "up", "down", "connect"} {
		for _, w := range ways {
			b.Run(kind+"/"+w.name, func(b *testing.B) {
				front := w.front(b)
				for b.Loop() {
					before := cpu()
					r := runLoad(b, kind, front, window)
					spent := cpu() - before
					switch {
					case r.Bytes > 0:
						b.ReportMetric(float64(r.Bytes)/r.Seconds/1e9, "GB/s")
						b.ReportMetric(spent.Seconds()/float64(r.Bytes)*1e9, "cpu-s/GB")
					default:
						b.ReportMetric(float64(r.P50)/1e3, "p50-µs")
						b.ReportMetric(float64(r.P99)/1e3, "p99-µs")
						b.ReportMetric(float64(r.Count)/r.Seconds, "1/s")
						b.ReportMetric(float64(spent.Microseconds())/float64(r.Count), "cpu-µs")
					}
				}
			})
		}
	}
}

// BenchmarkIdle measures the memory of an idle connection on both nodes
// together, beyond that of the kernel.
func BenchmarkIdle(b *testing.B) {
	for name, start := range map[string]starter{"tunnel": newMesh, "line": newLineMesh} {
		b.Run(name, func(b *testing.B) { benchmarkIdle(b, start) })
	}
}

func benchmarkIdle(b *testing.B, start starter) {
	const conns = 4000
	front := cheap(b, serveLoad(b), start)
	for b.Loop() {
		runLoad(b, "connect", front, 100*time.Millisecond)
		before := heap()
		c := roleCommand(fmt.Sprintf("idle %s 0s %d", front, conns))
		in, err := c.StdinPipe()
		if err != nil {
			b.Fatal(err)
		}
		out, err := c.StdoutPipe()
		if err != nil {
			b.Fatal(err)
		}
		if err := c.Start(); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(out, make([]byte, 2)); err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(heap()-before)/conns, "B/conn")
		in.Close()
		if err := c.Wait(); err != nil {
			b.Fatal(err)
		}
	}
}

func heap() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// cpu is the time that this process has used.
func cpu() time.Duration {
	var u unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// cheap makes a front whose sessions only count.
func cheap(b *testing.B, app netip.AddrPort, start starter) netip.AddrPort {
	m := start(b, app, nodeOptions{})
	target := l4.Target{Addr: app}
	if m.in != nil {
		target = m.through(b, app)
		m.in.do(func() { m.in.light = true })
	}
	return m.out.listenFor(routerFunc(func(*l4.Client) (l4.Route, error) {
		return l4.Route{Session: &tally{target: target}}, nil
	}))
}

// tally is a session with one target.
type tally struct {
	target         l4.Target
	sent, received int
}

func (s *tally) Next(failed error) (l4.Target, error) { return s.target, failed }
func (s *tally) Connected(*tunnel.Peer)               {}
func (s *tally) Sent(n int)                           { s.sent += n; tallied.Add(1) }
func (s *tally) Received(n int)                       { s.received += n }
func (s *tally) Closed(reason.Reason, string)         {}

// BenchmarkCopy counts what the copy path allocates: per read of the sending
// node and per read of the receiving one, and nothing else allocates meanwhile.
func BenchmarkCopy(b *testing.B) {
	app := serveLoad(b)
	for _, way := range []struct {
		name  string
		start starter
	}{{"pair", direct}, {"tunnel", newMesh}} {
		b.Run(way.name, func(b *testing.B) {
			front := cheap(b, app, way.start)
			runLoad(b, "up", front, 100*time.Millisecond) // pools and windows are full
			for b.Loop() {
				before, reads := mallocs(), tallied.Load()
				r := runLoad(b, "up", front, window)
				n := float64(tallied.Load() - reads)
				b.ReportMetric(float64(r.Bytes)/n, "B/read")
				b.ReportMetric(float64(mallocs()-before)/n, "allocs/read")
			}
		})
	}
}

// tallied counts the reads of all sessions that only count.
var tallied atomic.Int64

func mallocs() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.Mallocs
}
